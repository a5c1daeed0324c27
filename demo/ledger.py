"""Who was promised an answer and who got one. Pure: fed by the senders and by what arrives, it only counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast


def answered_ids(in_reply_to: str | None, content: object) -> frozenset[str]:
    """The messages that one answer answers: the one it replies to, and those its content names besides."""
    found = {in_reply_to} if in_reply_to else set[str]()
    if isinstance(content, dict):
        others = cast(Mapping[str, object], content).get("answers")
        if isinstance(others, list):
            found |= {str(other) for other in cast(list[object], others)}
    return frozenset(found)


@dataclass
class Ledger:
    """Message ids, by what became of them."""

    accepted: dict[str, str] = field(default_factory=dict[str, str])  # id -> channel, in the order of acceptance
    answers: dict[str, int] = field(default_factory=dict[str, int])  # id -> how often

    def accept(self, message_id: str, channel: str) -> None:
        """The bus said yes to this message."""
        self.accepted[message_id] = channel

    def answer(self, message_ids: Iterable[str]) -> list[str]:
        """An answer to these arrived. Returns those of them that had none before."""
        fresh: list[str] = []
        for message_id in message_ids:
            if message_id in self.accepted:
                self.answers[message_id] = self.answers.get(message_id, 0) + 1
                if self.answers[message_id] == 1:
                    fresh.append(message_id)
        return fresh

    def missing(self, channel: str | None = None) -> list[str]:
        """Accepted and not answered, on one channel or on all."""
        return [
            message_id
            for message_id, through in self.accepted.items()
            if message_id not in self.answers and channel in (None, through)
        ]

    def repeated(self) -> list[str]:
        """Answered more than once."""
        return [message_id for message_id, count in self.answers.items() if count > 1]

    def verdict(self) -> str:
        """The last line of the demo."""
        return f"demo: {len(self.accepted)} accepted, {len(self.answers)} answered, {len(self.missing())} lost"
