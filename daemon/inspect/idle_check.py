"""Whether anything in a session's files deserves a report: by the daemon's record of it, or read in one opening of each file.

Read-only. It answers for every report at once (`status`, `dead list`, `doctor`, `run list --stale`, `sweep stale`), and errs on the
side of "yes": what cannot be read, is of an older shape, or is merely unusual is left to the reports themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from daemon.core.host_rules import CLOCK_SLACK_MS
from daemon.core.run_evidence import RuntimeContext
from daemon.inspect.central_reading import CentralSeen, Key, folder_of, idle_sessions
from daemon.inspect.queues import UNFINISHED
from daemon.inspect.reading import ENDINGS, any_news, read_runs_of
from daemon.inspect.trusted_files import open_inbound
from daemon.store.messages import chunks, marks
from schema.errors import ClawbusError
from schema.handles import Reader
from schema.layout import OUTBOUND_DB, SessionFolder
from schema.migrate import VERSION
from schema.outbound_copy import open_outbound_copy
from schema.plain_file import ReadLimits

_NEWEST: Final = 1000  # runs that `run list --stale` judges
# What time alone makes due: central.db knows when, and the sweep's full pass finds what central.db does not know.
_AHEAD: Final = (
    "SELECT EXISTS (SELECT 1 FROM messages_in WHERE recurrence IS NOT NULL AND status IN ('completed', 'failed'))"
    " OR EXISTS (SELECT 1 FROM schedules WHERE state = 'active')"
)
# These read every row: an unknown state, and a status without its history.
_UNUSUAL: Final = (
    "SELECT EXISTS (SELECT 1 FROM messages_in WHERE status IS NULL OR status NOT IN ('completed', 'failed', 'cancelled'))"
    " OR EXISTS (SELECT 1 FROM messages_in AS m WHERE NOT EXISTS (SELECT 1 FROM message_history AS h"
    " WHERE h.message_id = m.id AND h.event IN (m.status, 'migrated')))"
)
_NEWEST_HISTORY: Final = "SELECT max(at) FROM (SELECT at FROM message_history ORDER BY id DESC LIMIT 50)"
# The newest messages, each with the incarnation of its run if it had one run alone and list, attempt and history say `completed`.
_COMPLETED: Final = (
    "SELECT m.id, a.incarnation FROM (SELECT id, status, void_ack FROM messages_in ORDER BY seq DESC LIMIT ?) AS m"
    " LEFT JOIN attempts AS a ON a.message_id = m.id AND a.outcome = 'completed' AND m.status = 'completed'"
    " AND m.void_ack IS NULL AND (SELECT count(*) FROM attempts AS o WHERE o.message_id = m.id) = 1"
    " AND NOT EXISTS (SELECT 1 FROM message_history AS h WHERE h.message_id = m.id"
    " AND h.event IN ({}) AND NOT (h.event = 'completed' AND coalesce(h.incarnation, a.incarnation) = a.incarnation))"
).format(",".join(f"'{name}'" for name in ENDINGS))


class IdleSessions:
    """Decides which sessions have nothing to report. `busy` sessions are always reported: their containers may have something."""

    def __init__(
        self, data_dir: Path, central: CentralSeen, limits: ReadLimits, now: int, busy: Iterable[Key] = ()
    ) -> None:
        self._data_dir = data_dir
        self._central = central
        self._limits = limits
        self._now = now
        self._busy = frozenset(busy)
        usable = not central.missing and central.error is None
        self._recorded = idle_sessions(data_dir, now) - self._busy if usable else frozenset[Key]()

    def is_recorded(self, key: Key) -> bool:
        """Return whether the daemon has found it idle and its files have not changed since. Open nothing."""
        return key in self._recorded

    def covers(self, key: Key) -> bool:
        """Return whether it is recorded, or is found idle now."""
        if key in self._recorded:
            return True
        if key in self._busy or not self._central.knows_nothing_of(key):
            return False
        return is_idle(folder_of(self._data_dir, key), self._limits, self._now)


def is_idle(folder: SessionFolder, limits: ReadLimits, now: int) -> bool:
    """Return whether, until these files change, no report at or after `now` (epoch ms) says anything, and no sweep does."""
    if os.path.lexists(folder.outbox / f"{OUTBOUND_DB}-journal"):
        return False
    try:
        with open_inbound(folder) as reader:
            if _any(reader, UNFINISHED, _AHEAD, _UNUSUAL) or _number(reader, _NEWEST_HISTORY) > now + CLOCK_SLACK_MS:
                return False
            doubtful = _doubtful(reader, folder, limits)
        if not doubtful:
            return doubtful is not None
        read = read_runs_of(folder, doubtful, RuntimeContext(now, synced=False), limits)
    except ClawbusError:
        return False
    return not read.errors and not any(run.verdict.stale or run.verdict.inconsistent for run in read.runs)


def _doubtful(inbound: Reader, folder: SessionFolder, limits: ReadLimits) -> list[str] | None:
    """Return the newest messages whose sources do not all say `completed`; None when the host has not seen all of outbound.db."""
    completed = {str(row["id"]): row["incarnation"] for row in inbound.all(_COMPLETED, (_NEWEST,))}
    reader = open_outbound_copy(folder.outbox, limits)
    if reader is None:
        return list(completed)
    with reader:
        if _number(reader, "PRAGMA user_version") > VERSION or any_news(inbound, reader):
            return None
        acked: dict[str, list[object]] = {}
        for chunk in chunks(list(completed)):
            acks = f"SELECT message_id, status, incarnation FROM processing_ack WHERE message_id IN ({marks(chunk)})"
            for row in reader.all(acks, chunk):
                acked.setdefault(row["message_id"], []).append((row["status"], row["incarnation"]))
    return [name for name, by in completed.items() if by is None or acked.get(name) != [("completed", by)]]


def _any(reader: Reader, *questions: str) -> bool:
    return any(_number(reader, question) for question in questions)


def _number(reader: Reader, sql: str) -> int:
    row = reader.one(sql)
    return int(row[0] or 0) if row is not None else 0
