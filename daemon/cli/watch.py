"""`clawbus watch`: the daemon's events as they happen, from its control socket, one JSON value a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daemon.cli.command import add
from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.names import pair
from daemon.cli.operator import AgentFilter
from daemon.cli.output import progress
from daemon.core.errors import LostAnswerError

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "watch", watch)


def watch(
    invocation: Invocation,
    session: Annotated[str | None, typer.Option("--session", "-s", metavar="A/S", help="Only of this session.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", metavar="ID", help="Only of this message.")] = None,
    agent: AgentFilter = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--level", help="Only of this level and above.")
    ] = "debug",
) -> Outcome:
    """Follow the daemon's events as they happen, until Ctrl-C or the daemon's end.

    Use it to drive a program, or while trying something: it comes from the daemon itself, at once, with what agents say
    while they work (`*` a message, `...` progress, `|` standard error). What has happened before is in `clawbus logs`.
    With --json each event is one JSON value on a line.

    \b
    Example:
      clawbus watch --session echo/demo --json
    """
    query = {"level": level}
    if session is not None:
        query["session"] = "/".join(pair(session, None))
    if message is not None:
        query["message"] = message
    if agent is not None:
        query["agent"] = agent
    console = None if invocation.json else invocation.console()
    begun = False
    try:
        with invocation.client() as client:
            for event in client.watch(query):
                begun = True
                _tell(invocation, console, event)
    except LostAnswerError as error:
        if not begun:
            raise
        progress(error)
        return Outcome(silent=True, exit_code=1)
    return Outcome(silent=True)


def _tell(invocation: Invocation, console: Console | None, event: dict[str, Any]) -> None:
    if console is None:
        invocation.emit(event)
        return
    if event == {"event": "watching"}:  # for programs: from here on nothing is missed
        return
    from daemon.cli.event_lines import print_events  # noqa: PLC0415

    print_events(console, [event])
