"""`clawbus channel list`: the configured channels, whether they work, and what waits on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock
from daemon.core.daemon_status import DaemonState
from daemon.core.printable import counted

if TYPE_CHECKING:
    from rich.console import Console

_WHAT: Final = "channel "  # how the daemon's `degraded` names one


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="The channels of the configuration.\n\n\b\nExample:\n  clawbus channel list", rich_markup_mode=None
    )
    add(group, "list", list_, path="channel")
    add_group(app, group, "channel")


def list_(invocation: Invocation) -> Outcome:
    """List the channels that are configured or have answers: type, whether they work, and what waits on each.

    Use it when answers do not arrive. Only a running daemon knows whether a channel works. The queues are read from the
    files.

    \b
    Example:
      clawbus channel list
    """
    from daemon.cli.daemon_status import daemon_status  # noqa: PLC0415
    from daemon.inspect.overview import channels_report  # noqa: PLC0415

    status = daemon_status(invocation)
    degraded: dict[str, str] | None = None
    if status.live is not None:
        faults: list[Mapping[str, Any]] = status.live.get("degraded") or []
        degraded = {
            str(one["what"]).removeprefix(_WHAT): str(one["why"])
            for one in faults
            if str(one["what"]).startswith(_WHAT)
        }
    report = channels_report(invocation.config, SystemClock(), degraded)
    result = {"source": "files", "daemon": status.state.value, **report}
    steps: tuple[NextAction, ...] = ()
    if any(one["retrying"] for one in report["channels"]):
        steps += (NextAction("clawbus delivery list", "the answers that are tried again"),)
    if any(one["dead"] for one in report["channels"]):
        steps += (NextAction("clawbus dead list", "the answers that were given up"),)
    if any(one["state"] in ("degraded", "missing") for one in report["channels"]):
        steps += (NextAction("clawbus doctor", "what is wrong, and what repairs it"),)
    return Outcome(result, lambda console: _show(console, result), steps)


def _show(console: Console, result: Mapping[str, Any]) -> None:
    from daemon.cli.present import age, say, table  # noqa: PLC0415

    now = SystemClock().now_ms()
    rows = [
        (
            one["channel"],
            one["type"],
            one["state"],
            one["undelivered"],
            age(max(0, now - one["oldest_undelivered_at"])) if one["oldest_undelivered_at"] is not None else None,
            one["scheduled"],
            one["dead"],
            one["why"],
        )
        for one in result["channels"]
    ]
    columns = ("channel", "type", "state", "answers", "oldest", "later", "dead", "why")
    console.print(table(f"{counted(len(rows), 'channel')}", columns, rows))
    if result["daemon"] != DaemonState.UP.value:
        say(console, f"the daemon is {result['daemon']}: whether channels work is not known")
    if result["not_examined"]:
        say(console, f"{counted(result['not_examined'], 'session was', 'sessions were')} not examined (no time)")
    say(console, *(f"{one['agent']}/{one['session']} could not be read: {one['error']}" for one in result["errors"]))
