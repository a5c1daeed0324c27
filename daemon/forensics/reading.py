"""Reads the evidence about one session's runs from its two files. Bounded, read-only, the daemon up or down.

outbound.db is opened as hostile input only, and a file that cannot be read is a missing source, never an exception.
Inside the daemon this runs under the session's lock (`Session.call`); see daemon/ops/reports.py for why.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from daemon.forensics.truth import (
    FINISHED,
    Answer,
    Ending,
    Life,
    RunEvidence,
    RunStatus,
    Source,
    Verdict,
    judge,
)
from daemon.ops.content import answered_ids, error_of, preview
from daemon.ops.session_reading import open_inbound, table_rows
from daemon.store import outbound
from daemon.store.messages import chunks, marks
from schema.connect import Reader, ReadLimits, open_outbound_reader
from schema.errors import ClawbusError
from schema.ids import is_message_id
from schema.instants import from_text
from schema.layout import SessionFolder
from schema.rows import Ack, AckStatus, MessageStatus, ToolInFlight

MAX_SUSPECTS: Final = 1000
_LOOK_BACK: Final = 5000  # how many of the newest messages are checked for a history
_NEWEST_ANSWERS: Final = 2000
_CONTENT: Final = "substr(content, 1, 8192) AS content"
_ENDINGS: Final = ("completed", "failed", "cancelled", "retry_scheduled", "released", "migrated")
_FINAL: Final = "('completed', 'failed', 'cancelled', 'migrated')"


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known of a session apart from its files.

    `alive`: incarnations whose container the runtime lists, None when it could not be asked. `incarnations`: this
    session's rows of central.db by id, empty when that cannot be read. `synced`: a daemon runs. `now` is epoch ms.
    """

    now: int
    synced: bool
    alive: frozenset[str] | None = None
    incarnations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def life(self, incarnation: str | None) -> Life:
        """Whether an incarnation's container lives. The runtime's word first, then a recorded exit."""
        if incarnation is None:
            return Life.GONE
        if self.alive is not None:
            return Life.ALIVE if incarnation in self.alive else Life.GONE
        row = self.incarnations.get(incarnation)
        return Life.GONE if row is not None and row.get("ended_at") is not None else Life.UNKNOWN

    def ended_at(self, incarnation: str | None) -> int | None:
        """When its exit was confirmed, if it was."""
        row = self.incarnations.get(incarnation) if incarnation is not None else None
        return row.get("ended_at") if row is not None else None

    def born_at(self, incarnation: str | None) -> int | None:
        """When it was recorded: nothing older is evidence about it."""
        row = self.incarnations.get(incarnation) if incarnation is not None else None
        return row.get("created_at") if row is not None else None


@dataclass(frozen=True, slots=True)
class MessageSeen:
    """The message of a run, as a list shows it. `text` is the first words, of whoever sent it."""

    message_id: str
    seq: int
    kind: str
    status: MessageStatus
    text: str
    accepted_at: int | None
    process_after: int | None
    tries: int
    trigger: bool


@dataclass(frozen=True, slots=True)
class RunRead:
    """One run: its evidence and the verdict on it."""

    message: MessageSeen
    evidence: RunEvidence
    verdict: Verdict

    @property
    def run_id(self) -> str:
        """MESSAGE@INCARNATION; the message's id alone while nobody has claimed it."""
        seen = self.evidence
        return seen.message_id if seen.incarnation is None else f"{seen.message_id}@{seen.incarnation}"

    @property
    def at(self) -> int:
        """When something last happened to it, epoch ms; 0 when nothing is dated."""
        seen = self.evidence
        marks_ = (self.message.accepted_at, seen.claimed_at, seen.ended_at, self.verdict.since)
        return max((mark for mark in marks_ if mark is not None), default=0)


@dataclass(slots=True)
class RunsRead:
    """What a look found. `errors` name the files that could not be read."""

    runs: list[RunRead] = field(default_factory=list[RunRead])
    errors: list[str] = field(default_factory=list[str])
    heartbeat_at: int | None = None
    tool: ToolInFlight | None = None
    news: bool = False  # outbound.db has rows that the host has taken no note of


@dataclass(slots=True)
class _Host:
    messages: list[MessageSeen] = field(default_factory=list[MessageSeen])
    attempts: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    endings: dict[str, list[tuple[str | None, Ending]]] = field(
        default_factory=dict[str, list[tuple[str | None, Ending]]]
    )


