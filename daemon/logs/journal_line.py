"""Log events as lines of the systemd journal: `event key=value ...`. The journal adds the time and the priority itself.

Values are bare where they read back as the same text, and JSON otherwise, so that `clawbus logs --journal` gets the event
that was logged. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from daemon.core.printable import escape_json
from schema.instants import to_text

# sd-daemon(3): a line's priority for the journal, as syslog numbers them.
_PRIORITIES: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
)
_LEVELS: Final[Mapping[str, str]] = MappingProxyType({
    "0": "critical", "1": "critical", "2": "critical", "3": "error", "4": "warning", "5": "info", "6": "info",
    "7": "debug",
})  # fmt: skip
_JOURNALS_OWN: Final = ("timestamp", "level", "event")
_EVENT: Final = re.compile(r"[a-z][a-z0-9_]*(?= |\Z)")
_KEY: Final = re.compile(r" (\w+)=")
_BARE: Final = re.compile(r"[^\s\"\[{]\S*")


def journal_line(event: Mapping[str, object]) -> bytes:
    """Return one line with its priority and newline. `event` must be plain values."""
    name = str(event.get("event", ""))
    fields = {key: value for key, value in event.items() if key not in _JOURNALS_OWN}
    words = [name if _EVENT.fullmatch(name) else _json(name)]
    words += [f"{key}={_value(value)}" for key, value in fields.items()]
    return priority(event) + f"{' '.join(words)}\n".encode("utf-8", "backslashreplace")


def priority(event: Mapping[str, object]) -> bytes:
    """Return the prefix that gives a line its priority in the journal."""
    return b"<%d>" % _PRIORITIES.get(str(event.get("level")), 6)


def read_entry(entry: Mapping[str, object]) -> dict[str, Any] | None:
    """Return the event of an entry of `journalctl --output=json`; None for an entry without a message.

    A line of JSON is an event already: the daemon can be configured to log those. Text of anything else (an
    interpreter's traceback, systemd's own lines) is kept as the event's name.
    """
    text = _text(entry.get("MESSAGE"))
    if text is None:
        return None
    event = _from_json(text) or _from_words(text) or {"event": text}
    found: dict[str, Any] = {"timestamp": _time(entry.get("__REALTIME_TIMESTAMP"))}
    found["level"] = _LEVELS.get(str(entry.get("PRIORITY")), "info")
    return found | event


def _value(value: object) -> str:
    if isinstance(value, str) and value.isprintable() and _BARE.fullmatch(value) and _literal(value) is None:
        return value
    return _json(value)


def _json(value: object) -> str:
    return escape_json(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _literal(text: str) -> tuple[object] | None:
    """Return the value of a bare word that is JSON (a number, true, null), or None if it is only text."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def _from_json(text: str) -> dict[str, Any] | None:
    found = _literal(text) if text.startswith("{") else None
    return cast("dict[str, Any]", found[0]) if found is not None and isinstance(found[0], dict) else None


def _from_words(text: str) -> dict[str, Any] | None:
    """Return the event of a line as `journal_line` writes them, or None if it is none."""
    name = _EVENT.match(text)
    if name is None:
        return None
    event: dict[str, Any] = {"event": name[0]}
    at = name.end()
    while at < len(text):
        key = _KEY.match(text, at)
        if key is None:
            return None
        at = key.end()
        if bare := _BARE.match(text, at):
            literal = _literal(bare[0])
            event[key[1]], at = literal[0] if literal is not None else bare[0], bare.end()
            continue
        try:
            event[key[1]], at = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
    return event


def _text(message: object) -> str | None:
    """Return the message; journalctl gives one that is not plain UTF-8 as a list of its bytes."""
    if isinstance(message, list):
        return bytes(cast("list[int]", message)).decode("utf-8", "replace")
    return message if isinstance(message, str) else None


def _time(microseconds: object) -> str | None:
    return to_text(int(microseconds) // 1000) if isinstance(microseconds, str) and microseconds.isdigit() else None
