"""`clawbus top`: what the bus is doing now, redrawn every second. Read-only."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from daemon.cli.command import add
from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.status import facts_of, read_status
from daemon.core.clock import SystemClock
from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError
from daemon.core.printable import counted
from schema.errors import ClawbusError

if TYPE_CHECKING:
    from rich.console import Group

# Sessions that work or need attention come first.
_RANK: Final = ("quarantined", "backing_off", "working", "waiting", "starting", "resting", "scheduled", "idle")


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "top", top)


def top(
    invocation: Invocation,
    interval: Annotated[
        float, typer.Option("--interval", min=0.2, max=60.0, metavar="SECONDS", help="How often to look.")
    ] = 1.0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many sessions.")] = 20,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit: for pipes. Implied by --json.")] = False,
) -> Outcome:
    """Show the daemon, the queues and the busiest sessions with what each works on, every second until q or Ctrl-C.

    Use it while something happens: a deployment, a backlog that is worked off. It goes on from the files when the daemon
    goes down, and says so.

    \b
    Example:
      clawbus top
    """
    if once or invocation.json or not sys.stdout.isatty():
        frame = _look(invocation, limit)
        return Outcome(frame, lambda console: console.print(_draw(frame)))
    from rich.live import Live  # noqa: PLC0415

    from daemon.cli.keys import quit_key  # noqa: PLC0415

    try:
        with (
            quit_key() as pressed,
            Live(
                _draw(_look(invocation, limit)), console=invocation.console(), screen=True, auto_refresh=False
            ) as live,
        ):
            while not pressed(interval):
                live.update(_draw(_look(invocation, limit)), refresh=True)
    except KeyboardInterrupt:
        pass
    return Outcome(silent=True)


def _look(invocation: Invocation, limit: int) -> dict[str, Any]:
    """Return {source, status, sessions}. If they cannot be read, `error` says why."""
    from daemon.cli.at_work import with_work  # noqa: PLC0415

    report, source = read_status(invocation)
    try:
        with invocation.client(answer_s=5.0) as client:
            sessions = client.sessions()
    except (DaemonDownError, DaemonSilentError, RemoteError):
        sessions = _from_files(invocation)
    shown = with_work(invocation, sorted(sessions, key=_rank)[:limit])
    return {"source": source, "at": SystemClock().now_ms(), "status": report, "sessions": shown, "total": len(sessions)}


def _from_files(invocation: Invocation) -> list[dict[str, Any]]:
    from daemon.cli.daemon_status import agents_of  # noqa: PLC0415
    from daemon.inspect.session_report import sessions_report  # noqa: PLC0415

    try:
        return sessions_report(invocation.place.data_dir, SystemClock(), agents=agents_of(invocation))
    except ClawbusError:
        return []  # without a registry there is the status alone, which says so


def _rank(session: Mapping[str, Any]) -> tuple[int, int, str, str]:
    state = session["state"]
    place = _RANK.index(state) if state in _RANK else len(_RANK)
    return place, -(session["pending"] or 0), session["agent"], session["session"]


def _draw(frame: Mapping[str, Any]) -> Group:
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from daemon.cli.doing import sessions_table  # noqa: PLC0415
    from daemon.cli.present import when  # noqa: PLC0415
    from daemon.core.printable import one_line  # noqa: PLC0415

    now = frame["at"]
    facts = facts_of(frame["status"], frame["source"])
    width = max(len(name) for name in facts)
    lines = "\n".join(f"{one_line(name):<{width}}  {one_line(value)}" for name, value in facts.items())
    rows: list[dict[str, Any]] = frame["sessions"]
    more = f", {frame['total'] - len(rows)} more" if frame["total"] > len(rows) else ""
    heading = Text(f"clawbus top  {when(now, now).partition(' (')[0]}", "bold")
    return Group(heading, Text(lines), sessions_table(f"{counted(len(rows), 'session')}{more}", rows, now))
