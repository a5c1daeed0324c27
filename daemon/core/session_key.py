"""A session's name. Pure."""

from __future__ import annotations

from typing import NamedTuple


class SessionKey(NamedTuple):
    """A session's name: its agent group and its own name, both checked to be safe as path components."""

    agent: str
    session: str

    def __str__(self) -> str:
        return f"{self.agent}/{self.session}"
