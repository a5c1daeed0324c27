"""The progress notes of a running turn, as whoever waits for its answer sees them."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.store.agent_words import AgentWords

LOOK_S = 1.0  # how often to look for new notes
_MOST = 50


class Notes:
    """What one session's agent reports while it works, each note once. The notes are the container's word: text to show."""

    def __init__(self, data_dir: Path, agent: str, session: str) -> None:
        self._at = (data_dir, agent, session)
        self._seen: frozenset[AgentWords] = frozenset()

    def new(self, message_ids: Container[str]) -> list[str]:
        """Return the notes about these messages that were not returned before, oldest first; none where they cannot be read."""
        from daemon.store.agent_words import agent_words  # noqa: PLC0415 -- most answers come before the first look
        from schema.ids import session_path  # noqa: PLC0415
        from schema.layout import SessionFolder  # noqa: PLC0415

        data_dir, agent, session = self._at
        found = agent_words(SessionFolder(session_path(data_dir / "sessions", agent, session)), limit=_MOST)
        fresh = [one for one in found if one not in self._seen and one.kind == "progress"]
        self._seen = frozenset(found)
        return [one.text for one in fresh if any(name in message_ids for name in one.messages)]
