"""`clawbus reload`: the daemon reads its configuration again, and the exit code says whether all of it is in force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from daemon.cli.command import add
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.core.command_words import restart_command

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "reload", reload)


def reload(invocation: Invocation) -> Outcome:
    """Make the daemon read its configuration again: agents, routes and log level.

    Use it after an edit. It fails when the file cannot be used, and when tables have changed that need a restart.

    \b
    Example:
      clawbus reload
    """
    with invocation.client() as client:
        result = client.reload()
    left = ", ".join(result["restart_needed_for"])
    if not left:
        return Outcome(result, lambda console: _show(console, result))
    unit = invocation.unit
    command = restart_command(unit, None) if unit is not None else "clawbus serve"
    how = f"`{command}`" if unit is not None else f"Ctrl-C where it runs, then `{command}`"
    take = "takes" if len(result["restart_needed_for"]) == 1 else "take"
    problem = Problem(
        "RESTART_NEEDED",
        f"{left} changed too, and {take} effect only at a restart; agents and logs.level are in force.",
        f"Restart the daemon: {how}. No agent is ended.",
    )
    action = NextAction(command, "restart the daemon; agents keep running")
    return Outcome(result, lambda console: _show(console, result), (action,), problem)


def _show(console: Console, result: dict[str, Any]) -> None:
    from daemon.cli.present import say  # noqa: PLC0415

    say(console, f"reloaded: agents {', '.join(result['agents']) or 'none'}; log level {result['level']}")
    if result["agents"]:
        say(console, "containers that run keep their settings until they end: `clawbus session stop AGENT SESSION`")
