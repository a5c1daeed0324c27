"""How `clawbus deploy` shows a deploy, and what it advises after one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from daemon.cli.envelope import NextAction
from daemon.core.slots import UNKNOWN, SlotState

if TYPE_CHECKING:
    from rich.console import Console

ROLLED_BACK: Final = "DEPLOY_ROLLED_BACK"
FAILED: Final = "DEPLOY_FAILED"


def way_on(state: SlotState) -> str:
    """Return what to do after a deploy that did not pass."""
    deploy = state.deploy
    if deploy is not None and any(one.name == "rollback" and one.status in ("running", "fail") for one in deploy.gates):
        return (
            f"Start the prior release's slot if it is not started (`systemctl start clawbus@{deploy.from_slot}`); then"
            + (" deploy the prior release." if deploy.state == "unhealthy" else " `clawbus deploy verify-runtime`.")
        )
    if deploy is not None and deploy.state == "unhealthy":
        return "The prior release cannot be restored: correct the cause, or deploy a corrected release."
    if deploy is not None and not deploy.is_over:
        return f"Start the daemon that is to go on with it: `systemctl start clawbus@{state.serving}`."
    if deploy is not None and deploy.state == "aborted":
        return "Nothing is wrong: the release that served before goes on. Deploy again when you want to."
    return "Correct what is named; the release that served before goes on. Then make a release and deploy it."


def next_steps(word: str, state: SlotState) -> tuple[NextAction, ...]:
    """Return what to look at after this verdict."""
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


def without_answer(state: SlotState) -> tuple[NextAction, ...]:
    """Return what to do about a deploy while no daemon answers: none carries it on."""
    restart = f"systemctl restart clawbus@{state.serving}"  # also starts a unit that is not running
    return (
        NextAction(restart, "no daemon answers: the deploy stands still until this one does"),
        NextAction("clawbus logs -n 50", "why it ended"),
    )


def show_deploy(console: Console, state: SlotState) -> None:
    """Print which slot serves, and the gates of the last deploy."""
    from daemon.cli.present import pairs, say, table  # noqa: PLC0415

    pairs(console, {"serving": state.serving, "release": (state.release or "-")[:12], "epoch": state.epoch})
    deploy = state.deploy
    if deploy is None:
        say(console, "no deploy yet")
        return
    title = f"deploy {deploy.id}: {deploy.from_release[:12]} -> {deploy.to_release[:12]}, {deploy.state}"
    rows = [(one.name, one.status, one.reason or _brief(one.measured)) for one in deploy.gates]
    console.print(table(title, ("gate", "status", "what was seen"), rows))


def _brief(measured: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in measured.items() if isinstance(value, int | float | str))
