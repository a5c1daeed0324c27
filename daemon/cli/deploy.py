"""`clawbus deploy start|status|abort|rollback|verify-runtime`: one release takes the place of another, through gates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.cli.output import progress
from daemon.core.deploy_errors import DeployRefusedError, SourceUnknownError
from daemon.core.deploy_verdict import runtime_verdict, verdict
from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError
from daemon.core.slots import FAILURE_ACTIONS, UNKNOWN, SlotState, as_json, other

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.deploy.drift import SourceReport

_LOOK_S: Final = 0.2
_ROLLED_BACK: Final = "DEPLOY_ROLLED_BACK"
_FAILED: Final = "DEPLOY_FAILED"


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Put another release in the place of the one that serves.\n\n\b\nExample:\n  clawbus deploy start 3f2a91c0b7de",
        rich_markup_mode=None,
    )
    add(group, "start", start, path="deploy")
    add(group, "status", status, path="deploy")
    add(group, "abort", abort, path="deploy")
    add(group, "rollback", rollback, path="deploy")
    add(group, "verify-runtime", verify_runtime, path="deploy")
    add_group(app, group, "deploy")


def start(
    invocation: Invocation,
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="A release's id, or its beginning.")],
    force: Annotated[bool, typer.Option("--force", help="Also a release that failed a moment ago.")] = False,
    no_rollback: Annotated[
        bool,
        typer.Option("--no-rollback", help="Accept a schema that the prior release cannot read: there is no way back."),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; `deploy status` shows the progress.")
    ] = False,
) -> Outcome:
    """Deploy a release: preflight, warm, callback_probe, drain, cutover, bake, in this order. A breach rolls it back.

    Use it for every upgrade: no message waits longer than the hand-over, and no agent is interrupted.

    The daemon does the work, so this command may be ended at any time; it shows the progress. Exit code 0: the release
    serves and its bake is over.

    \b
    Example:
      clawbus deploy start 3f2a91c0b7de
    """
    from daemon.deploy.releases import Releases  # noqa: PLC0415
    from daemon.deploy.state_file import read_state  # noqa: PLC0415

    config = invocation.config
    releases = Releases(config.deploy.root)
    found, _ = releases.usable(release)
    state = read_state(config.data_dir)
    if state.serving is None:
        raise DeployRefusedError(
            "no slot serves yet.",
            hint=f"Begin with `clawbus release link blue {found.short}` and `systemctl enable --now clawbus@blue`.",
        )
    if state.active is None:
        _mention_missing_standby(invocation, other(state.serving))
        releases.link(other(state.serving), found)
    body = {"release": found.short, "force": force, "no_rollback": no_rollback}
    with invocation.client() as client:
        begun = client.deploy(body=body)
    identity = str(begun["deploy"]["id"])
    if detach:
        return Outcome(begun, None, (NextAction("clawbus deploy status", "how it stands"),))
    return _outcome(_follow(invocation, identity))


def _mention_missing_standby(invocation: Invocation, slot: str) -> None:
    """Warn that no daemon answers in the slot. Do not refuse: this is how a release that cannot start is replaced."""
    from daemon.deploy.standby_client import StandbyClient  # noqa: PLC0415

    config = invocation.config
    if StandbyClient(config.data_dir, slot).look() is None:
        progress(
            f"no standby answers in slot {slot}; the deploy waits up to {config.deploy.warm_limit_s:g} s for it.",
            f"Is it started? `systemctl enable --now clawbus@{slot}`; `clawbus deploy abort` ends the wait.",
        )


def _follow(invocation: Invocation, identity: str) -> SlotState:
    """Print each gate's change until the deploy is over. Raise SlotStateError."""
    from daemon.deploy.state_file import read_state  # noqa: PLC0415

    shown: dict[str, str] = {}
    while True:
        state = read_state(invocation.config.data_dir)
        deploy = state.deploy
        if deploy is None or deploy.id != identity:
            return state
        for gate in deploy.gates:
            if gate.status != "pending" and shown.get(gate.name) != gate.status:
                shown[gate.name] = gate.status
                progress(f"{gate.name}: {gate.status}" + (f" ({gate.reason})" if gate.reason else ""))
        if deploy.is_over:
            return state
        time.sleep(_LOOK_S)


