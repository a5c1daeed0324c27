"""Parses a program's stdout: plain text, JSON lines, or JSON lines of progress followed by text. Pure: bytes in, values out.

It parses line by line as output arrives, so that a tool's start is known when it starts. docs/write-an-agent.md describes the format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, cast

from container_runner.providers.protocol import Answer, OutMessage
from container_runner.shared.errors import AnswerInvalidError, AnswerNotTextError
from schema.frozen import frozen
from schema.instants import from_text
from schema.json_text import UnsendableError, sendable
from schema.plain_names import file_names
from schema.questions import Question, QuestionError, from_fields
from schema.rows import Kind, TurnNote
from schema.schedule_requests import ScheduleRequestError, to_content

TYPES: Final = frozenset(
    {"message", "progress", "tool", "tool_end", "state", "later", "question", "schedule", "change_schedule"}
)
_HELD: Final = frozenset(
    {"message", "state"}
)  # types that count toward the answer's size; the others may be sent without limit
_ENVELOPE: Final = frozenset({"type", "to", "thread_id", "deliver_after", "kind", "content", "text"})
_OF_NOW: Final = frozenset({"now", "key"})  # fields that only a message which is sent at once may have
_MAX_KEY: Final = 200
_MAX_THREAD_BYTES: Final = 1000  # of a part of an address
_MAX_IGNORED: Final = 100
_NAMES_A_TYPE: Final = re.compile(
    rb"\s*\{.*\"type\"\s*:\s*\"(?:message|progress|tool|tool_end|state|later|question|schedule|change_schedule)\"",
    re.DOTALL,
)


@frozen
class ProgressNote:
    """The turn made progress. `note` is for the log."""

    note: str = ""


@frozen
class ToolStart:
    """A tool started. `timeout_s` is how many seconds it may take, if declared."""

    name: str
    timeout_s: float | None = None


@frozen
class ToolEnd:
    """The tool has finished."""


@frozen
class Ask:
    """The program asks a person. The answer goes to the program, not into the turn's answer."""

    question: Question
    key: str | None = None


@frozen
class Later:
    """The program asks to get the turn again: after the given number of seconds, or when the host chooses."""

    after_s: float | None = None
    reason: str | None = None


@frozen
class SayNow:
    """A message that the program sends during the turn. It is not part of the answer."""

    message: OutMessage
    key: str | None = None


Event = ProgressNote | ToolStart | ToolEnd | Ask | SayNow