@dataclass(slots=True)
class _Box:
    acks: dict[str, Ack] = field(default_factory=dict[str, Ack])
    answers: dict[str, list[Answer]] = field(default_factory=dict[str, list[Answer]])
    unreadable: frozenset[Source] = frozenset()
    newest: list[str] | None = None  # ids of answers, when the cursor says nothing of this very file


def read_runs_of(folder: SessionFolder, ids: Sequence[str], scene: Scene, limits: ReadLimits) -> RunsRead:
    """Every run of the named messages, in the order of their messages, then of their claims."""
    return _read(folder, scene, limits, lambda reader: _named(reader, ids))


def read_newest_runs(folder: SessionFolder, limit: int, scene: Scene, limits: ReadLimits) -> RunsRead:
    """The runs of the newest `limit` messages, and of every message that is claimed."""
    return _read(folder, scene, limits, lambda reader: _newest(reader, limit))


def read_suspect_runs(folder: SessionFolder, scene: Scene, limits: ReadLimits) -> RunsRead:
    """The runs that may disagree: unfinished messages, open attempts, and statuses without their history."""
    return _read(folder, scene, limits, _suspects)


def _read(
    folder: SessionFolder, scene: Scene, limits: ReadLimits, select: Callable[[Reader], list[sqlite3.Row]]
) -> RunsRead:
    found, host, box = RunsRead(), _Host(), _Box()
    cursor: tuple[int, str] | None = None
    try:
        with open_inbound(folder) as reader:
            rows = select(reader)
            _read_host(reader, rows, host)
            cursor = _cursor(reader)
    except ClawbusError as error:
        found.errors.append(f"{error.code}: {error}")
        return found
    try:
        _read_box(folder, limits, [message.message_id for message in host.messages], box, found, cursor)
        if box.newest is not None:
            with open_inbound(folder) as reader:
                found.news = _any_unknown(reader, box.newest)
    except ClawbusError as error:
        found.errors.append(f"{error.code}: {error}")
        box = _Box(unreadable=frozenset({Source.TRACE, Source.FINISH}))
    for message in host.messages:
        found.runs += _runs_of(message, host, box, scene)
    return found


# --- inbound.db


def _named(reader: Reader, ids: Sequence[str]) -> list[sqlite3.Row]:
    found: list[sqlite3.Row] = []
    for chunk in chunks(list(dict.fromkeys(ids))):
        found += reader.all(f"SELECT *, {_CONTENT} FROM messages_in WHERE id IN ({marks(chunk)}) ORDER BY seq", chunk)
    return found


def _newest(reader: Reader, limit: int) -> list[sqlite3.Row]:
    newest = [row["id"] for row in reader.all("SELECT id FROM messages_in ORDER BY seq DESC LIMIT ?", (limit,))]
    return _named(reader, [*newest, *_open_attempts(reader)])


def _suspects(reader: Reader) -> list[sqlite3.Row]:
    pending = "SELECT id FROM messages_in WHERE status IS NULL OR status = 'pending' ORDER BY trigger = 0, seq LIMIT ?"
    if "trigger" not in reader.columns("messages_in"):
        pending = pending.replace("trigger = 0, ", "")
    ids = [row["id"] for row in reader.all(pending, (MAX_SUSPECTS,))] + _open_attempts(reader)
    silent = (
        f"SELECT id FROM (SELECT id, status FROM messages_in ORDER BY seq DESC LIMIT {_LOOK_BACK}) AS m"
        " WHERE status IN ('completed', 'failed', 'cancelled') AND NOT EXISTS (SELECT 1 FROM message_history AS h"
        f" WHERE h.message_id = m.id AND h.event IN {_FINAL}) LIMIT ?"
    )
    ids += [row["id"] for row in table_rows(reader, "message_history", silent, MAX_SUSPECTS)]
    return _named(reader, ids)


def _open_attempts(reader: Reader) -> list[str]:
    sql = "SELECT message_id FROM attempts WHERE outcome IS NULL LIMIT ?"
    return [row["message_id"] for row in table_rows(reader, "attempts", sql, MAX_SUSPECTS)]


def _cursor(reader: Reader) -> tuple[int, str] | None:
    rows = table_rows(reader, "delivery_cursor", "SELECT * FROM delivery_cursor WHERE id = 1")
    return (int(rows[0]["seq"]), str(rows[0]["file_id"] or "")) if rows else None


def _any_unknown(reader: Reader, ids: Sequence[str]) -> bool:
    """Whether the host has neither a receipt of one of these answers nor tracks it: a restored file is another file."""
    known: set[str] = set()
    for chunk in chunks(ids):
        for name in ("delivered", "delivery_attempts"):
            sql = f"SELECT message_out_id FROM {name} WHERE message_out_id IN ({marks(chunk)})"
            known.update(str(row["message_out_id"]) for row in table_rows(reader, name, sql, *chunk))
    return not known.issuperset(ids)


