"""What a program's stdout means: plain text, or JSON lines once the first line is one. Pure: bytes in, values out.

Works as the output comes, so that a tool's start is known when it starts. docs/contract.md describes the format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from container_runner.errors import AnswerInvalidError, AnswerNotTextError
from container_runner.providers.protocol import Answer, OutMessage
from schema.instants import from_text
from schema.rows import Kind

TYPES: Final = frozenset({"message", "progress", "tool", "tool_end", "state", "later"})
_MAX_KEY: Final = 200
_NAMES_A_TYPE: Final = re.compile(
    rb"\s*\{.*\"type\"\s*:\s*\"(?:message|progress|tool|tool_end|state|later)\"", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class ProgressNote:
    """Something moved. `note` is for the log."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class ToolStart:
    """A tool began; `timeout_s` is what it may take, if it said so."""

    name: str
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class ToolEnd:
    """The tool is done."""


@dataclass(frozen=True, slots=True)
class Later:
    """The program asks to be given the turn again: after so many seconds, or when the host likes."""

    after_s: float | None = None
    reason: str | None = None


Event = ProgressNote | ToolStart | ToolEnd


class OutputParser:
    """Feed it lines without their ends, in order; then ask for the answer."""

    def __init__(self) -> None:
        self._rich: bool | None = None  # None until the first line that is not blank
        self._plain: list[bytes] = []
        self._messages: list[OutMessage] = []
        self._state: dict[str, str | None] = {}
        self._number = 0
        self.ignored: list[str] = []
        self.later: Later | None = None

    def feed(self, line: bytes) -> Event | None:
        """Take one line; returns what it tells while the turn runs. Raises AnswerInvalidError, AnswerNotTextError."""
        self._number += 1
        blank = not line.strip()
        if self._rich is None and not blank:
            self._rich = _is_rich(line)
        if not self._rich:
            self._plain.append(line)
            return None
        return None if blank else self._take(line)

    def answer(self) -> Answer:
        """All that was fed. Plain output is one message, without its trailing line ends."""
        if self._rich:
            return Answer(messages=tuple(self._messages), state=dict(self._state))
        try:
            text = b"\n".join(self._plain).decode("utf-8")
        except UnicodeDecodeError as error:
            raise AnswerNotTextError(f"The answer is not UTF-8 (byte {error.start}).") from error
        return Answer(messages=(OutMessage(content={"text": text.rstrip("\r\n")}),))

    def _take(self, line: bytes) -> Event | None:
        fields = self._fields(line)
        match fields.get("type"):
            case "message":
                self._messages.append(self._message(fields))
                return ProgressNote()
            case "progress":
                return ProgressNote(self._text(fields, "note") or "")
            case "tool":
                return ToolStart(self._required(fields, "name"), self._seconds(fields))
            case "tool_end":
                return ToolEnd()
            case "state":
                self._keep(fields)
                return ProgressNote()
            case "later":
                self.later = Later(self._wait(fields), self._text(fields, "reason"))
                return ProgressNote()
            case str(other):
                # A later contract may know it. What we do know is still worth sending.
                self.ignored.append(other)
                return None
            case _:
                raise self._wrong("has no `type`")

    def _fields(self, line: bytes) -> Mapping[str, object]:
        try:
            value: object = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            raise AnswerNotTextError(f"Line {self._number} of the answer is not UTF-8.") from error
        except (ValueError, RecursionError) as error:
            raise self._wrong("is not JSON") from error
        if not isinstance(value, dict):
            raise self._wrong("is not a JSON object")
        return cast(dict[str, object], value)

    def _message(self, fields: Mapping[str, object]) -> OutMessage:
        return OutMessage(
            content=self._content(fields),
            to=self._text(fields, "to"),
            thread_id=self._text(fields, "thread_id"),
            deliver_after=self._instant(fields),
            kind=self._text(fields, "kind") or Kind.CHAT,
        )

    def _content(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        content = fields.get("content")
        if isinstance(content, dict):
            return cast(dict[str, object], content)
        if content is not None and not isinstance(content, str):
            raise self._wrong("has a `content` that is neither an object nor a text")
        text = content if content is not None else fields.get("text")
        if not isinstance(text, str):
            raise self._wrong("has neither `text` nor `content`")
        return {"text": text}

    def _keep(self, fields: Mapping[str, object]) -> None:
        key = self._required(fields, "key")
        if len(key) > _MAX_KEY:
            raise self._wrong(f"has a `key` of more than {_MAX_KEY} characters")
        if "value" not in fields:
            raise self._wrong("has no `value` (null removes the key)")
        self._state[key] = self._text(fields, "value")

    def _seconds(self, fields: Mapping[str, object]) -> float | None:
        value = fields.get("timeout_s")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 365 * 86400:
            raise self._wrong("has a `timeout_s` that is no number of seconds above 0")
        return float(value)

    def _wait(self, fields: Mapping[str, object]) -> float | None:
        value = fields.get("after_s")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 366 * 86400:
            raise self._wrong("has an `after_s` that is no number of seconds from 0 to a year")
        return float(value)

    def _instant(self, fields: Mapping[str, object]) -> int | None:
        value = fields.get("deliver_after")
        instant = from_text(value)
        if value is not None and instant is None:
            raise self._wrong("has a `deliver_after` that is no ISO-8601 time")
        return instant

    def _required(self, fields: Mapping[str, object], key: str) -> str:
        value = self._text(fields, key)
        if not value:
            raise self._wrong(f"has no `{key}`")
        return value

    def _text(self, fields: Mapping[str, object], key: str) -> str | None:
        value = fields.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
            raise self._wrong(f"has a `{key}` that is no text")
        return value

    def _wrong(self, what: str) -> AnswerInvalidError:
        return AnswerInvalidError(f"Line {self._number} of the answer {what}.")


def _is_rich(line: bytes) -> bool:
    try:
        value: object = json.loads(line)
    except ValueError:
        return False
    except RecursionError:
        # JSON that nobody can read: an object that names one of our types is refused, not sent to a person as text.
        return bool(_NAMES_A_TYPE.match(line))
    return isinstance(value, dict) and cast(dict[str, object], value).get("type") in TYPES


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
