"""Reads from one session's files what a stale sweep judges: each unfinished, or unfinished-looking, run and its evidence.

Synchronous; the caller holds the session's lock, or is the only process that works on the folder. Writes nothing.
outbound.db is hostile: unreadable parts are reported as such, and never taken for silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from daemon.core.run_evidence import BoxRows, HostRows, RunRead, runs_of
from daemon.core.run_state import Answer, Life, Source
from daemon.core.stale_plan import Seen
from daemon.inspect.content import answered_ids, error_of
from daemon.inspect.reading import read_acks, read_host_rows, read_messages
from daemon.store.registry import SessionKey
from daemon.store.session_files import SessionFiles
from schema.connect import Reader
from schema.errors import FileBusyError, HostileFileError, ReadDeadlineError, ReadRaceError
from schema.instants import from_text

_ANSWERS: Final = 2000  # outbound rows that are looked through for answers, newest first
_MESSAGES: Final = 10_000
# Open messages; messages with an attempt that has no end; and finished ones whose history does not say so.
_SUSPECTS: Final = (
    "SELECT id FROM messages_in WHERE status IN ('pending', 'paused')"
    " OR id IN (SELECT message_id FROM attempts WHERE outcome IS NULL)"
    " OR (status IN ('completed', 'failed', 'cancelled') AND NOT EXISTS (SELECT 1 FROM message_history AS h"
    "     WHERE h.message_id = messages_in.id AND h.event IN (messages_in.status, 'migrated')))"
    f" ORDER BY seq LIMIT {_MESSAGES}"
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known outside the session's files. `life` of an incarnation; `gone_at` from the registry, epoch ms.

    `alive`: a container of the session lives or starts. `synced`: a daemon settles what the container writes.
    """

    now: int
    life: Callable[[str], Life]
    alive: bool = False
    synced: bool = False
    gone_at: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class _Context:
    """The surroundings, as the judgement of runs asks for them (run_evidence.RunContext)."""

    around: Surroundings

    @property
    def now(self) -> int:
        return self.around.now

    @property
    def synced(self) -> bool:
        return self.around.synced

    def life(self, incarnation: str | None) -> Life:
        return self.around.life(incarnation) if incarnation is not None else Life.GONE

    def ended_at(self, incarnation: str | None) -> int | None:
        return self.around.gone_at.get(incarnation) if incarnation is not None else None


def read_runs(files: SessionFiles, key: SessionKey, around: Surroundings) -> list[Seen]:
    """Every suspect run of one session, judged. Raises what opening inbound.db raises."""
    with files.inbound() as db:
        return runs_in(db, files, key, around)


def runs_in(db: Reader, files: SessionFiles, key: SessionKey, around: Surroundings) -> list[Seen]:
    """Return the runs over an open inbound.db: inside its transaction nothing changes until what follows.

    For each suspect message: its latest run, and every earlier one whose attempt is open.
    """
    host = HostRows()
    read_host_rows(db, read_messages(db, [row["id"] for row in db.all(_SUSPECTS)]), host)
    box = _read_out(files, [message.message_id for message in host.messages])
    found: list[Seen] = []
    for message in host.messages:
        runs = [run for run in runs_of(message, host, box, _Context(around)) if _is_open(run)]
        found += [Seen(*key, run.evidence, run.verdict, around.alive, message.status) for run in runs]
    return found


def _is_open(run: RunRead) -> bool:
    return run.evidence.latest or (run.evidence.attempted and run.evidence.outcome is None)


def _read_out(files: SessionFiles, names: Sequence[str]) -> BoxRows:
    try:
        with files.outbound_copy() as reader:
            if reader is None:
                return BoxRows()
            return BoxRows(read_acks(reader, names), _answers(reader, frozenset(names)))
    except (HostileFileError, ReadRaceError, ReadDeadlineError, FileBusyError):
        return BoxRows(unreadable=frozenset({Source.TRACE, Source.FINISH}))


def _answers(reader: Reader, names: frozenset[str]) -> dict[str, list[Answer]]:
    found: defaultdict[str, list[Answer]] = defaultdict(list)
    if not reader.columns("messages_out"):
        return found
    sql = "SELECT id, in_reply_to, timestamp, content FROM messages_out ORDER BY seq DESC LIMIT ?"
    for row in reader.some(sql, (_ANSWERS,), budget=16 * 1024**2, column="content"):
        content = row["content"] if isinstance(row["content"], str) else ""
        answer = Answer(str(row["id"])[:200], from_text(row["timestamp"]), error_of(content))
        for message_id in ({row["in_reply_to"]} | answered_ids(content)) & names:
            found[message_id].append(answer)
    for given in found.values():
        given.reverse()  # oldest first, as every reader lists them
    return found
