"""`clawbus deploy verify-runtime`: one verdict on the last deploy and on the conditions that must always hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.deploy_report import FAILED, ROLLED_BACK, next_steps, show_deploy, way_on
from daemon.cli.envelope import Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.cli.output import progress
from daemon.core.clock import SystemClock
from daemon.core.command_words import start_command
from daemon.core.deploy_errors import SourceUnknownError
from daemon.core.deploy_verdict import runtime_verdict, without_daemon
from daemon.core.errors import DaemonDownError, DaemonSilentError, DataFolderLockedError, RemoteError
from daemon.core.slots import FAILURE_ACTIONS, UNKNOWN, Deploy, SlotState

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.deploy.drift import SourceReport


def verify_runtime(
    invocation: Invocation,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also send messages through a daemon and agents started for this check."),
    ] = False,
) -> Outcome:
    """Judge the deploy under way or the last one, and the conditions that must always hold. Change nothing that serves.

    Use it in CI, in a timer and by hand. Exit code 0: pass, 1: fail or rolled back,
    75: not known yet (a deploy is under way, or something could not be checked).

    \b
    Example:
      clawbus deploy verify-runtime --json
      clawbus deploy verify-runtime --probe
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
        if state.deploy is not None:
            state = replace(state, deploy=without_daemon(state.deploy, SystemClock().now_ms()))
    else:
        standing = [_condition("serving", *_serving(state, live)), _condition("owners", *_owners(live))]
    found = drift.report(invocation.config, origin(), live)
    standing.append(_condition("source", *_source(found)))
    if probe and state.active is None:  # a deploy under way probes by itself, in a gate
        standing.append(_condition("callback_probe", *_probed(invocation, live)))
    bad = [one for one in standing if one["status"] != "pass"]
    word, code = runtime_verdict(state, [one["status"] for one in bad])
    result = _verdict_report(word, state, standing)

    def people(console: Console) -> None:
        from daemon.cli.present import say, say_wrapped  # noqa: PLC0415

        say(console, f"verdict: {word}")
        show_deploy(console, state)
        for one in standing:
            say_wrapped(console, f"{one['condition']}  ", f"{one['status']} {one['reason']}".strip())

    return Outcome(
        result, people, next_steps(word, state), _verdict_problem(word, code, state, bad, live), exit_code=code or None
    )


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


def _verdict_problem(
    word: str, code: int, state: SlotState, bad: Sequence[Mapping[str, str]], live: Mapping[str, Any] | None
) -> Problem | None:
    """Return why the verdict is bad (`code` 1) or not known yet (75); None if all is well.

    `bad`: the conditions that failed or could not be checked. `live`: what the daemon says, None if none answers.
    """
    if code == 1:
        breached = state.deploy is not None and state.deploy.state not in {"passed", "aborted"}
        reasons = _reasons(state.deploy) if state.deploy is not None and breached else []
        why = "; ".join(one.rstrip(".") for one in [*reasons, *(one["reason"] for one in bad)] if one)
        if live is None:
            slot = state.serving  # `systemctl restart` also starts a unit that is not running
            start = start_command(None) if slot is None else f"systemctl restart clawbus@{slot}"
            fix = f"Start the daemon with `{start}`; `clawbus logs -n 50` says why it ended."
        elif breached:
            fix = way_on(state)
        else:
            fix = "Correct what is named; `clawbus status` and `clawbus source` show more."
        return Problem(ROLLED_BACK if word == "rolled_back" else FAILED, f"{word}: {why}.", fix)
    if word == UNKNOWN:
        why = "; ".join(one["reason"].rstrip(".") for one in bad)
        return Problem(
            SourceUnknownError.code, f"not everything could be checked: {why}.", SourceUnknownError.default_hint
        )
    if code:
        return Problem("DEPLOY_RUNNING", "a deploy is under way.", "Wait for its end: `clawbus deploy status`.")
    return None


def _reasons(deploy: Deploy) -> list[str]:
    """Return why the deploy did not pass: its own reason, and those of failed gates that were never ended."""
    left = [f"{one.name}: {one.reason}" for one in deploy.gates if one.status == "fail" and one.ended is None]
    return [deploy.reason, *left]


def _condition(name: str, status: str, reason: str = "") -> dict[str, str]:
    return {"condition": name, "status": status, "reason": reason}


def _probed(invocation: Invocation, live: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return whether the release that serves answers each message once, even if its daemon and agents are killed meanwhile."""
    from daemon.api.client import ControlClient  # noqa: PLC0415
    from daemon.deploy.standing_probe import probe_serving  # noqa: PLC0415
    from daemon.deploy.state_file import FOLDER  # noqa: PLC0415
    from daemon.store.folder_lock import lock_folder  # noqa: PLC0415

    worker: Mapping[str, Any] = (live or {}).get("worker") or {}
    if not worker:
        return UNKNOWN, "no daemon says which release serves"
    folder = invocation.config.data_dir / FOLDER
    if not os.access(folder, os.W_OK):
        return UNKNOWN, f"the callback probe cannot write in {folder}"
    try:
        # The folder itself is locked: a lock file that root made would keep out the daemon's user.
        lock = lock_folder(folder)
    except DataFolderLockedError:
        return UNKNOWN, "another process is probing this installation"
    except OSError as error:
        return UNKNOWN, f"the callback probe cannot lock {folder}: {error}"
    progress("probing: a daemon and two agents of the release that serves are started, killed and started again")
    try:
        return probe_serving(invocation.config, Path(worker["runtime"]["prefix"]), ControlClient)
    finally:
        os.close(lock)


def _source(found: SourceReport) -> tuple[str, str]:
    """Return whether everything comes from one source. A drift counts even if something else could not be checked."""
    if found.drifts:
        return "fail", "; ".join(str(one) for one in found.drifts)
    return (UNKNOWN, "; ".join(found.unchecked)) if found.unchecked else ("pass", "")


def _serving(state: SlotState, live: Mapping[str, Any]) -> tuple[str, str]:
    """Compare the slot and release of the daemon that answers with those on record."""
    said: Mapping[str, Any] = live.get("source") or {}
    found, recorded = (said.get("slot"), said.get("release") or ""), (state.serving, state.release or "")
    if state.serving is not None and found != recorded:
        return "fail", f"{_named(*found)} answers, {_named(*recorded)} is recorded"
    return "pass", ""


def _named(slot: str | None, release: str) -> str:
    return f"{f'slot {slot}' if slot else 'a daemon without a slot'} with {f'release {release[:12]}' if release else 'no release'}"


def _owners(live: Mapping[str, Any]) -> tuple[str, str]:
    """Return whether the daemon is the only one of this host that owns its agents and channels."""
    worker: Mapping[str, Any] = live.get("worker") or {}
    names: list[str] | None = worker.get("duplicate_ids", [])
    if names is None:
        return UNKNOWN, "what other daemons of this host own could not be read"
    return ("fail", f"another daemon of this host owns {', '.join(names)}, too") if names else ("pass", "")