class OutputParser:
    """Parses a program's output. Feed it the lines in order, without newlines, then call `answer`.

    `mode` is the agent's `output`: text (everything is the answer), lines (every line must be in the contract's format), or
    auto (the first line decides; progress lines may come before a text). `held` is the answer's size so far, in bytes.
    """

    def __init__(self, mode: str = "auto") -> None:
        self._mode = mode
        # None until the first non-blank line
        self._rich: bool | None = {"text": False, "lines": True}.get(mode)
        self.held = 0
        self._counts: dict[str, int] = {}
        self._plain: list[bytes] = []
        self._messages: list[OutMessage] = []
        self._state: dict[str, str | None] = {}
        self._number = 0
        self.ignored: list[str] = []
        self.later: Later | None = None

    def feed(self, line: bytes) -> Event | None:
        """Parse one line. Return the event that it reports, if any. Raise AnswerInvalidError or AnswerNotTextError."""
        self._number += 1
        blank = not line.strip()
        if self._rich is None and not blank:
            self._rich = _is_rich(line)
        if self._rich and not blank and self._begins_text(line):
            self._rich = False
            self._plain.clear()
        if not self._rich:
            self._plain.append(line)
            self.held += len(line) + 1
            return None
        return None if blank else self._take(line)

    def _begins_text(self, line: bytes) -> bool:
        """Return whether this line starts a plain-text answer, after lines that only reported progress, tools and state."""
        return self._mode == "auto" and not self._messages and not _is_meant_as_ours(line)

    def answer(self) -> Answer:
        """Return the answer made of all lines. Plain text becomes one message, without its trailing newlines."""
        ignored = tuple(dict.fromkeys(self.ignored))
        if self._rich:
            note = None if self._messages else TurnNote("NOTHING_SENT", self._why_nothing())
            return Answer(messages=tuple(self._messages), state=dict(self._state), ignored=ignored, note=note)
        try:
            text = b"\n".join(self._plain).decode("utf-8")
        except UnicodeDecodeError as error:
            raise AnswerNotTextError(f"The answer is not UTF-8 (byte {error.start}).") from error
        messages = (OutMessage(content={"text": text.rstrip("\r\n")}),)
        return Answer(messages=messages, state=dict(self._state), ignored=ignored)

    def _why_nothing(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self._counts.items()) or "no line at all"
        ignored = f"; ignored: {', '.join(dict.fromkeys(self.ignored))}"[:500] if self.ignored else ""
        return (
            f"The program printed JSON lines without a message ({counts}{ignored}), so nothing was sent."
            ' If that was meant as its answer, set the agent\'s output = "text".'
        )

    def _take(self, line: bytes) -> Event | None:
        fields = self._fields(line)
        name = fields.get("type")
        if isinstance(name, str) and name in TYPES:
            self._counts[name] = self._counts.get(name, 0) + 1
            self.held += len(line) if name in _HELD else 0
        match name:
            case "message" if fields.get("now") is True:
                self.held -= len(line)
                rest = {key: value for key, value in fields.items() if key not in _OF_NOW}
                return SayNow(self._message(rest), self._text(fields, "key"))
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
            case "question" | "schedule" | "change_schedule":
                return self._ask(fields) if name == "question" else self._request(fields)
            case str(other):
                # A newer contract may define this type. Ignore it, and send what we do know.
                if len(self.ignored) < _MAX_IGNORED:
                    self.ignored.append(other[:_MAX_KEY])
                return None
            case _:
                raise self._wrong("has no `type`")

    def _ask(self, fields: Mapping[str, object]) -> Ask:
        try:
            return Ask(from_fields(fields), self._text(fields, "key"))
        except QuestionError as error:
            raise self._wrong(str(error)) from error

    def _request(self, fields: Mapping[str, object]) -> SayNow:
        """Return the row that sends the request to the host. The turn does not wait for the outcome."""
        content = {**fields, "notify": True}
        try:
            to_content(content)
        except ScheduleRequestError as error:
            raise self._wrong(str(error)) from error
        return SayNow(OutMessage(content=content, kind=Kind.SYSTEM))

    def _fields(self, line: bytes) -> Mapping[str, object]:
        try:
            value: object = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            raise AnswerNotTextError(f"Line {self._number} of the answer is not UTF-8.") from error
        except (ValueError, RecursionError) as error:
            raise self._wrong("is not JSON") from error
        if not isinstance(value, dict):
            raise self._wrong("is not a JSON object")
        try:
            return cast(dict[str, object], sendable(cast(object, value)))
        except UnsendableError as error:
            raise self._wrong(str(error)) from error

    def _message(self, fields: Mapping[str, object]) -> OutMessage:
        return OutMessage(
            content=self._content(fields),
            to=self._text(fields, "to"),
            thread_id=self._thread(fields),
            deliver_after=self._instant(fields),
            kind=self._kind(fields),
        )

    def _thread(self, fields: Mapping[str, object]) -> str | None:
        thread = self._text(fields, "thread_id")
        if thread is not None and ("\0" in thread or len(thread.encode()) > _MAX_THREAD_BYTES):
            raise self._wrong(f"has a `thread_id` with NUL or of more than {_MAX_THREAD_BYTES} bytes")
        return thread

    def _kind(self, fields: Mapping[str, object]) -> str:
        kind = self._text(fields, "kind") or Kind.CHAT
        if kind not in tuple(Kind):
            raise self._wrong(f"has a `kind` other than {', '.join(Kind)}")
        return kind

    def _content(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        """Return the line's content: every field except those that say where and when to send it.

        So a program's own JSON that happens to look like one of our lines loses nothing.
        """
        content, text = fields.get("content"), fields.get("text")
        rest = {key: value for key, value in fields.items() if key not in _ENVELOPE}
        if content is not None and not isinstance(content, str | dict):
            raise self._wrong("has a `content` that is neither an object nor a text")
        if text is not None and not isinstance(text, str):
            raise self._wrong("has a `text` that is not a string")
        if isinstance(content, str):
            if text is not None and text != content:
                raise self._wrong("has a `text` and another text as `content`")
            text = content
        if "files" in fields and not file_names(fields) and fields["files"] not in ([], None):
            raise self._wrong("has `files` that are not a list of paths")
        given = {} if text is None else {"text": text}
        if isinstance(content, dict):
            return {**given, **rest, **cast(dict[str, object], content)}
        if text is None:
            raise self._wrong("has neither `text` nor `content`")
        return {**given, **rest}

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
            raise self._wrong("needs a `timeout_s` in seconds, above 0")
        return float(value)

    def _wait(self, fields: Mapping[str, object]) -> float | None:
        value = fields.get("after_s")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 366 * 86400:
            raise self._wrong("needs an `after_s` in seconds, from 0 to a year")
        return float(value)

    def _instant(self, fields: Mapping[str, object]) -> int | None:
        value = fields.get("deliver_after")
        instant = from_text(value)
        if value is not None and instant is None:
            raise self._wrong("needs a `deliver_after` in ISO 8601")
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
        if not isinstance(value, str):
            raise self._wrong(f"has a `{key}` that is not text")
        return value

    def _wrong(self, what: str) -> AnswerInvalidError:
        return AnswerInvalidError(f"Line {self._number} of the answer {what}.")


def _is_rich(line: bytes) -> bool:
    name = type_of(line)
    return name in TYPES


def _is_meant_as_ours(line: bytes) -> bool:
    """Return whether a line was meant to be in our format. A malformed one is refused, never sent to a person as text."""
    return type_of(line) is not None or bool(_NAMES_A_TYPE.match(line))


def type_of(line: bytes) -> str | None:
    """Return the `type` of a JSON object, or None for anything else.

    For JSON that cannot be parsed (nested too deep, a number too long), return the type that its text names, so that it is
    refused and not sent to a person as text.
    """
    try:
        value: object = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    except (ValueError, RecursionError):
        return "message" if _NAMES_A_TYPE.match(line) else None
    name = cast(dict[str, object], value).get("type") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
