"""`clawbus session list`: every session on one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.operator import AgentFilter, SinceFilter, known_agent, since_of
from daemon.core.clock import SystemClock
from daemon.core.command_words import two_words
from daemon.core.printable import counted
from daemon.core.session_state import SessionState

if TYPE_CHECKING:
    from rich.console import Console


def sessions(
    invocation: Invocation,
    agent: AgentFilter = None,
    state: Annotated[SessionState | None, typer.Option("--state", help="Only those in this state.")] = None,
    since: SinceFilter = None,
) -> Outcome:
    """List the sessions with their state, what is unfinished in each, and what each works on or waits for.

    Use it to see who works on what, and since when; then `session show`. It works from the files when the daemon is down
    or hangs. --since keeps the sessions whose files have changed since then.

    \b
    Example:
      clawbus session list --agent echo --state working
      clawbus session list --since 1h
    """
    from daemon.cli.at_work import with_work  # noqa: PLC0415
    from daemon.cli.daemon_status import agents_of, daemon_or_files  # noqa: PLC0415

    def look() -> list[dict[str, Any]]:
        from daemon.inspect.session_report import sessions_report  # noqa: PLC0415

        return sessions_report(invocation.place.data_dir, SystemClock(), agents=agents_of(invocation))

    wanted = known_agent(invocation, agent)
    every, source = daemon_or_files(invocation, lambda client: client.sessions(), look)
    earliest = since_of(since, SystemClock().now_ms())
    chosen = [
        one
        for one in every
        if wanted in (None, one["agent"])
        and state in (None, one["state"])
        and (earliest is None or (one.get("changed_at") or 0) >= earliest)
    ]
    found = with_work(invocation, chosen)
    steps = tuple(
        NextAction(f"clawbus session show {two_words(one['agent'], one['session'])}", "why it needs attention")
        for one in [one for one in found if one.get("explanation")][:1]  # the first is enough
    )
    return Outcome({"source": source, "sessions": found}, lambda console: _show(console, found, source), steps)


def _show(console: Console, found: list[dict[str, Any]], source: str) -> None:
    from daemon.cli.doing import sessions_table  # noqa: PLC0415
    from daemon.cli.present import say  # noqa: PLC0415

    console.print(sessions_table(counted(len(found), "session"), found, SystemClock().now_ms()))
    if source == "files":
        say(console, "(the daemon does not answer: read from the files)")
