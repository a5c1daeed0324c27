"""`clawbus logs`: the daemon's events, for people or as they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

import typer

from daemon.cli.command import Invocation, add
from daemon.cli.envelope import Outcome
from daemon.cli.log_files import follow as follow_file
from daemon.cli.log_files import last_lines
from daemon.cli.names import pair
from daemon.errors import DataFolderError, UnknownSessionError
from schema.instants import from_text

if TYPE_CHECKING:
    from rich.console import Console

_LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
)
_STYLES: Final[Mapping[str, str]] = MappingProxyType(
    {"debug": "dim", "warning": "yellow", "error": "red", "critical": "bold red"}
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "logs", logs)


def logs(
    invocation: Invocation,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is logged (JSON: one event a line).")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=100_000, help="The last so many events.")] = 50,
    session: Annotated[str | None, typer.Option("--session", metavar="A/S", help="Only of this session.")] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--level", help="Only of this level and above.")
    ] = "debug",
    raw: Annotated[bool, typer.Option("--raw", help="The lines as they are in the file.")] = False,
) -> Outcome:
    """Show what the daemon logged, from its log file; with --follow also what it logs from now on.

    Use it with --session to see one session's story. It reads the file, so the daemon need not run.

    \b
    Example:
      clawbus logs -f --session echo/demo --level warning
    """
    path = invocation.config.data_dir / "logs" / "clawbus.log"
    named = pair(session, None) if session is not None else None
    wanted = _Filter("/".join(named) if named is not None else None, _LEVELS[level])
    try:
        found = last_lines(path, lines, wanted)
        if follow:
            _follow(invocation, found, follow_file(path), wanted, raw=raw)
    except PermissionError as error:
        raise DataFolderError(f"{path} may not be read.", hint="Run this as the daemon's user.") from error
    if named is not None and not found and not (invocation.config.data_dir / "sessions" / Path(*named)).is_dir():
        raise UnknownSessionError(f"there is no session {'/'.join(named)}, and the log has nothing of one.")
    if raw:
        for line in found:
            _write_raw(line)
        return Outcome(silent=True)
    events = [_parse(line) for line in found]
    return Outcome({"source": "files", "file": str(path), "events": events}, lambda console: _print(console, events))


class _Filter:
    """Whether a line is wanted. A line that is no event is wanted where nothing is asked for."""

    def __init__(self, session: str | None, level: int) -> None:
        self._session = session
        self._level = level

    def __call__(self, line: bytes) -> bool:
        if self._session is None and self._level <= _LEVELS["debug"]:
            return True
        event = _parse(line)
        if _LEVELS.get(str(event.get("level")), 0) < self._level:
            return False
        return self._session is None or f"{event.get('agent')}/{event.get('session')}" == self._session


def _follow(invocation: Invocation, found: list[bytes], coming: Any, wanted: _Filter, *, raw: bool) -> None:
    """Print until interrupted."""
    console = None if invocation.json or raw else invocation.console()
    for source in (found, (line for line in coming if wanted(line))):
        for line in source:
            if raw:
                _write_raw(line)
            elif console is None:
                invocation.emit(_parse(line))
            else:
                _print(console, [_parse(line)])


def _write_raw(line: bytes) -> None:
    """As it is in the file, which holds no control bytes: what writes it escapes them."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.flush()


def _parse(line: bytes) -> dict[str, Any]:
    text = line.decode("utf-8", "replace")
    try:
        event = cast("object", json.loads(text))
    except (ValueError, RecursionError):
        return {"event": text}
    return cast("dict[str, Any]", event) if isinstance(event, dict) else {"event": text}


def _print(console: Console, events: list[dict[str, Any]]) -> None:
    from rich.text import Text  # noqa: PLC0415

    from daemon.cli.present import brief, clean  # noqa: PLC0415

    for event in events:
        level = str(event.get("level", ""))
        rest = {key: value for key, value in event.items() if key not in ("timestamp", "level", "event", "traceback")}
        line = Text(_time(event.get("timestamp")))
        line.append(f" {clean(level):<8}", _STYLES.get(level, ""))
        line.append(clean(event.get("event", "")), "bold")
        line.append(f"  {clean(brief(rest))}" if rest else "")
        if event.get("traceback"):
            line.append(f"\n{clean(event['traceback'])}", "dim")
        console.print(line, soft_wrap=True)


def _time(stamp: object) -> str:
    from daemon.cli.present import clean, moment  # noqa: PLC0415

    epoch = from_text(stamp)
    return moment(epoch, None) if epoch is not None else clean(stamp or "-")
