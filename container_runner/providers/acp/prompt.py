"""The prompt of a turn: its messages as one text for the agent. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import cast

from container_runner.providers.protocol import TurnMessage
from schema.layout import INBOX_FILES
from schema.rows import Kind


def prompt_text(messages: Sequence[TurnMessage], in_folder: str) -> str:
    """Return the prompt. `in_folder` is where the agent finds attached files. A single message is passed on as it is; what needs an explanation gets one."""
    parts: list[str] = []
    tries = max((message.tries for message in messages if message.trigger), default=0)
    if tries:
        parts.append(
            f"[This is try {tries + 1} of this message: the previous try was interrupted before its answer was sent."
            " Part of the work may be done already; check before you repeat anything that has effects outside.]"
        )
    context = [message for message in messages if not message.trigger]
    parts.extend(f"[{_heading(message)}]\n{_text(message, in_folder)}" for message in context)
    triggers = [message for message in messages if message.trigger]
    if len(triggers) == 1:
        parts.append(_text(triggers[0], in_folder))
    else:
        parts.extend(
            f"[Message {number} of {len(triggers)}]\n{_text(one, in_folder)}" for number, one in enumerate(triggers, 1)
        )
    return "\n\n".join(parts)


def _heading(context: TurnMessage) -> str:
    if context.kind == Kind.SYSTEM:
        return "Notice of the message bus, for your information"
    return "Earlier message, for context; it needs no answer"


def _text(message: TurnMessage, in_folder: str) -> str:
    return "\n".join((_said(message), *_files(message.parsed(), in_folder)))


def _files(content: object, in_folder: str) -> Iterator[str]:
    """Yield a line for each file that the host stored in `in_folder` with the message."""
    entries = cast("dict[str, object]", content).get("attachments") if isinstance(content, dict) else None
    for entry in cast("list[object]", entries) if isinstance(entries, list) else ():
        fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
        path = fields.get("localPath")
        if isinstance(path, str) and path.startswith(f"{INBOX_FILES}/") and ".." not in path.split("/"):
            yield f"[Attached file, read-only ({fields.get('mimeType')}, {fields.get('size')} bytes): {in_folder}/{path}]"


def _said(message: TurnMessage) -> str:
    content = message.parsed()
    if isinstance(content, dict):
        fields = cast("dict[str, object]", content)
        text = fields.get("text")
        if isinstance(text, str):
            return text
        return json.dumps(fields.get("body", fields), ensure_ascii=False)
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
