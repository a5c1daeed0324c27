"""`clawbus deploy start|status|abort|rollback|verify-runtime`: one release takes the place of another, through gates."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from daemon.cli.command import add, add_group
from daemon.cli.daemon_status import daemon_status
from daemon.cli.deploy_report import FAILED, ROLLED_BACK, next_steps, show_deploy, way_on, without_answer
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.cli.output import progress
from daemon.cli.verify_runtime import verify_runtime
from daemon.core.clock import SystemClock
from daemon.core.daemon_status import DaemonState
from daemon.core.deploy_errors import DeployFailedError, DeployRefusedError
from daemon.core.deploy_verdict import verdict, without_daemon
from daemon.core.errors import DaemonDownError
from daemon.core.slot_steps import refuse_deploy
from daemon.core.slots import SlotState, as_json, deploy_on_record, other

if TYPE_CHECKING:
    from rich.console import Console


_LOOK_S: Final = 0.2


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
    with releases.alone(), invocation.client() as client:
        found, manifest = releases.usable(release)
        state = read_state(config.data_dir)
        if state.serving is None:
            raise DeployRefusedError(
                "no slot serves yet.",
                hint=f"Begin with `clawbus release link blue {found.short}` and `systemctl enable --now clawbus@blue`.",
            )
        client.live()  # what is refused, and a daemon that is down, leave the standby as it is
        refuse_deploy(state, manifest.release, SystemClock().now_ms(), force=force)
        _mention_missing_standby(invocation, other(state.serving))
        releases.link(other(state.serving), found)
        begun = client.deploy(body={"release": found.short, "force": force, "no_rollback": no_rollback})
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
    """Print each gate's change until the deploy is over. Raise SlotStateError, and DeployFailedError where its end is unknown."""
    from daemon.deploy.state_file import read_state  # noqa: PLC0415

    shown: dict[str, str] = {}
    since = time.monotonic()
    while True:
        state = read_state(invocation.config.data_dir)
        deploy = state.deploy
        if deploy is None or deploy.id != identity:
            earlier = deploy_on_record(state, identity)
            if earlier is None:
                raise DeployFailedError(
                    f"how deploy {identity} ended is no longer on record.",
                    hint="`clawbus deploy verify-runtime` judges what serves now.",
                )
            return replace(state, deploy=earlier)
        for gate in deploy.gates:
            if gate.status != "pending" and shown.get(gate.name) != gate.status:
                shown[gate.name] = gate.status
                progress(f"{gate.name}: {gate.status}" + (f" ({gate.reason})" if gate.reason else ""))
        rollback = deploy.gate("rollback")
        returns = deploy.is_over and rollback.status == "running"  # the prior release's daemon is not ready yet
        since = since if returns else time.monotonic()
        if deploy.is_over and not (returns and time.monotonic() - since < float(rollback.limit.get("limit_s", 0))):
            return state
        time.sleep(_LOOK_S)


def status(invocation: Invocation) -> Outcome:
    """Show which slot serves, and the state of the deploy under way or of the last one.

    Use it to see how far a deploy is, or why the last one went back.

    \b
    Example:
      clawbus deploy status
    """
    from daemon.deploy.releases import Releases  # noqa: PLC0415
    from daemon.deploy.state_file import read_state  # noqa: PLC0415

    state = read_state(invocation.config.data_dir)
    if state.serving is None:
        Releases(invocation.config.deploy.root)  # says what to set where slots were never used
    steps: tuple[NextAction, ...] = ()
    goes_on = state.deploy is not None and any(one.status == "running" for one in state.deploy.gates)
    if state.deploy is not None and goes_on and daemon_status(invocation).state is not DaemonState.UP:
        state = replace(state, deploy=without_daemon(state.deploy, SystemClock().now_ms()))
        steps = without_answer(state)
    return Outcome(as_json(state), lambda console: show_deploy(console, state), steps)


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
    try:
        with invocation.client() as client:
            result = client.deploy(word, {"by": user()})
    except DaemonDownError:
        if word != "rollback":
            raise
        result = _rollback_by_standby(invocation, user())
    deploy = result["deploy"]

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(
            console,
            f"deploy {deploy['id']}: {deploy['state']} ({deploy['reason'] or 'no reason'})",
            f"slot {result['serving']} serves release {(result['release'] or '-')[:12]}",
        )

    return Outcome(result, people, (NextAction("clawbus deploy verify-runtime", "whether all is well"),))


def _rollback_by_standby(invocation: Invocation, by: str) -> dict[str, Any]:
    """Have the prior slot's standby go back, where the new daemon is gone. Raise DaemonDownError where that is impossible."""
    from daemon.deploy.standby_client import StandbyClient  # noqa: PLC0415
    from daemon.deploy.state_file import read_state  # noqa: PLC0415

    deploy = read_state(invocation.config.data_dir).active
    if deploy is None or not deploy.is_cut_over:
        raise DaemonDownError("no daemon answers, and no deploy is in its bake.")
    said = StandbyClient(invocation.config.data_dir, deploy.from_slot).rollback(by)
    if not said.get("ok"):
        raise DaemonDownError(f"no daemon answers, and slot {deploy.from_slot} does not go back: {said.get('reason')}.")
    return as_json(_follow(invocation, deploy.id))


def _outcome(state: SlotState) -> Outcome:
    word, code = verdict(state)
    problem = None
    if code:
        reason = state.deploy.reason if state.deploy is not None else ""
        problem = Problem(
            ROLLED_BACK if word == "rolled_back" else FAILED, f"{word}: {reason.rstrip('.')}.", way_on(state)
        )
    return Outcome(
        as_json(state),
        lambda console: show_deploy(console, state),
        next_steps(word, state),
        problem,
        exit_code=code or None,
    )
