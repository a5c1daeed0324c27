"""Whether anything in a session's files deserves a report, read in one opening of each file. Read-only.

It answers for every report at once (`status`, `dead list`, `doctor`, `runs --stale`, `sweep stale`), and errs on the side of
"yes": what cannot be read, is of an older shape, or is merely unusual is left to the reports themselves.
"""

from __future__ import annotations

import os
from typing import Final

from daemon.core.host_rules import CLOCK_SLACK_MS
from daemon.core.run_evidence import RuntimeContext
from daemon.inspect.reading import read_newest_runs
from daemon.inspect.session_reading import open_inbound
from schema.connect import Reader, ReadLimits
from schema.errors import ClawbusError
from schema.layout import OUTBOUND_DB, SessionFolder

NEWEST_RUNS: Final = 1000  # of which `runs --stale` judges each
_CLOSED: Final = "NOT EXISTS (SELECT 1 FROM dead_letters_closed AS c WHERE c.id = {})"
# Answered through partial indexes: the cost does not grow with what is finished.
_UNFINISHED: Final = (
    "SELECT EXISTS (SELECT 1 FROM messages_in WHERE status = 'pending')"
    " OR EXISTS (SELECT 1 FROM attempts WHERE outcome IS NULL)"
    " OR EXISTS (SELECT 1 FROM delivery_attempts WHERE state IN ('queued', 'intended', 'retrying'))"
    f" OR EXISTS (SELECT 1 FROM delivery_attempts AS d WHERE state = 'dead' AND {_CLOSED.format('d.message_out_id')})"
    f" OR EXISTS (SELECT 1 FROM messages_in AS m WHERE status = 'failed' AND {_CLOSED.format('m.id')})"
)
# These read every row: a state that nobody knows, and a status without the history that belongs to it.
_UNUSUAL: Final = (
    "SELECT EXISTS (SELECT 1 FROM messages_in WHERE status IS NULL OR status NOT IN ('completed', 'failed', 'cancelled'))"
    " OR EXISTS (SELECT 1 FROM delivery_attempts WHERE state NOT IN ('queued', 'intended', 'retrying', 'dead'))"
    " OR EXISTS (SELECT 1 FROM messages_in AS m WHERE NOT EXISTS (SELECT 1 FROM message_history AS h"
    " WHERE h.message_id = m.id AND h.event IN (m.status, 'migrated')))"
)
_NEWEST_HISTORY: Final = "SELECT max(at) FROM (SELECT at FROM message_history ORDER BY id DESC LIMIT 50)"


def is_idle(folder: SessionFolder, limits: ReadLimits, now: int) -> bool:
    """Whether no report at or after `now` (epoch ms) has anything to say about these files, as long as they do not change."""
    if os.path.lexists(folder.outbox / f"{OUTBOUND_DB}-journal"):
        return False
    try:
        with open_inbound(folder) as reader:
            if _any(reader, _UNFINISHED, _UNUSUAL) or _number(reader, _NEWEST_HISTORY) > now + CLOCK_SLACK_MS:
                return False
        read = read_newest_runs(folder, NEWEST_RUNS, RuntimeContext(now, synced=False), limits)
    except ClawbusError:
        return False
    if read.news or read.errors:
        return False
    return not any(run.verdict.stale or run.verdict.inconsistent for run in read.runs)


def _any(reader: Reader, *questions: str) -> bool:
    return any(_number(reader, question) for question in questions)


def _number(reader: Reader, sql: str) -> int:
    row = reader.one(sql)
    return int(row[0] or 0) if row is not None else 0
