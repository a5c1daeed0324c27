"""What simulated agents know that they have said and asked in the middle of their turns, for the checks."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from daemon.core.session_key import SessionKey


@dataclass(frozen=True)
class Said:
    """One row that an agent was told is stored: its id, and what it says. `about` is the acceptance of the turn's message."""

    key: SessionKey
    identity: str
    text: str
    about: str


@dataclass
class TalkRecords:
    """Over a whole run. `begun`: the acceptances of messages whose turns have said or asked anything."""

    said: list[Said] = field(default_factory=list[Said])
    begun: set[str] = field(default_factory=set[str])
    # By session, text and acceptance: how often one try of a turn has said it, at most.
    most: dict[tuple[SessionKey, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter[str]))

    def count(self, key: SessionKey, text: str, about: str, times: int) -> None:
        """One try of a turn is about to say this for the so-manieth time."""
        most = self.most[key, text]
        most[about] = max(most[about], times)

    def allowed(self, key: SessionKey, text: str) -> int:
        """How many messages with this text one place may get."""
        return self.most[key, text].total()
