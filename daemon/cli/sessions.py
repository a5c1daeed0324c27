"""`clawbus session list`: every session on one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daemon.cli.command import Invocation
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.operator import AgentFilter, known_agent
from daemon.core.clock import SystemClock
from daemon.core.command_words import two_words

if TYPE_CHECKING:
    from rich.console import Console


State = Literal["idle", "scheduled", "waiting", "starting", "running", "backing_off", "quarantined"]


def sessions(
    invocation: Invocation,
    agent: AgentFilter = None,
    state: Annotated[State | None, typer.Option("--state", help="Only those in this state.")] = None,
) -> Outcome:
    """List the sessions with their state and what is unfinished in each.

    Use it to find the session you mean, then `session show`. It works from the files when the daemon is down or hangs.

    \b
    Example:
      clawbus session list --agent echo --state waiting
    """
    from daemon.cli.daemon_status import daemon_or_files  # noqa: PLC0415

    def look() -> list[dict[str, Any]]:
        from daemon.inspect.reports import sessions_report  # noqa: PLC0415

        return sessions_report(invocation.config.data_dir, SystemClock())

    wanted = known_agent(invocation, agent)
    every, source = daemon_or_files(invocation, lambda client: client.sessions(), look)
    found = [one for one in every if wanted in (None, one["agent"]) and state in (None, one["state"])]
    steps = tuple(
        NextAction(f"clawbus session show {two_words(one['agent'], one['session'])}", "why it needs attention")
        for one in [one for one in found if one.get("explanation")][:1]
    )
    return Outcome({"source": source, "sessions": found}, lambda console: _show(console, found, source), steps)


def _show(console: Console, found: list[dict[str, Any]], source: str) -> None:
    from daemon.cli.present import age, say, table  # noqa: PLC0415

    now = SystemClock().now_ms()
    rows = [
        (
            f"{one['agent']}/{one['session']}",
            one["state"],
            one["pending"],
            age(now - one["oldest_pending_at"]) if one["oldest_pending_at"] is not None else "-",
            one["undelivered"],
            (one["failed"] or 0) + (one["dead"] or 0),
            one["explanation"] or "",
        )
        for one in found
    ]
    columns = ("session", "state", "unfinished", "oldest", "undelivered", "dead letters", "why")
    console.print(table(f"{len(found)} sessions", columns, rows))
    if source == "files":
        say(console, "(the daemon does not answer: read from the files)")
