"""`clawbus logs`: the daemon's events from its log file or from the journal, formatted for people or raw."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daemon.cli.command import add
from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.log_files import follow as follow_file
from daemon.cli.log_files import last_lines
from daemon.cli.names import pair
from daemon.cli.operator import AgentFilter, SinceFilter, known_agent, since_of
from daemon.cli.output import Output
from daemon.core.clock import SystemClock
from daemon.core.errors import DataFolderError, UnknownSessionError
from daemon.logs.filter import EventFilter, parse_event
from schema.ids import session_path

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "logs", logs)


def logs(
    invocation: Invocation,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new lines (JSON: one event a line).")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=100_000, help="How many events, the newest.")] = 50,
    session: Annotated[str | None, typer.Option("--session", "-s", metavar="A/S", help="Only of this session.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", metavar="ID", help="Only of this message.")] = None,
    agent: AgentFilter = None,
    since: SinceFilter = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--level", help="Only of this level and above.")
    ] = "debug",
    event: Annotated[
        list[str] | None,
        typer.Option(
            "--event", "-e", metavar="NAME", help="Only events of this name, such as container_*. Repeatable."
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print the lines unchanged.")] = False,
    journal: Annotated[bool, typer.Option("--journal", help="From the systemd journal instead of the file.")] = False,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit", metavar="NAME", help="With --journal: the service. Default: this folder's, or both slots'."
        ),
    ] = None,
) -> Outcome:
    """Show what the daemon logged, from its log file or the journal; with --follow also what it logs from now on.

    Use it with --session or --message to follow one conversation. It reads files, so the daemon need not run.

    \b
    Example:
      clawbus logs -f --session echo/demo --level warning
      clawbus logs --agent echo --since 2h
      clawbus logs --event 'container_*' --event spawn_failed
    """
    path = invocation.place.data_dir / "logs" / "clawbus.log"
    named = pair(session, None) if session is not None else None
    begun = since_of(since, SystemClock().now_ms())
    known_agent(invocation, agent)
    events = tuple(event or ())
    wanted = _Wanted(EventFilter("/".join(named) if named is not None else None, message, level, agent, begun, events))
    try:
        services = (unit or _services(invocation)) if journal else None
        found = _from_journal(services, lines, wanted) if services else last_lines(path, lines, wanted)
        if follow:
            _follow(invocation, found, _new_lines(path, services), wanted, raw=raw)
    except PermissionError as error:
        raise DataFolderError(f"{path} may not be read.", hint="Run this as the daemon's user.") from error
    if not found:
        _refuse_unknown_session(invocation, named)
        _refuse_unknown_events(events)
    if raw:
        for line in found:
            _write_raw(line)
        return Outcome(silent=True)
    parsed = [parse_event(line) for line in found]
    place = {"source": "journal", "unit": services} if services else {"source": "files", "file": str(path)}
    return Outcome({**place, "events": parsed}, lambda console: _print(console, parsed))


def _refuse_unknown_session(invocation: Invocation, named: tuple[str, str] | None) -> None:
    """Raise UnknownSessionError for a session without a folder, which the log does not mention."""
    if named is not None and not session_path(invocation.place.data_dir / "sessions", *named).is_dir():
        raise UnknownSessionError(f"there is no session {'/'.join(named)}, and the log does not mention it.")


def _services(invocation: Invocation) -> str:
    """Return the unit of the data folder's daemon, as journalctl takes it: both slots where slots are used."""
    found = invocation.unit or "clawbus"
    return f"{found.partition('@')[0]}@*" if "@" in found else found


def _refuse_unknown_events(patterns: tuple[str, ...]) -> None:
    """Raise a usage error for a pattern that matches no event of the daemon or a runner."""
    if not patterns:
        return
    from daemon.cli.show_help import log_events  # noqa: PLC0415

    known = list(log_events())
    for one in patterns:
        if not any(fnmatchcase(name, one) for name in known):
            close = get_close_matches(one, known)
            meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else " docs/log-events.md lists them."
            raise typer.BadParameter(f"there is no log event {one!r}.{meant}")


class _Wanted:
    """Decides whether a line passes the filter. A line that is not an event passes only if there is no filter."""

    def __init__(self, wanted: EventFilter) -> None:
        self._wanted = wanted

    def __call__(self, line: bytes) -> bool:
        return self._wanted.everything or self._wanted.wants(parse_event(line))


def _from_journal(unit: str, count: int, wanted: _Wanted) -> list[bytes]:
    from daemon.cli.journal import last_entries  # noqa: PLC0415

    return last_entries(unit, count, wanted)


def _new_lines(path: Path, unit: str | None) -> Iterator[bytes]:
    """Yield lines as they are written: of the file, or of a unit's journal."""
    if unit is None:
        return follow_file(path)
    from daemon.cli.journal import follow_entries  # noqa: PLC0415

    return follow_entries(unit)


def _follow(invocation: Invocation, found: list[bytes], coming: Iterator[bytes], wanted: _Wanted, *, raw: bool) -> None:
    """Print until interrupted."""
    console = None if invocation.json or raw else invocation.console()
    for source in (found, (line for line in coming if wanted(line))):
        for line in source:
            if raw:
                _write_raw(line)
            elif console is None:
                invocation.emit(parse_event(line))
            else:
                _print(console, [parse_event(line)])


def _write_raw(line: bytes) -> None:
    """Print the line unchanged. The file contains no control bytes, because its writer escapes them."""
    output = Output()
    output.write_bytes(line + b"\n")
    output.flush()


def _print(console: Console, events: list[dict[str, Any]]) -> None:
    from daemon.cli.event_lines import print_events  # noqa: PLC0415

    print_events(console, events)
