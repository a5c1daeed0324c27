"""Reads from one session's files what a stale sweep judges: each unfinished, or unfinished-looking, run and its evidence.

Synchronous; the caller holds the session's lock, or is the only process that works on the folder. Writes nothing.
outbound.db is hostile: what cannot be read of it is told as unreadable, and never taken for silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from daemon.core.run_state import Answer, Ending, Life, RunEvidence, RunStatus, Source, judge, outcome_of
from daemon.core.stale_plan import Seen
from daemon.inspect.content import answered_ids, error_of
from daemon.store import outbound
from daemon.store.messages import chunks, marks
from daemon.store.registry import SessionKey
from daemon.store.session_files import SessionFiles
from schema.connect import Reader
from schema.errors import FileBusyError, HostileFileError, ReadDeadlineError, ReadRaceError
from schema.instants import from_text
from schema.rows import Ack, AckStatus, MessageStatus

_EVENTS: Final[Mapping[str, RunStatus]] = MappingProxyType(
    {
        "completed": RunStatus.COMPLETED,
        "failed": RunStatus.FAILED,
        "cancelled": RunStatus.CANCELLED,
        "retry_scheduled": RunStatus.ORPHANED,
        "released": RunStatus.RELEASED,
        "deferred": RunStatus.RELEASED,
    }
)
_ANSWERS: Final = 2000  # outbound rows that are looked through for answers, newest first
_MESSAGES: Final = 10_000
# Open messages; messages with an attempt that has no end; and finished ones whose history does not say so.
_SUSPECTS: Final = (
    "SELECT id, status, void_ack FROM messages_in WHERE status IN ('pending', 'paused')"
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


@dataclass(slots=True)
class _Out:
    """What outbound.db says of the suspects."""

    acks: Mapping[str, Ack] = field(default_factory=dict[str, Ack])
    answers: Mapping[str, list[Answer]] = field(default_factory=dict[str, list[Answer]])
    unreadable: frozenset[Source] = frozenset()


def read_runs(files: SessionFiles, key: SessionKey, around: Surroundings) -> list[Seen]:
    """Every suspect run of one session, judged. Raises what opening inbound.db raises."""
    with files.inbound() as db:
        return runs_in(db, files, key, around)


def runs_in(db: Reader, files: SessionFiles, key: SessionKey, around: Surroundings) -> list[Seen]:
    """Return the runs over an open inbound.db: inside its transaction nothing changes until what follows."""
    rows = db.all(_SUSPECTS)
    suspects = {row["id"]: MessageStatus(row["status"] or "pending") for row in rows}
    names = list(suspects)
    out = _read_out(files, names)
    void = {row["id"]: row["void_ack"] for row in rows if row["void_ack"] is not None}
    # A "later" ends nothing, and a void ack is about another message of that id.
    out.acks = {
        message_id: ack for message_id, ack in out.acks.items()
        if ack.status is not AckStatus.LATER and ack.changed_text != void.get(message_id)
    }  # fmt: skip
    attempts = _grouped(db, "attempts", names)
    history = _grouped(db, "message_history", names)
    found: list[Seen] = []
    for message_id, status in suspects.items():
        evidence = _evidence(message_id, status, attempts[message_id], history[message_id], out, around)
        found += [Seen(*key, one, judge(one), around.alive, status) for one in evidence]
    return found


def _grouped(db: Reader, table: str, names: Sequence[str]) -> defaultdict[str, list[dict[str, object]]]:
    rows: defaultdict[str, list[dict[str, object]]] = defaultdict(list)
    order = "id" if table == "message_history" else "incarnation"
    for chunk in chunks(names):
        for row in db.all(f"SELECT * FROM {table} WHERE message_id IN ({marks(chunk)}) ORDER BY {order}", chunk):
            rows[row["message_id"]].append(dict(row))
    return rows


def _read_out(files: SessionFiles, names: Sequence[str]) -> _Out:
    try:
        with files.outbound_copy() as reader:
            if reader is None:
                return _Out()
            return _Out(outbound.acks_for(reader, names), _answers(reader, frozenset(names)))
    except (HostileFileError, ReadRaceError, ReadDeadlineError, FileBusyError):
        return _Out(unreadable=frozenset({Source.TRACE, Source.FINISH}))


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
    return found


def _evidence(
    message_id: str,
    status: MessageStatus,
    attempts: Sequence[Mapping[str, object]],
    history: Sequence[Mapping[str, object]],
    out: _Out,
    around: Surroundings,
) -> Iterator[RunEvidence]:
    """Return the message's latest run, and every earlier one whose attempt is open."""
    ack = out.acks.get(message_id)
    known = {str(row["incarnation"]): row for row in attempts}
    names = sorted({*known, *((ack.incarnation,) if ack is not None and ack.incarnation is not None else ())})
    latest = names[-1] if names else None
    for incarnation in names or [None]:
        attempt = known.get(incarnation) if incarnation is not None else None
        is_latest = incarnation == latest
        if not is_latest and (attempt is None or attempt["outcome"] is not None):
            continue
        own_ack = (
            ack
            if ack is not None and (ack.incarnation == incarnation or (ack.incarnation is None and is_latest))
            else None
        )
        processing = own_ack is not None and own_ack.status is AckStatus.PROCESSING
        claimed_at = (
            attempt["claimed_at"]
            if attempt is not None
            else own_ack.changed_at
            if own_ack is not None and processing
            else None
        )
        outcome = attempt["outcome"] if attempt is not None else None
        yield RunEvidence(
            message_id=message_id,
            incarnation=incarnation,
            now=around.now,
            listed=status,
            latest=is_latest,
            answers=tuple(out.answers.get(message_id, ())) if is_latest else (),
            life=around.life(incarnation) if incarnation is not None else Life.UNKNOWN,
            gone_at=around.gone_at.get(incarnation) if incarnation is not None else None,
            endings=_endings(history, incarnation, is_latest=is_latest),
            claimed_at=claimed_at if isinstance(claimed_at, int) else None,
            claimed=attempt is not None or processing,
            attempted=attempt is not None,
            outcome=outcome_of(outcome),
            ended_at=attempt["ended_at"] if attempt is not None and isinstance(attempt["ended_at"], int) else None,
            ack=own_ack.status if own_ack is not None else None,
            ack_at=own_ack.changed_at if own_ack is not None else None,
            synced=around.synced,
            unreadable=out.unreadable,
        )  # fmt: skip


def _endings(
    history: Sequence[Mapping[str, object]], incarnation: str | None, *, is_latest: bool
) -> tuple[Ending, ...]:
    """Rows that end this run. One without an incarnation (an operator's, an older runner's) is about the latest."""
    return tuple(
        Ending(_EVENTS[str(row["event"])], int(str(row["at"])))
        for row in history
        if row["event"] in _EVENTS and (row["incarnation"] == incarnation or (row["incarnation"] is None and is_latest))
    )
