"""Log events as lines for people: `logs`, `watch` and `top` show them alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from daemon.cli.present import WIDE, brief, moment
from daemon.core.printable import block, one_line
from daemon.core.short_ids import shortened
from daemon.logs.filter import parse_event
from schema.instants import from_text

_STYLES: Final[Mapping[str, str]] = MappingProxyType(
    {"debug": "dim", "warning": "yellow", "error": "red", "critical": "bold red"}
)

_SPEECH: Final[Mapping[str, str]] = MappingProxyType({"agent_said": "*", "agent_progress": "...", "agent_stderr": "|"})
_CONTAINER: Final = 12  # as docker shows it
_WHOLE_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")


def event_line(event: Mapping[str, Any]) -> Text:
    """Return one event as one line, followed by its traceback, if any. What an agent says is shown as in `chat`."""
    mark = _SPEECH.get(str(event.get("event")))
    if mark is not None and isinstance(event.get("text"), str):
        line = Text(f"{_time(event.get('timestamp'))} ")
        line.append(one_line(f"{event.get('agent')}/{event.get('session')}"), "bold")
        return line.append(f" {mark} {one_line(event['text'])}", "" if mark == "*" else "dim")
    level = str(event.get("level", ""))
    rest = {key: value for key, value in event.items() if key not in ("timestamp", "level", "event", "traceback")}
    line = Text(_time(event.get("timestamp")))
    line.append(f" {one_line(level):<8}", _STYLES.get(level, ""))
    line.append(one_line(event.get("event", "")), "bold")
    line.append(f"  {one_line(brief(rest))}" if rest else "")
    if event.get("traceback"):
        for part in block(event["traceback"], "    | ", "    | "):
            line.append(f"\n{part}", "dim")
    return line


def container_line(line: str) -> str:
    """Return one line of what a container wrote, for people: the runner's events as text, the program's own output unchanged."""
    event = parse_event(line.encode("utf-8", "replace"))
    if len(event) == 1:
        return one_line(line)
    at = _time(event.get("timestamp"))
    if event.get("event") in ("program_wrote", "program_progress"):
        return f"{at} | {one_line(event.get('text', ''))}"
    hidden = ("timestamp", "level", "event", "incarnation", "messages")
    rest = {key: value for key, value in event.items() if key not in hidden}
    return f"{at} {one_line(event.get('event', ''))}" + (f"  {one_line(brief(rest))}" if rest else "")


def print_events(console: Console, events: Iterable[Mapping[str, Any]]) -> None:
    """Print each event on its own line, not wrapped. On a terminal, shorten the ids; every command accepts short ids."""
    short = console.is_terminal and console.width < WIDE
    for event in events:
        shown = {key: _shortened(value) for key, value in event.items()} if short else event
        console.print(event_line(shown), soft_wrap=True)


def _shortened(value: object) -> object:
    if not isinstance(value, str):
        return value
    return value[:_CONTAINER] if _WHOLE_CONTAINER.fullmatch(value) else shortened([value])[0]


def _time(stamp: object) -> str:
    epoch = from_text(stamp)
    return moment(epoch, None) if epoch is not None else one_line(stamp or "-")
