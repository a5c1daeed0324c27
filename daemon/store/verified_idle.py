"""Which sessions were read and found idle, and how their files looked then: so that a report need not open them again.

The daemon records it in central.db after it has read a session's files (`daemon/maintenance/verification.py`). A record
counts only while the files look the same to lstat, so it cannot hide a change, whoever made it and whatever central.db says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from schema.connect import Reader, Writer
from schema.ids import session_folder
from schema.layout import INBOUND_DB, OUTBOUND_DB

# What the check asks for. A clawbus that asks for more uses another number, and believes no older record.
_CHECK: Final = "1"
_TABLE: Final = "verified_idle"
# An inode's times come from a clock with ticks of some milliseconds, or of two seconds on old file systems: a file that was
# changed so recently could change again and look the same.
SETTLED_NS: Final = 3_000_000_000
VALID_MS: Final = 7 * 86_400_000  # bytes may rot unseen: no record saves a session from being read for longer
RENEW_MS: Final = 86_400_000
# A session's folders are looked at too: a journal, or any other file, cannot come or go without changing its folder.
_LOOKED_AT: Final = ("in", f"in/{INBOUND_DB}", "out", f"out/{OUTBOUND_DB}")
# Nothing that central.db itself knows may ask for attention.
_IDLE: Final = (
    "s.active = 0 AND s.next_due_at IS NULL AND s.quarantined_at IS NULL AND s.dead_letters = 0 AND s.spawn_failures = 0"
    " AND NOT EXISTS (SELECT 1 FROM incarnations AS i WHERE i.agent = s.agent AND i.session = s.session AND i.ended_at IS NULL)"
)


class Stamp(NamedTuple):
    """How a session's files look. `text` is for comparison alone; `changed_ns` is the latest change, epoch ns."""

    text: str
    changed_ns: int

    @property
    def is_settled(self) -> bool:
        """Whether a further change would show."""
        return self.changed_ns + SETTLED_NS < time.time_ns()


class Verified(NamedTuple):
    """A record: which session was found idle, when (epoch ms), and how its files looked."""

    agent: str
    session: str
    at: int
    stamp: str


def take_stamp(root: Path | str) -> Stamp | None:
    """Look at the files of the session at `root`; None when one cannot be looked at. Opens nothing."""
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
    """Record what was found, in the caller's transaction."""
    db.executemany(f"INSERT OR REPLACE INTO {_TABLE}(agent, session, at, stamp) VALUES (?, ?, ?, ?)", list(found))


def recorded(
    db: Reader, now: int, first: tuple[str, str] = ("", ""), last: tuple[str, str] | None = None
) -> list[Verified]:
    """Return the records that may count at `now` (epoch ms), of sessions in which central.db knows of nothing to do.

    Only of the sessions from `first` to `last` by name (None: to the end).
    """
    if not db.columns(_TABLE):
        return []
    upper = " AND (v.agent, v.session) <= (?, ?)" if last is not None else ""
    # One of the future is of a clock that was set back: what was dated then may be ahead of the clock now.
    rows = db.all(
        f"SELECT v.agent, v.session, v.at, v.stamp FROM {_TABLE} AS v JOIN sessions AS s USING (agent, session)"
        f" WHERE v.at BETWEEN ? AND ? AND {_IDLE} AND (v.agent, v.session) >= (?, ?){upper}",
        (now - VALID_MS, now, *first, *(last or ())),
    )
    return [Verified(*row) for row in rows]


def still_idle(db: Reader, sessions_dir: Path, now: int) -> frozenset[tuple[str, str]]:
    """Return the sessions whose record counts at `now` and whose files look as they did then. `db` is central.db."""
    return frozenset(
        (one.agent, one.session)
        for one in recorded(db, now)
        if (stamp := take_stamp(f"{sessions_dir}/{one.agent}/{session_folder(one.session)}")) is not None
        and stamp.text == one.stamp
    )
