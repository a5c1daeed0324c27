"""The progress notes of a running turn, shown to whoever waits for its answer."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.store.agent_words import NewWords

LOOK_S = 1.0  # how often to look for new notes


class Notes:
    """What one session's agent reports while it works, each note once. The notes come from the container: show them, but never interpret them."""

    def __init__(self, data_dir: Path, agent: str, session: str) -> None:
        self._at = (data_dir, agent, session)
        self._words: NewWords | None = None

    def new(self, message_ids: Container[str]) -> list[str]:
        """Return the notes about these messages that were not returned before, oldest first; none where they cannot be read."""
        if self._words is None:
            from daemon.store.agent_words import NewWords  # noqa: PLC0415 -- most answers come before the first look
            from schema.ids import session_path  # noqa: PLC0415
            from schema.layout import SessionFolder  # noqa: PLC0415

            data_dir, agent, session = self._at
            self._words = NewWords(SessionFolder(session_path(data_dir / "sessions", agent, session)))
        fresh = [one for one in self._words.read() if one.kind == "progress"]
        return [one.text for one in fresh if any(name in message_ids for name in one.messages)]
