"""Collects an agent's updates of one prompt: the text and files of its answer, and the tools that run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from container_runner.providers.acp.reply_files import ReplyFiles
from container_runner.shared.errors import AnswerTooLargeError
from schema.json_text import whole_text

_MAX_NAME: Final = 200
_MAX_TOOLS: Final = 1000
_OVER: Final = frozenset({"completed", "failed"})
_STOPPED: Final[Mapping[str, str]] = {
    "max_tokens": "(The agent stopped here: it reached its limit of tokens.)",
    "max_turn_requests": "(The agent stopped here: it reached its limit of requests for one turn.)",
    "refusal": "(The agent refused to go on.)",
}


@dataclass(slots=True)
class Reply:
    """What the agent has said in this turn so far. `max_bytes` bounds its text; `files` takes its files."""

    max_bytes: int
    files: ReplyFiles
    tools: dict[str, str] = field(default_factory=dict[str, str])  # tools under way: id -> name
    # Types of content that are neither text nor a file that can be sent.
    left_out: list[str] = field(default_factory=list[str])
    begun: bool = False  # the agent has shown work on the prompt
    _parts: list[list[str]] = field(default_factory=list[list[str]])
    _by_message: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _latest: str | None = None
    _size: int = 0
    _broken: bool = False  # a tool was used since the last text, so the next text is a new paragraph

    def update(self, update: Mapping[str, object]) -> None:
        """Take one `session/update`. Raise AnswerTooLargeError."""
        match update.get("sessionUpdate"):
            case "agent_message_chunk":
                self.begun = True
                self._chunk(update)
            case "tool_call" | "tool_call_update":
                self.begun = True
                self._tool(update)
            case "agent_thought_chunk" | "plan":
                self.begun = True
            case _:
                pass  # progress only: modes, and what later versions of the protocol define

    @property
    def tool(self) -> str | None:
        """The name of the tool that began last among those under way."""
        return next(reversed(self.tools.values()), None)

    def text(self, stop_reason: str) -> str:
        """Return the answer's text, with a note if the turn did not end normally."""
        texts = ["".join(chunks).strip("\n") for chunks in self._parts]
        return "\n\n".join(text for text in (*texts, _STOPPED.get(stop_reason, "")) if text.strip())

    def _chunk(self, update: Mapping[str, object]) -> None:
        content = _mapping(update.get("content"))
        if self.files.take(content):
            return
        text = _content_text(content)
        if content.get("type") not in ("text", "resource_link", "resource") and len(self.left_out) < _MAX_TOOLS:
            self.left_out.append(whole_text(str(content.get("type")))[:_MAX_NAME])
        if not text:
            return
        self._size += len(text.encode("utf-8", "replace"))
        if self._size > self.max_bytes:
            raise AnswerTooLargeError(f"The answer has more than {self.max_bytes} bytes.")
        given = update.get("messageId")
        self._part(given if isinstance(given, str) else None).append(text)

    def _part(self, message_id: str | None) -> list[str]:
        """Return the paragraph that a chunk belongs to: that of its message, or a new one after a tool."""
        known = self._by_message.get(message_id) if message_id is not None else None
        if known is not None:
            return known
        if not self._parts or self._broken or message_id != self._latest:
            self._parts.append([])
        if message_id is not None:
            self._by_message[message_id] = self._parts[-1]
        self._broken, self._latest = False, message_id
        return self._parts[-1]

    def _tool(self, update: Mapping[str, object]) -> None:
        number = update.get("toolCallId")
        if not isinstance(number, str):
            return
        self._broken = True
        if update.get("status") in _OVER:
            self.tools.pop(number, None)
        elif update.get("sessionUpdate") == "tool_call" and len(self.tools) < _MAX_TOOLS:
            self.tools[number] = _tool_name(update)


def _tool_name(update: Mapping[str, object]) -> str:
    for key in ("title", "kind"):
        value = update.get(key)
        if isinstance(value, str) and value.strip():
            return whole_text(value.strip().splitlines()[0])[:_MAX_NAME].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return "tool"


def _content_text(content: Mapping[str, object]) -> str:
    match content.get("type"):
        case "text":
            text = content.get("text")
        case "resource_link":
            text = f"{content.get('name') or 'file'}: {content.get('uri')}"
        case "resource":
            text = _mapping(content.get("resource")).get("text")
        case str(other):
            text = f"({other} content, which cannot be sent here)"
        case _:
            text = None
    return whole_text(text) if isinstance(text, str) else ""


def _mapping(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
