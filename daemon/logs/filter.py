"""Parses log lines into events and filters them. Pure; the same rules for files, journal and stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, cast

from schema.frozen import frozen
from schema.instants import from_text

LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
)


@frozen
class EventFilter:
    """`session` is AGENT/SESSION, `since` epoch ms, `events` patterns of names with `*` and `?`.

    An event without a level, or without a time, passes only where none is asked for.
    """

    session: str | None = None
    message: str | None = None
    level: str = "debug"
    agent: str | None = None
    since: int | None = None
    events: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether the filter is empty: then even a line that is not an event passes."""
        asked = (self.session, self.message, self.agent, self.since)
        return not self.events and all(one is None for one in asked) and LEVELS[self.level] <= LEVELS["debug"]

    def wants(self, event: Mapping[str, Any]) -> bool:
        """Return whether this event is wanted."""
        if self.everything:
            return True
        if LEVELS.get(str(event.get("level")), 0) < LEVELS[self.level]:
            return False
        if self.events and not any(fnmatchcase(str(event.get("event")), one) for one in self.events):
            return False
        if self.session is not None and f"{event.get('agent')}/{event.get('session')}" != self.session:
            return False
        if self.agent is not None and event.get("agent") != self.agent:
            return False
        if self.since is not None and (from_text(event.get("timestamp")) or 0) < self.since:
            return False
        return self.message is None or self._is_about(event, self.message)

    @staticmethod
    def _is_about(event: Mapping[str, Any], message: str) -> bool:
        several = event.get("messages")
        named = cast("list[object]", several) if isinstance(several, list) else []
        return message in (event.get("message"), event.get("in_reply_to"), *named)


def parse_event(line: bytes) -> dict[str, Any]:
    """Parse a line of the log as an event. Any other line keeps its text as the event's name."""
    text = line.decode("utf-8", "replace")
    try:
        event = cast("object", json.loads(text))
    except (ValueError, RecursionError):
        return {"event": text}
    return cast("dict[str, Any]", event) if isinstance(event, dict) else {"event": text}
