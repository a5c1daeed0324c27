"""The prompt of a turn: its messages as one text for the agent. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from container_runner.providers.protocol import TurnMessage
from schema.rows import Kind


def prompt_text(messages: Sequence[TurnMessage]) -> str:
    """Return the prompt. A single message is passed on as it is; what needs an explanation gets one."""
    parts: list[str] = []
    tries = max((message.tries for message in messages if message.trigger), default=0)
    if tries:
        parts.append(
            f"[This is try {tries + 1} of this message: the previous try was interrupted before its answer was sent."
            " Part of the work may be done already; check before you repeat anything that has effects outside.]"
        )
    context = [message for message in messages if not message.trigger]
    parts.extend(f"[{_heading(message)}]\n{_text(message)}" for message in context)
    triggers = [message for message in messages if message.trigger]
    if len(triggers) == 1:
        parts.append(_text(triggers[0]))
    else:
        parts.extend(f"[Message {number} of {len(triggers)}]\n{_text(one)}" for number, one in enumerate(triggers, 1))
    return "\n\n".join(parts)


def _heading(context: TurnMessage) -> str:
    if context.kind == Kind.SYSTEM:
        return "Notice of the message bus, for your information"
    return "Earlier message, for context; it needs no answer"


def _text(message: TurnMessage) -> str:
    content = message.parsed()
    if isinstance(content, dict):
        fields = cast("dict[str, object]", content)
        text = fields.get("text")
        if isinstance(text, str):
            return text
        return json.dumps(fields.get("body", fields), ensure_ascii=False)
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
