"""Decides when the runner may leave inbound.db closed at a poll: a stat of the file says as much as reading it would. Pure.

A poll that found nothing to do is not repeated while its file is unchanged, no message becomes due by time alone, and the
host's events arrive. Every `_LONGEST_POLLS` intervals the file is read in any case, so a wrong stat costs seconds, not a message.
"""

from __future__ import annotations

from typing import Final

from schema.frozen import frozen

# A file's times may be as coarse as two seconds: a younger change could be followed by another without a visible difference.
_COARSE_S: Final = 3.0
_LONGEST_POLLS: Final = 10

Mark = tuple[int, int]


@frozen
class Poll:
    """What was known just before inbound.db was read: its mark (None: no file), and the monotonic time in seconds."""

    mark: Mark | None
    at: float


class Rest:
    """Times are monotonic seconds. `poll_s` is the interval of polls."""

    def __init__(self, poll_s: float) -> None:
        self._longest_s = _LONGEST_POLLS * poll_s
        self._mark: Mark | None = None
        self._since = 0.0  # when this mark was first seen
        self._until = 0.0

    def begin(self, mark: Mark | None, now: float) -> Poll:
        """Note that the file is about to be read. Until `end` says what was found, every poll reads it."""
        self.covers(mark, now)
        self._until = 0.0
        return Poll(mark, now)

    def end(self, poll: Poll, quiet_s: float) -> None:
        """Note that the poll found nothing to do, and that time alone changes nothing for `quiet_s` seconds."""
        if poll.mark is not None and poll.mark == self._mark and poll.at - self._since >= _COARSE_S:
            self._until = poll.at + min(quiet_s, self._longest_s)

    def covers(self, mark: Mark | None, now: float) -> bool:
        """Return whether reading a file with this mark now would find what the last poll found."""
        if mark != self._mark:
            self._mark, self._since, self._until = mark, now, 0.0
        return now < self._until