def _read_host(reader: Reader, rows: Iterable[sqlite3.Row], host: _Host) -> None:
    host.messages = [_message(row) for row in rows]
    for chunk in chunks([message.message_id for message in host.messages]):
        attempts = f"SELECT * FROM attempts WHERE message_id IN ({marks(chunk)}) ORDER BY claimed_at, incarnation"
        for row in table_rows(reader, "attempts", attempts, *chunk):
            host.attempts.setdefault(row["message_id"], []).append(dict(row))
        history = (
            f"SELECT * FROM message_history WHERE message_id IN ({marks(chunk)})"
            f" AND event IN ({marks(_ENDINGS)}) ORDER BY id"
        )
        for row in table_rows(reader, "message_history", history, *chunk, *_ENDINGS):
            ending = _ending(row)
            if ending is not None:
                host.endings.setdefault(row["message_id"], []).append((row["incarnation"], ending))


def _message(row: sqlite3.Row) -> MessageSeen:
    values = dict(row)
    return MessageSeen(
        message_id=str(values["id"]),
        seq=values.get("seq") or 0,
        kind=str(values.get("kind")),
        status=_status(values.get("status")),
        text=preview(str(row[-1]), 120),
        accepted_at=from_text(values.get("timestamp")),
        process_after=from_text(values.get("process_after")),
        tries=values.get("tries") or 0,
        trigger=bool(values.get("trigger", 1)),
    )


def _status(value: object) -> MessageStatus:
    try:
        return MessageStatus(cast("str", value))
    except ValueError:
        return MessageStatus.PENDING


def _ending(row: sqlite3.Row) -> Ending | None:
    try:
        detail = cast("object", json.loads(row["detail"] or "{}"))
    except (ValueError, TypeError, RecursionError):
        detail = {}
    fields = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
    name = {"retry_scheduled": "orphaned", "migrated": str(fields.get("status"))}.get(row["event"], row["event"])
    try:
        status = RunStatus(name)
    except ValueError:
        return None  # a message that was pending, or paused, when its folder was taken over
    reason = fields.get("reason") or fields.get("error") or fields.get("code")
    return Ending(status, row["at"], str(reason)[:500] if reason is not None else None)


# --- outbound.db


def _read_box(
    folder: SessionFolder,
    limits: ReadLimits,
    ids: Sequence[str],
    box: _Box,
    found: RunsRead,
    cursor: tuple[int, str] | None,
) -> None:
    found.heartbeat_at = outbound.heartbeat_at(folder)
    reader = open_outbound_reader(folder.outbox, limits)
    if reader is None:
        return
    with reader:
        # The container wrote the stamp: what cannot be an incarnation's id becomes no part of a run's.
        acks = outbound.acks_for(reader, ids).values()
        box.acks = {
            ack.message_id: ack if is_message_id(ack.incarnation) else replace(ack, incarnation=None) for ack in acks
        }
        found.tool = outbound.tool_in_flight(reader)
        seen = cursor[0] if cursor is not None and cursor[1] in ("", reader.file_id) else 0
        found.news = outbound.has_after(reader, seen)
        if found.news and seen == 0 and reader.columns("messages_out"):
            newest = reader.all("SELECT id FROM messages_out ORDER BY seq DESC LIMIT ?", (_NEWEST_ANSWERS,))
            box.newest = [str(row["id"]) for row in newest]
        if reader.columns("messages_out") and ids:
            _read_answers(reader, frozenset(ids), box)


def _read_answers(reader: Reader, ids: frozenset[str], box: _Box) -> None:
    """Answers to these messages among the newest: by in_reply_to, or by the ids that an answer to several lists."""
    newest = (
        f"SELECT id, in_reply_to, timestamp, {_CONTENT} FROM messages_out ORDER BY seq DESC LIMIT {_NEWEST_ANSWERS}"
    )
    rows = reader.all(newest)
    if len(rows) == _NEWEST_ANSWERS:
        for chunk in chunks(sorted(ids)):
            older = (
                f"SELECT id, in_reply_to, timestamp, {_CONTENT} FROM messages_out WHERE in_reply_to IN ({marks(chunk)})"
            )
            rows += reader.all(f"{older} LIMIT {_NEWEST_ANSWERS}", chunk)
    known: set[tuple[str, str]] = set()
    for row in reversed(rows):
        content = str(row["content"])
        named = answered_ids(content) if '"answers"' in content else frozenset[str]()
        for message_id in ({str(row["in_reply_to"])} | named) & ids:
            identity = str(row["id"])[:200]
            if (message_id, identity) not in known:
                known.add((message_id, identity))
                error = error_of(content)
                answer = Answer(identity, from_text(row["timestamp"]), error[:500] if error is not None else None)
                box.answers.setdefault(message_id, []).append(answer)


