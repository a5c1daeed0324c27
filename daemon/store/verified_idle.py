"""Records which sessions were read and found idle, with their files' stat values, so that they need not be opened again.

Reports leave them out, and so does the sweep's full pass.

The daemon writes a record to central.db after it has read a session's files (`daemon/maintenance/verification.py`). A record
is valid only while lstat returns the same values, so it cannot hide a change, even if central.db is wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from schema.handles import Reader, Writer
from schema.ids import session_folder
from schema.layout import INBOUND_DB, OUTBOUND_DB

# The version of the check. A clawbus that checks more uses a higher number and ignores older records.
_CHECK: Final = "2"
_TABLE: Final = "verified_idle"
# An inode's times come from a clock with ticks of some milliseconds, or of two seconds on old file systems: a file that was
# changed so recently could change again without a visible difference.
SETTLED_NS: Final = 3_000_000_000
VALID_MS: Final = (
    7 * 86_400_000
)  # a disk may corrupt data without any change in stat: read each session again after this time
RENEW_MS: Final = 86_400_000
# A session's folders are checked too: a journal, or any other file, cannot come or go without changing its folder.
_LOOKED_AT: Final = ("in", f"in/{INBOUND_DB}", "out", f"out/{OUTBOUND_DB}")
# Sessions that need attention according to central.db itself are left out.
_IDLE: Final = (
    "s.active = 0 AND s.next_due_at IS NULL AND s.quarantined_at IS NULL AND s.dead_letters = 0 AND s.spawn_failures = 0"
    " AND NOT EXISTS (SELECT 1 FROM incarnations AS i WHERE i.agent = s.agent AND i.session = s.session AND i.ended_at IS NULL)"
)


class Stamp(NamedTuple):
    """The stat values of a session's files. `text` is only for comparison; `changed_ns` is the latest change, epoch ns."""

    text: str
    changed_ns: int

    @property
    def is_settled(self) -> bool:
        """Whether any further change would alter the stamp."""
        return self.changed_ns + SETTLED_NS < time.time_ns()


class Verified(NamedTuple):
    """A record: which session was found idle, when (epoch milliseconds), and its files' stamp."""

    agent: str
    session: str
    at: int
    stamp: str


def take_stamp(root: Path | str) -> Stamp | None:
    """Return the stamp of the session at `root`; None when a file cannot be checked. Open nothing."""
    parts: list[str] = [_CHECK]
    latest = 0
    for name in _LOOKED_AT:
        try:
            status = os.lstat(f"{root}/{name}")
        except FileNotFoundError:
            parts.append("-")
            continue
        except OSError:
            return None
        latest = max(latest, status.st_ctime_ns)
        parts.append(f"{status.st_ino} {status.st_mode} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
    return Stamp("/".join(parts), latest)


def record(db: Writer, found: Iterable[Verified]) -> None:
    """Store the records, in the caller's transaction."""
    db.executemany(f"INSERT OR REPLACE INTO {_TABLE}(agent, session, at, stamp) VALUES (?, ?, ?, ?)", list(found))


def stamp_of(sessions_dir: Path, agent: str, session: str) -> Stamp | None:
    """Return the stamp of a session by name."""
    return take_stamp(f"{sessions_dir}/{agent}/{session_folder(session)}")


def is_unchanged(sessions_dir: Path, one: Verified) -> bool:
    """Return whether the session's files still have the stamp of its record."""
    stamp = stamp_of(sessions_dir, one.agent, one.session)
    return stamp is not None and stamp.text == one.stamp


def recorded(
    db: Reader,
    now: int,
    first: tuple[str, str] = ("", ""),
    last: tuple[str, str] | None = None,
    *,
    scheduled: bool = True,
) -> list[Verified]:
    """Return the records that may be valid at `now` (epoch ms), of sessions that have no work according to central.db.

    Return only sessions from `first` to `last` by name (`last` None: to the end), and without `scheduled` none that has a
    schedule, even a paused one.
    """
    if not db.columns(_TABLE):
        return []
    upper = " AND (s.agent, s.session) <= (?, ?)" if last is not None else ""
    upper += "" if scheduled else " AND s.schedules = 0"
    # A record from the future means that the clock was set back; dates in that session's files may be in the future too.
    rows = db.all(
        f"SELECT v.agent, v.session, v.at, v.stamp FROM {_TABLE} AS v JOIN sessions AS s USING (agent, session)"
        f" WHERE v.at BETWEEN ? AND ? AND {_IDLE} AND (s.agent, s.session) >= (?, ?){upper}",
        (now - VALID_MS, now, *first, *(last or ())),
    )
    return [Verified(*row) for row in rows]


def still_idle(db: Reader, sessions_dir: Path, now: int) -> frozenset[tuple[str, str]]:
    """Return the sessions whose record is valid at `now` and whose files still have the same stamp. `db` is central.db."""
    return frozenset((one.agent, one.session) for one in recorded(db, now) if is_unchanged(sessions_dir, one))
