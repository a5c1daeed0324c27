"""Renders a log event as one line of JSON or of text: plain values, without secrets, errors spelled out.

Pure apart from formatting a traceback: whatever is handed in, a line comes out. Values may come out of a container, so
control characters are escaped and sizes are limited. Never shows the values of an environment.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import traceback
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, cast

import structlog

from daemon.core.printable import block, escape_json, one_line
from schema.errors import ClawbusError

MAX_TEXT: Final = 16_384  # characters of one value; a hostile stderr must not fill the disk by one event
MAX_ITEMS: Final = 100
MAX_DEPTH: Final = 5
REDACTED: Final = "[redacted]"

# A field whose name contains one of these may hold a secret; a harmless one is given another name.
_SECRET: Final = re.compile(
    r"passw|secret|token|authorization|credential|api_?key|cookie|private_?key|signature", re.IGNORECASE
)
_ENVIRONMENT: Final = frozenset({"env", "environ", "environment"})
_SHORT: Final = 64  # characters of a field's name that is remembered; a container may choose longer ones
_FIRST: Final = ("timestamp", "level", "event")

EventDict = MutableMapping[str, Any]


def plain(value: object, key: str = "", depth: int = 0) -> object:
    """Return a value that JSON can hold: limited in size, redacted by its field's name. No foreign `__repr__` runs."""
    if type(value) is str:  # first, because most values are text
        return REDACTED if _is_secret(key) else _cut(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value, key, depth)
    if isinstance(value, int):
        return int(value) if value.bit_length() <= 64 else f"<an integer of {value.bit_length()} bits>"
    if _is_secret(key):
        return REDACTED
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # NaN and the infinities are not JSON
    if isinstance(value, str):
        return _cut(str(value))
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, PurePath | BaseException):
        return _cut(str(value))
    if depth >= MAX_DEPTH:
        return f"<{type(value).__name__}>"
    return _plain_container(value, key, depth + 1)


def _is_secret(key: str) -> bool:
    return _is_secret_name(key) if len(key) <= _SHORT else _SECRET.search(key) is not None


@functools.lru_cache(maxsize=512)
def _is_secret_name(key: str) -> bool:
    return _SECRET.search(key) is not None


def _plain_container(value: object, key: str, depth: int) -> object:
    if isinstance(value, Mapping):
        entries = list(cast(Mapping[object, object], value).items())[:MAX_ITEMS]
        if key.lower() in _ENVIRONMENT:
            return sorted(_cut(str(name)) for name, _ in entries)
        return {_cut(str(name)): plain(item, str(name), depth) for name, item in entries}
    if isinstance(value, Sequence | AbstractSet):
        return [plain(item, key, depth) for item in list(cast(Sequence[object], value))[:MAX_ITEMS]]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), field.name, depth) for field in dataclasses.fields(value)}
    return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text) - MAX_TEXT} characters more)"


def explain_error(event: EventDict) -> None:
    """Turn `exc_info` or an exception in `error` into fields: code and hint of ours, a traceback of any other."""
    info: object = event.pop("exc_info", None)
    if isinstance(info, tuple):
        info = cast(tuple[object, ...], info)[1]
    error = _single(info if isinstance(info, BaseException) else event.get("error"))
    if error is None:
        return
    event["error"] = str(error) or type(error).__name__
    if isinstance(error, ClawbusError):
        event["code"] = error.code
        event["hint"] = error.hint
        return
    event["error_type"] = type(error).__qualname__
    if error.__traceback__ is not None:
        event["traceback"] = _tail("".join(traceback.format_exception(error)))


def _single(error: object) -> BaseException | None:
    """Return the single exception of a group of one: a task group wraps what its tasks raise."""
    while isinstance(error, BaseExceptionGroup):
        members = cast(BaseExceptionGroup[BaseException], error).exceptions
        if len(members) != 1:
            break
        error = members[0]
    return cast(BaseException, error) if isinstance(error, BaseException) else None


def _tail(text: str) -> str:
    """Return the end of a traceback, which says most."""
    return text if len(text) <= MAX_TEXT else f"({len(text) - MAX_TEXT} characters before) ...{text[-MAX_TEXT:]}"


def ordered(event: EventDict) -> dict[str, object]:
    """Return timestamp, level and event first, then the other fields in their order, all as plain values."""
    first = {key: plain(event[key]) for key in _FIRST if key in event}
    return first | {key: plain(value, key) for key, value in event.items() if key not in _FIRST}


def json_line(event: Mapping[str, object]) -> bytes:
    """Return one line of JSON, newline included. `event` is already plain."""
    text = json.dumps(event, ensure_ascii=False, separators=(", ", ": "))
    text = escape_json(text)
    # A lone surrogate becomes \udcXX, which inside a JSON string is that surrogate's own spelling.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def pretty_renderer(*, colors: bool) -> Callable[[Mapping[str, object]], bytes]:
    """Return a renderer for people at a terminal. A traceback follows its line."""
    console = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False, pad_event_to=28)

    def render(event: Mapping[str, object]) -> bytes:
        shown: EventDict = {key: _visible(value) for key, value in event.items() if key != "traceback"}
        shown["timestamp"] = str(shown.get("timestamp", ""))[11:]
        trace = event.get("traceback")
        line = console(None, "", shown)
        if trace is not None:
            line = "\n".join([line, *block(str(trace).rstrip(), "    | ", "    | ")])
        return f"{line.rstrip()}\n".encode("utf-8", "backslashreplace")

    return render


def _visible(value: object) -> object:
    """Return the text without control characters: a container's output must not control the operator's terminal."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict | list):
        return json_line(cast(Mapping[str, object], value)).decode().rstrip()
    return value
