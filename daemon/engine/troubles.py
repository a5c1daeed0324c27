"""Tracks work on sessions that keeps failing, for the doctor, `status` and `session show`. In memory, no I/O.

Each kind of work on a session (its sweep, a poll, accepting a message, ...) has one entry, from its first failure to its next
success. Without it, a blocked session would look like an idle one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from daemon.core.session_key import SessionKey
from schema.errors import ClawbusError, FileBusyError, HostTroubleError
from schema.frozen import frozen
from schema.instants import to_text

SWEEP: Final = "sweep"
COLLECT: Final = "collect"
ACCEPT: Final = "accept"
WRITE: Final = "write"
RECORD: Final = "record"
EXIT: Final = "exit"
END: Final = "end"
POLL: Final = "poll"
_LONGEST: Final = 500
_LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        SWEEP: "Its sweep",
        COLLECT: "Looking for its answers",
        ACCEPT: "Storing a message for it",
        WRITE: "Writing its inbound.db",
        RECORD: "Recording what became of its answers",
        POLL: "Looking for its answers in time",
        EXIT: "Settling the end of its container",
        END: "Ending its container",
    }
)


@frozen
class Trouble:
    """One kind of work that fails. `since` and `last_at` are epoch ms; `code` and `reason` belong to the last failure.

    `held` names the holders of the lock that blocks it, as of the last check.
    """

    what: str
    code: str
    reason: str
    since: int
    last_at: int
    times: int = 1
    resource: str | None = None  # the resource that this host has run out of
    held: str = ""

    @property
    def error(self) -> str:
        """The reason, and who holds the lock."""
        return f"{self.reason.rstrip('.')}. {self.held}" if self.held else self.reason

    @property
    def sentence(self) -> str:
        """The trouble for people, such as `Its sweep fails since ... (3 times): FILE_BUSY: ...`."""
        times = "once" if self.times == 1 else f"{self.times} times"
        label = _LABELS.get(self.what, self.what)
        return f"{label} fails since {to_text(self.since)} ({times}): {self.code}: {self.error.rstrip('.')}."


class Troubles:
    """All sessions' troubles. All methods are called from the event loop."""

    def __init__(self) -> None:
        self._found: dict[SessionKey, dict[str, Trouble]] = {}

    def failed(self, key: SessionKey, what: str, error: BaseException, now_ms: int) -> None:
        """Record a failure. While the work keeps failing, `since` stays at its first failure."""
        code = error.code if isinstance(error, ClawbusError) else type(error).__name__
        text = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        known = self._found.setdefault(key, {})
        before = known.get(what)
        resource = error.resource if isinstance(error, HostTroubleError) else None
        fresh = Trouble(what, code, text, now_ms, now_ms, resource=resource)
        if before is not None:
            fresh = replace(fresh, since=before.since, times=before.times + 1)
            if before.code == code:
                fresh = replace(fresh, held=before.held)
        known[what] = fresh

    def hold(self, key: SessionKey, held: str) -> None:
        """Replace the description of who holds the lock that blocks a session's work."""
        known = self._found.get(key, {})
        for what, one in known.items():
            if one.code == FileBusyError.code:
                known[what] = replace(one, held=held)

    def locked_out(self) -> list[SessionKey]:
        """Return the sessions whose work is blocked by a lock."""
        return [
            key for key, found in self._found.items() if any(one.code == FileBusyError.code for one in found.values())
        ]

    def healed(self, key: SessionKey, *what: str) -> None:
        """Record a success: these kinds of work no longer fail."""
        known = self._found.get(key)
        if known is not None:
            for one in what:
                known.pop(one, None)
            if not known:
                del self._found[key]

    def forget(self, key: SessionKey) -> None:
        """Drop all troubles of a session that was released, reset or deleted."""
        self._found.pop(key, None)

    def of(self, key: SessionKey) -> tuple[Trouble, ...]:
        """Return a session's troubles, the oldest first."""
        return tuple(sorted(self._found.get(key, {}).values(), key=lambda one: one.since))

    def all(self) -> dict[SessionKey, tuple[Trouble, ...]]:
        """Return every session that has troubles."""
        return {key: self.of(key) for key in sorted(self._found)}

    def listing(self) -> list[dict[str, Any]]:
        """Return all troubles in the live status's format."""
        return [_entry(key, one) for key, found in self.all().items() for one in found]


def _entry(key: SessionKey, one: Trouble) -> dict[str, Any]:
    return {
        "agent": key.agent,
        "session": key.session,
        "what": one.what,
        "code": one.code,
        "error": one.error,
        "since": one.since,
        "last_at": one.last_at,
        "times": one.times,
        "resource": one.resource,
        "sentence": one.sentence,
    }
