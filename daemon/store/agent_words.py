"""Reads what a session's agent wrote besides its answers: progress notes and standard error, from `out/.words`.

The file is hostile input: it is opened without following links, read from the end within bounds, shown and never acted on.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Final, cast

from daemon.core.printable import one_line
from schema.frozen import frozen
from schema.instants import from_text
from schema.layout import WORDS, WORDS_BEFORE, SessionFolder

_TAIL: Final = 16 * 1024
_LONGEST: Final = 300
_MAX: Final = 50


@frozen
class AgentWords:
    """One line. `at` is epoch milliseconds, `kind` is `progress` or `stderr`."""

    at: int | None
    messages: tuple[str, ...]
    kind: str
    text: str


def agent_words(folder: SessionFolder, message_id: str | None = None, limit: int = 1) -> list[AgentWords]:
    """Return the newest lines, oldest first: at most `limit`, of one message if it is given. Empty when there are none."""
    found: list[AgentWords] = []
    for name in (WORDS, WORDS_BEFORE):
        for line in reversed(_tail(folder, name)):
            words = _parsed(line)
            if words is not None and (message_id is None or message_id in words.messages):
                found.append(words)
            if len(found) >= min(limit, _MAX):
                return found[::-1]
    return found[::-1]


class NewWords:
    """Returns each line of one session once. The newest lines of each read are compared with those of the read before."""

    def __init__(self, folder: SessionFolder) -> None:
        self._folder = folder
        self._seen: frozenset[AgentWords] = frozenset()

    def read(self) -> list[AgentWords]:
        """Return the lines that the last read did not see, oldest first, at most _MAX of them."""
        found = agent_words(self._folder, limit=_MAX)
        fresh = [one for one in found if one not in self._seen]
        self._seen = frozenset(found)
        return fresh


def _tail(folder: SessionFolder, name: str) -> list[bytes]:
    """Return the last lines of a plain file; none for anything else. A line that was cut is not JSON, and is skipped."""
    try:
        descriptor = os.open(folder.outbox / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return []
        return os.pread(descriptor, _TAIL, max(0, status.st_size - _TAIL)).splitlines()
    except OSError:
        return []
    finally:
        os.close(descriptor)


def _parsed(line: bytes) -> AgentWords | None:
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, object]", value)
    said = fields.get("text")
    text = one_line(said)[:_LONGEST].strip() if isinstance(said, str) else ""
    kind = "stderr" if fields.get("kind") == "stderr" else "progress"
    named = fields.get("messages")
    messages = tuple(str(one)[:200] for one in cast("list[object]", named)[:10]) if isinstance(named, list) else ()
    return AgentWords(from_text(fields.get("at")), messages, kind, text) if text else None