def status(invocation: Invocation) -> Outcome:
    """Show which slot serves, and the state of the deploy under way or of the last one.

    Use it to see how far a deploy is, or why the last one went back.

    \b
    Example:
      clawbus deploy status
    """
    from daemon.deploy.state_file import read_state  # noqa: PLC0415

    state = read_state(invocation.config.data_dir)
    return Outcome(as_json(state), lambda console: _show(console, state))


def abort(invocation: Invocation) -> Outcome:
    """End a deploy before its cutover; the slot that serves goes on.

    Use it when what is deployed turns out to be wrong.

    \b
    Example:
      clawbus deploy abort
    """
    return _ask(invocation, "abort")


def rollback(invocation: Invocation) -> Outcome:
    """Go back to the prior release during the bake. Afterwards, deploy the prior release instead.

    Use it when the new release does harm that its gates do not see.

    \b
    Example:
      clawbus deploy rollback
    """
    return _ask(invocation, "rollback")


def _ask(invocation: Invocation, word: str) -> Outcome:
    from daemon.cli.operator import user  # noqa: PLC0415
    from daemon.deploy.releases import Releases  # noqa: PLC0415

    Releases(invocation.config.deploy.root)  # without releases there is nothing to end
    with invocation.client() as client:
        result = client.deploy(word, {"by": user()})
    deploy = result["deploy"]

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(
            console,
            f"deploy {deploy['id']}: {deploy['state']} ({deploy['reason'] or 'no reason'})",
            f"slot {result['serving']} serves release {(result['release'] or '-')[:12]}",
        )

    return Outcome(result, people, (NextAction("clawbus deploy verify-runtime", "whether all is well"),))


def verify_runtime(invocation: Invocation) -> Outcome:
    """Judge the deploy under way or the last one, and what must hold without one. Changes nothing.

    Use it in CI, in a timer and by hand. Exit code 0: pass, 1: fail or rolled back,
    75: not known yet (a deploy is under way, or something could not be checked).

    \b
    Example:
      clawbus deploy verify-runtime --json
    """
    from daemon.deploy import drift  # noqa: PLC0415
    from daemon.deploy.state_file import read_state  # noqa: PLC0415
    from daemon.workers.source import origin  # noqa: PLC0415

    state = read_state(invocation.config.data_dir)
    live: Mapping[str, Any] | None = None
    try:
        with invocation.client() as client:
            live = client.live()
    except (DaemonDownError, DaemonSilentError, RemoteError) as error:
        standing = [_condition("serving", "fail", str(error))]
    else:
        standing = [_condition("serving", *_serving(state, live)), _condition("owners", *_owners(live))]
    found = drift.report(invocation.config, origin(), live)
    standing.append(_condition("source", *_source(found)))
    bad = [one for one in standing if one["status"] != "pass"]
    word, code = runtime_verdict(state, [one["status"] for one in bad])
    result = _verdict_report(word, state, standing)

    def people(console: Console) -> None:
        from daemon.cli.present import say, say_wrapped  # noqa: PLC0415

        say(console, f"verdict: {word}")
        _show(console, state)
        for one in standing:
            say_wrapped(console, f"{one['condition']}  ", f"{one['status']} {one['reason']}".strip())

    return Outcome(result, people, _next(word, state), _verdict_problem(word, code, state, bad), exit_code=code or None)