# --- from rows to runs


def _runs_of(message: MessageSeen, host: _Host, box: _Box, scene: Scene) -> list[RunRead]:
    attempts = host.attempts.get(message.message_id, [])
    ack = box.acks.get(message.message_id)
    endings = host.endings.get(message.message_id, [])
    names: list[str | None] = [attempt["incarnation"] for attempt in attempts]
    if ack is not None and ack.incarnation is not None and ack.incarnation not in names:
        names.append(ack.incarnation)  # claimed, and the host has not seen it yet
    if _waits(message, attempts, names, endings):
        names.append(None)
    of_ack = _of_ack(ack, attempts, names)
    of_answers = of_ack if ack is not None and ack.status is not AckStatus.PROCESSING else None
    runs: list[RunRead] = []
    for index, name in enumerate(names):
        latest = index == len(names) - 1
        attempt = next((item for item in attempts if item["incarnation"] == name), None)
        own_ack = ack if ack is not None and name == of_ack else None
        answers = [
            item for item in box.answers.get(message.message_id, ())
            if name == (of_answers or _at_work(item.at, attempts, names))
        ]  # fmt: skip
        own = [ending for by, ending in endings if by == name or (by is None and latest)]
        evidence = _evidence(message, name, scene, attempt, own_ack, latest=latest)
        evidence = _with(evidence, answers, own, box.unreadable)
        runs.append(RunRead(message, evidence, judge(evidence)))
    return runs


def _waits(
    message: MessageSeen,
    attempts: Sequence[Mapping[str, Any]],
    names: Sequence[str | None],
    endings: Sequence[tuple[str | None, Ending]],
) -> bool:
    """Whether there is a run that nobody has claimed: the first of a message, or the next one after an interruption."""
    if not names:
        return True
    if message.status not in (MessageStatus.PENDING, MessageStatus.PAUSED) or len(names) > len(attempts):
        return False
    interrupted = attempts[-1]["outcome"] in ("orphaned", "released")
    return interrupted and not any(ending.status in FINISHED for _, ending in endings)


def _of_ack(ack: Ack | None, attempts: Sequence[Mapping[str, Any]], names: Sequence[str | None]) -> str | None:
    """Whose ack this is; of a runner that stamps none: of the one that worked at its time."""
    if ack is None:
        return None
    return ack.incarnation if ack.incarnation is not None else _at_work(ack.changed_at, attempts, names)


def _at_work(at: int | None, attempts: Sequence[Mapping[str, Any]], names: Sequence[str | None]) -> str | None:
    """The last incarnation that had claimed the message by then."""
    begun = [item["incarnation"] for item in attempts if at is None or (item["claimed_at"] or 0) <= at]
    claimed = [name for name in names if name is not None]
    return begun[-1] if begun else claimed[0] if claimed else None


def _evidence(
    message: MessageSeen,
    name: str | None,
    scene: Scene,
    attempt: Mapping[str, Any] | None,
    ack: Ack | None,
    *,
    latest: bool,
) -> RunEvidence:
    outcome = attempt["outcome"] if attempt is not None else None
    working = ack is not None and ack.status is AckStatus.PROCESSING
    claimed_at = attempt["claimed_at"] if attempt is not None else None
    if claimed_at is None and working and ack is not None:
        claimed_at = ack.changed_at
    return RunEvidence(
        message_id=message.message_id,
        incarnation=name,
        now=scene.now,
        listed=message.status,
        latest=latest,
        life=scene.life(name),
        gone_at=scene.ended_at(name),
        claimed_at=claimed_at,
        claimed=(attempt is not None and outcome is None) or (working and outcome is None),
        attempted=attempt is not None,
        outcome=RunStatus(outcome) if outcome in ("completed", "failed", "orphaned", "released") else None,
        ended_at=attempt["ended_at"] if attempt is not None else None,
        ack=ack.status if ack is not None else None,
        ack_at=ack.changed_at if ack is not None else None,
        synced=scene.synced,
    )


def _with(
    seen: RunEvidence, answers: Sequence[Answer], endings: Sequence[Ending], unreadable: frozenset[Source]
) -> RunEvidence:
    return replace(seen, answers=tuple(answers), endings=tuple(endings), unreadable=unreadable)
