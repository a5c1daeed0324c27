"""A session's name. Pure."""

from __future__ import annotations

from typing import NamedTuple


class SessionKey(NamedTuple):
    """A session's name: its agent and its own name. Whoever makes one has checked both: they become folder names."""

    agent: str
    session: str

    def __str__(self) -> str:
        return f"{self.agent}/{self.session}"