def _verdict_report(word: str, state: SlotState, standing: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    deploy = state.deploy
    return {
        "verdict": word,
        "deploy_id": deploy.id if deploy is not None else None,
        "serving": {"slot": state.serving, "release": state.release, "epoch": state.epoch},
        "release": {"from": deploy.from_release, "to": deploy.to_release} if deploy is not None else None,
        "gates": [
            {"gate": one.name, "status": one.status, "since": one.since, "ended": one.ended, "measured": one.measured,
             "limit": one.limit, "reason": one.reason, "failure_action": FAILURE_ACTIONS[one.name]}
            for one in (deploy.gates if deploy is not None else ())
        ],
        "standing": standing,
    }  # fmt: skip


def _verdict_problem(word: str, code: int, state: SlotState, bad: Sequence[Mapping[str, str]]) -> Problem | None:
    """Return why the verdict is bad (`code` 1) or not there yet (75). `bad`: the conditions that do not hold."""
    if code == 1:
        breached = state.deploy is not None and state.deploy.state not in {"passed", "aborted"}
        reasons = [state.deploy.reason] if state.deploy is not None and breached else []
        why = "; ".join(one.rstrip(".") for one in [*reasons, *(one["reason"] for one in bad)] if one)
        fix = _fix(state) if breached else "Correct what is named: `clawbus status` and `clawbus source` show it."
        return Problem(_ROLLED_BACK if word == "rolled_back" else _FAILED, f"{word}: {why}.", fix)
    if word == UNKNOWN:
        why = "; ".join(one["reason"].rstrip(".") for one in bad)
        return Problem(
            SourceUnknownError.code, f"not everything could be checked: {why}.", SourceUnknownError.default_hint
        )
    if code:
        return Problem("DEPLOY_RUNNING", "a deploy is under way.", "Wait for its end: `clawbus deploy status`.")
    return None


def _condition(name: str, status: str, reason: str = "") -> dict[str, str]:
    return {"condition": name, "status": status, "reason": reason}


def _source(found: SourceReport) -> tuple[str, str]:
    """Return whether there is one source. A drift counts for more than what could not be checked beside it."""
    if found.drifts:
        return "fail", "; ".join(str(one) for one in found.drifts)
    return (UNKNOWN, "; ".join(found.unchecked)) if found.unchecked else ("pass", "")


def _serving(state: SlotState, live: Mapping[str, Any]) -> tuple[str, str]:
    """Compare the daemon that answers with the record."""
    said: Mapping[str, Any] = live.get("source") or {}
    if state.serving is not None and (said.get("slot"), said.get("release")) != (state.serving, state.release):
        return "fail", f"slot {said.get('slot')} answers, slot {state.serving} is recorded"
    return "pass", ""


def _owners(live: Mapping[str, Any]) -> tuple[str, str]:
    """Return whether the daemon is the only one of this host that owns its agents and channels."""
    worker: Mapping[str, Any] = live.get("worker") or {}
    names: list[str] | None = worker.get("duplicate_ids", [])
    if names is None:
        return UNKNOWN, "what other daemons of this host own could not be read"
    return ("fail", f"another daemon of this host owns {', '.join(names)}, too") if names else ("pass", "")


def _outcome(state: SlotState) -> Outcome:
    word, code = verdict(state)
    problem = None
    if code:
        reason = state.deploy.reason if state.deploy is not None else ""
        problem = Problem(
            _ROLLED_BACK if word == "rolled_back" else _FAILED, f"{word}: {reason.rstrip('.')}.", _fix(state)
        )
    return Outcome(
        as_json(state), lambda console: _show(console, state), _next(word, state), problem, exit_code=code or None
    )


def _fix(state: SlotState) -> str:
    if state.deploy is not None and state.deploy.state == "unhealthy":
        return "There is no way back: correct the cause, or deploy a corrected release."
    if state.deploy is not None and state.deploy.state == "aborted":
        return "Nothing is wrong: the release that served before goes on. Deploy again when you want to."
    return "Correct what is named; the release that served before goes on. Then make a release and deploy it."


def _next(word: str, state: SlotState) -> tuple[NextAction, ...]:
    if word == "hold":
        return (NextAction("clawbus deploy status", "how it stands"),)
    if word == "pass":
        return ()
    if word == UNKNOWN:
        return (NextAction("clawbus source", "what could not be checked"),)
    return (
        NextAction("clawbus deploy status", "which gate failed, and what was measured"),
        NextAction("clawbus source", "what differs from what was installed"),
    )


def _show(console: Console, state: SlotState) -> None:
    from daemon.cli.present import pairs, say, table  # noqa: PLC0415

    pairs(console, {"serving": state.serving, "release": (state.release or "-")[:12], "epoch": state.epoch})
    deploy = state.deploy
    if deploy is None:
        say(console, "no deploy yet")
        return
    say(console, f"deploy {deploy.id}: {deploy.from_release[:12]} -> {deploy.to_release[:12]}, {deploy.state}")
    rows = [(one.name, one.status, one.reason or _brief(one.measured)) for one in deploy.gates]
    console.print(table("", ("gate", "status", "what was seen"), rows))


def _brief(measured: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in measured.items() if isinstance(value, int | float | str))
