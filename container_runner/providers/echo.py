"""Answers with the text that it was sent: for a first run, and for tests of everything around a provider."""

from __future__ import annotations

import json
from typing import cast

from container_runner.providers.protocol import (
    Answer,
    DeclaredTimeout,
    OutMessage,
    Progress,
    ProviderContext,
    Turn,
    TurnMessage,
)


class EchoProvider:
    """Answers with the texts of the turn's triggers, one per line."""

    accepts_follow_ups = False
    silence: DeclaredTimeout | None = None

    def __init__(self, context: ProviderContext) -> None:
        pass

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """Return the answer. Never fails."""
        progress.event()
        text = "\n".join(_text(message) for message in turn.messages if message.trigger)
        return Answer(messages=(OutMessage(content={"text": text}),))

    async def close(self) -> None:
        """Do nothing: nothing outlives a turn."""


def _text(message: TurnMessage) -> str:
    content = message.parsed()
    if isinstance(content, dict):
        text = cast(dict[str, object], content).get("text")
        if isinstance(text, str):
            return text
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
