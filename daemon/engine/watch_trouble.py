"""Decides what to log when file events fail: which limit was reached, without repeating the line. Pure."""

from __future__ import annotations

import errno
from typing import Final

_REPEAT_S: Final = 3600.0
_INSTANCES: Final = (
    "No inotify instance or open file is left: raise `sysctl fs.inotify.max_user_instances` (all processes of one user"
    " share it) or LimitNOFILE. Polling continues meanwhile."
)
_WATCHES: Final = "No inotify watch is left: raise `sysctl fs.inotify.max_user_watches`. Polling continues meanwhile."
_OTHER: Final = "Polling continues; check the named folder and `dmesg` if this remains."
# watchfiles raises errors without an errno: its notify library puts the number into the text.
_TEXTS: Final = (("os error 24", errno.EMFILE), ("os error 28", errno.ENOSPC), ("watch limit", errno.ENOSPC))


def number_of(error: BaseException) -> int:
    """Return the errno behind a watcher's error, or 0 if there is none."""
    found = getattr(error, "errno", None)
    if isinstance(found, int):
        return found
    text = str(error).lower()
    return next((number for words, number in _TEXTS if words in text), 0)


def hint_of(error: BaseException) -> str:
    """Return the hint for this error: what the operator can do."""
    number = number_of(error)
    if number in (errno.EMFILE, errno.ENFILE):
        return _INSTANCES
    return _WATCHES if number == errno.ENOSPC else _OTHER


class TroubleLog:
    """Decides whether to log a failure: a new kind always, the same one again only once an hour."""

    def __init__(self) -> None:
        self._last: tuple[str, float] | None = None

    def is_news(self, error: BaseException, now: float) -> bool:
        """Return whether to log this failure. `now` is monotonic seconds."""
        kind = f"{type(error).__name__} {number_of(error) or error}"
        if self._last is not None and self._last[0] == kind and now - self._last[1] < _REPEAT_S:
            return False
        self._last = (kind, now)
        return True

    def recovered(self) -> None:
        """Note the recovery, so that the next failure is reported again."""
        self._last = None
