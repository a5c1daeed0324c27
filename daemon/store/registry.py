"""central.db: which sessions exist, which have work, which incarnations are live. Only the daemon writes it.

Synchronous; callers use a worker thread. It never opens a session's files. Only the first open may create the file: if it is
gone or replaced later, that is an error, never an empty registry (see `daemon/store/rebuild.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from daemon.core.deploy_errors import FencedError
from daemon.core.egress_usage import UsageRow
from daemon.core.errors import RegistryGoneError
from daemon.store import egress_usage, incarnation_pruning, session_deletions, verified_idle, workers
from daemon.store.dead_letters import Operator
from daemon.store.file_anchor import FileAnchor
from daemon.store.pruned import note
from daemon.store.verified_idle import Verified
from schema.connect import open_owner
from schema.handles import Writer
from schema.ids import new_id
from schema.migrate import Role

T = TypeVar("T")


class SessionKey(NamedTuple):
    """A session's name: its agent group and its own name, both checked to be safe as path components."""

    agent: str
    session: str

    def __str__(self) -> str:
        return f"{self.agent}/{self.session}"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A row of sessions. Times are epoch milliseconds."""

    key: SessionKey
    active: bool
    next_due_at: int | None
    quarantine_reason: str | None
    spawn_failures: int
    next_spawn_at: int | None
    last_spawn_error: str | None


@dataclass(frozen=True, slots=True)
class IncarnationRow:
    """A row of incarnations."""

    id: str
    key: SessionKey
    runtime: str
    fingerprint: str
    container_id: str | None
    created_at: int
    started_at: int | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What the registry knows without opening sessions: the quarantined ones, and open dead letters by session."""

    quarantined: tuple[SessionKey, ...] = ()
    dead_letters: Mapping[SessionKey, int] = field(default_factory=dict[SessionKey, int])


@dataclass(frozen=True, slots=True)
class Memory:
    """What a running daemon knows about its registry without reading the file."""

    install_id: str
    sessions: frozenset[SessionKey]
    quarantined: Mapping[SessionKey, str]
    live: tuple[IncarnationRow, ...]


class Registry:
    """Reads and writes central.db, opening it for each operation. After the first one, it must stay the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._anchor: FileAnchor | None = None  # the file that was opened first
        self._epoch = 0  # of the slot that this daemon serves in; 0 without slots
        self._worker: str | None = None  # the worker that makes claims; None if none is registered

    def last_epoch(self) -> int:
        """Return the last epoch that claims were made in; 0 without slots."""
        with self._open() as db:
            row = db.one("SELECT epoch FROM serving WHERE id = 1")
        return int(row["epoch"]) if row is not None else 0

    def take_epoch(self, epoch: int | None) -> None:
        """Make claims in this epoch from now on; None: in the last one, for a daemon without a slot.

        To be called by the daemon that holds the data folder's lock. Raise FencedError when a later one was recorded.
        """
        if epoch is None:
            self._epoch = self.last_epoch()
            return
        with self._open() as db, db.transaction():
            _check_epoch(db, epoch)
            db.execute("INSERT OR REPLACE INTO serving(id, epoch) VALUES (1, ?)", (epoch,))
        self._epoch = epoch

    def claim_as(self, worker: str) -> None:
        """Make claims in the name of a registered worker from now on."""
        self._worker = worker

    def confirm_epoch(self) -> None:
        """Raise FencedError when another slot's daemon has taken over."""
        with self._open() as db:
            _check_epoch(db, self._epoch)

    def install_id(self, now_ms: int, kept: str | None = None) -> str:
        """Return this installation's id. A file without one gets `kept`, or a new id."""
        with self._open() as db, db.transaction():
            db.execute(
                "INSERT OR IGNORE INTO install(id, install_id, created_at) VALUES (1, ?, ?)",
                (kept or new_id(now_ms).lower(), now_ms),
            )
            row = db.one("SELECT install_id FROM install WHERE id = 1")
        assert row is not None
        return str(row["install_id"])

    def begin_install(self, install_id: str, now_ms: int) -> None:
        """Become a new installation. The containers on record belong to the old one, so none of them is ours any longer."""
        with self._open() as db, db.transaction():
            db.execute("UPDATE install SET install_id = ?, created_at = ? WHERE id = 1", (install_id, now_ms))
            db.execute("UPDATE incarnations SET ended_at = ?, end_reason = 'copied' WHERE ended_at IS NULL", (now_ms,))

    def session(self, key: SessionKey) -> SessionRow | None:
        """Return one session, or None."""
        with self._open() as db:
            row = db.one("SELECT * FROM sessions WHERE agent = ? AND session = ?", key)
        return _session(row) if row is not None else None

    def with_work(self) -> list[SessionRow]:
        """Return the sessions that are marked active, or that will have work at a known time."""
        with self._open() as db:
            rows = db.all(
                "SELECT * FROM sessions WHERE active = 1 UNION SELECT * FROM sessions WHERE next_due_at IS NOT NULL"
            )
        return [_session(row) for row in rows]

    def all_keys(self, after: SessionKey | None, limit: int) -> list[SessionKey]:
        """Return a page of all sessions in key order, for the slow full pass."""
        last = after if after is not None else SessionKey("", "")
        with self._open() as db:
            rows = db.all(
                "SELECT agent, session FROM sessions WHERE (agent, session) > (?, ?) ORDER BY agent, session LIMIT ?",
                (*last, limit),
            )
        return [SessionKey(row["agent"], row["session"]) for row in rows]

    def count_sessions(self) -> int:
        """Return the number of sessions."""
        with self._open() as db:
            row = db.one("SELECT count(*) AS n FROM sessions")
        return int(row["n"]) if row is not None else 0

    def activate(self, key: SessionKey, now_ms: int) -> None:
        """Record the session and that it has work. Call this before writing its first row of work."""
        with self._open() as db, db.transaction():
            db.execute(
                "INSERT INTO sessions(agent, session, created_at, active) VALUES (?, ?, ?, 1)"
                " ON CONFLICT(agent, session) DO UPDATE SET active = 1",
                (*key, now_ms),
            )

    def deactivate(
        self, key: SessionKey, next_due_at: int | None, dead_letters: int | None = None, schedules: int | None = None
    ) -> None:
        """Record that the session has no work, or none before `next_due_at`, its open dead letters, and whether it has schedules.

        None leaves a number unchanged.

        Write nothing if nothing changes: the slow full pass calls this for every session, and the commits would be most of its
        cost.
        """
        with self._open() as db, db.transaction():
            db.execute(
                "UPDATE sessions SET active = 0, next_due_at = ?1, dead_letters = coalesce(?2, dead_letters),"
                " schedules = coalesce(?3, schedules) WHERE agent = ?4 AND session = ?5"
                " AND (active <> 0 OR next_due_at IS NOT ?1 OR dead_letters IS NOT coalesce(?2, dead_letters)"
                " OR schedules IS NOT coalesce(?3, schedules))",
                (next_due_at, dead_letters, schedules, *key),
            )

    def totals(self) -> Totals:
        """Return the totals, without opening a session. The cost depends on the number of quarantines and dead letters."""
        with self._open() as db:
            quarantined = db.all("SELECT agent, session FROM sessions WHERE quarantined_at IS NOT NULL")
            dead = db.all("SELECT agent, session, dead_letters FROM sessions WHERE dead_letters > 0")
        return Totals(
            tuple(SessionKey(row["agent"], row["session"]) for row in quarantined),
            {SessionKey(row["agent"], row["session"]): int(row["dead_letters"]) for row in dead},
        )

    def probe(self) -> None:
        """Open and read the file, to raise what an operation would raise now."""
        with self._open() as db:
            db.one("SELECT 1 FROM sessions LIMIT 1")

    def quarantine(self, key: SessionKey, reason: str, now_ms: int) -> None:
        """Take the session out of service until an operator releases it."""
        self._update(key, "quarantined_at = ?, quarantine_reason = ?", (now_ms, reason))

    def release(self, key: SessionKey) -> None:
        """Put a quarantined session back into service, and clear its spawn failures."""
        self._update(
            key,
            "quarantined_at = NULL, quarantine_reason = NULL, spawn_failures = 0, next_spawn_at = NULL, active = 1",
            (),
        )

    def spawn_failed(self, key: SessionKey, failures: int, next_spawn_at: int, error: str) -> None:
        """Record a failed spawn and when the next may be tried."""
        self._update(
            key, "spawn_failures = ?, next_spawn_at = ?, last_spawn_error = ?", (failures, next_spawn_at, error[:500])
        )

    def spawn_recovered(self, key: SessionKey) -> None:
        """Forget past spawn failures."""
        self._update(key, "spawn_failures = 0, next_spawn_at = NULL, last_spawn_error = NULL", ())

    def begin_incarnation(self, row: IncarnationRow) -> bool:
        """Record an incarnation before its container exists. Return False if the session already has another live one.

        Raise FencedError when another slot's daemon has taken over, DuplicateOwnershipError when another daemon is
        registered for the agent.
        """
        with self._open() as db, db.transaction():
            _check_epoch(db, self._epoch)
            if self._worker is not None:
                workers.check_owner(db, self._worker, row.key.agent)
            taken = db.one("SELECT id FROM incarnations WHERE agent = ? AND session = ? AND ended_at IS NULL", row.key)
            if taken is not None:
                return taken["id"] == row.id
            db.execute(
                "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, created_at, epoch)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (row.id, *row.key, row.runtime, row.fingerprint, row.created_at, self._epoch),
            )
        return True

    def incarnation_started(self, incarnation: str, container_id: str, started_at: int) -> None:
        """Record that the incarnation's container runs."""
        with self._open() as db, db.transaction():
            db.execute(
                "UPDATE incarnations SET container_id = ?, started_at = ? WHERE id = ?",
                (container_id, started_at, incarnation),
            )

    def end_incarnation(self, incarnation: str, at: int, exit_code: int | None, reason: str) -> None:
        """Record a confirmed exit, after it has been settled. Safe to repeat."""
        with self._open() as db, db.transaction():
            db.execute(
                "UPDATE incarnations SET ended_at = ?, exit_code = ?, end_reason = ? WHERE id = ? AND ended_at IS NULL",
                (at, exit_code, reason, incarnation),
            )

    def prune_incarnations(self, cutoff: int, after: str, limit: int, now_ms: int) -> tuple[int, str | None]:
        """Delete those of the next `limit` incarnations after id `after` that ended before `cutoff`; keep each session's newest.

        Return how many were deleted, and the id to continue from, or None when no old ones follow. Times are epoch milliseconds.
        """
        with self._open() as db:
            return incarnation_pruning.prune(db, cutoff, after, limit, now_ms)

    def note_pruned(self, taken: Mapping[str, int], now_ms: int, through: int) -> None:
        """Add to the retention figures of `status`, for rows that were removed from other files. Times are epoch ms."""
        with self._open() as db, db.transaction():
            for what, rows in taken.items():
                note(db, what, rows, now_ms, through)

    def egress_days(self, first_day: str) -> list[UsageRow]:
        """Return what agents used at the gate from a day on."""
        with self._open() as db:
            return egress_usage.read_days(db, first_day)

    def write_egress(self, rows: Sequence[UsageRow], before: str) -> None:
        """Put totals of days and routes in the place of earlier ones; take away days before `before`."""
        with self._open() as db, db.transaction():
            egress_usage.write(db, rows, before)

    def live_incarnations(self) -> list[IncarnationRow]:
        """Return every incarnation without a confirmed exit."""
        with self._open() as db:
            rows = db.all("SELECT * FROM incarnations WHERE ended_at IS NULL ORDER BY id")
        return [
            IncarnationRow(
                id=row["id"],
                key=SessionKey(row["agent"], row["session"]),
                runtime=row["runtime"],
                fingerprint=row["fingerprint"],
                container_id=row["container_id"],
                created_at=row["created_at"],
                started_at=row["started_at"],
            )
            for row in rows
        ]

    def ended_incarnations(self, key: SessionKey) -> dict[str, int]:
        """Return when a session's incarnations exited (epoch milliseconds), by id; the newest 10,000."""
        with self._open() as db:
            rows = db.all(
                "SELECT id, ended_at FROM incarnations WHERE agent = ? AND session = ? AND ended_at IS NOT NULL"
                " ORDER BY created_at DESC LIMIT 10000",
                key,
            )
        return {row["id"]: row["ended_at"] for row in rows}

    def begin_deletion(self, deletion: str, key: SessionKey, now_ms: int, operator: Operator) -> None:
        """Delete the session and its incarnations from the registry, and record that it is being deleted."""
        with self._open() as db, db.transaction():
            session_deletions.begin(db, deletion, key, now_ms, operator)

    def undo_deletion(self, deletion: str, key: SessionKey, now_ms: int) -> None:
        """Undo a deletion whose folder could not be moved to the trash: the session exists as before."""
        with self._open() as db, db.transaction():
            session_deletions.forget(db, deletion)
            _insert_sessions(db, [key], now_ms)

    def deletion_moved(self, deletion: str) -> None:
        """Record that the folder is in the trash: from now on a session with that name is a new one."""
        with self._open() as db, db.transaction():
            session_deletions.note_moved(db, deletion)

    def deletion_done(self, deletion: str, now_ms: int) -> None:
        """Record that the deletion is complete."""
        with self._open() as db, db.transaction():
            session_deletions.note_done(db, deletion, now_ms)

    def open_deletions(self) -> list[tuple[str, SessionKey, bool]]:
        """Return unfinished deletions: (id, session, whether its folder is in the trash)."""
        with self._open() as db:
            return [(one, SessionKey(*key), moved) for one, key, moved in session_deletions.unfinished(db)]

    def idle_sessions(self, after: SessionKey | None, limit: int, created_before: int) -> list[SessionKey]:
        """Return a page of sessions without work, quarantine, open dead letters or container, created before a time."""
        last = after if after is not None else SessionKey("", "")
        with self._open() as db:
            rows = db.all(
                "SELECT agent, session FROM sessions WHERE (agent, session) > (?, ?) AND active = 0 AND next_due_at IS NULL"
                " AND quarantined_at IS NULL AND dead_letters = 0 AND created_at < ?"
                " AND NOT EXISTS (SELECT 1 FROM incarnations AS one WHERE one.agent = sessions.agent"
                " AND one.session = sessions.session AND one.ended_at IS NULL) ORDER BY agent, session LIMIT ?",
                (*last, created_before, limit),
            )
        return [SessionKey(row["agent"], row["session"]) for row in rows]

    def verified_idle(
        self, now_ms: int, first: SessionKey, last: SessionKey, *, scheduled: bool = True
    ) -> dict[SessionKey, Verified]:
        """Return the records of sessions that were found idle, if central.db still knows of nothing to do in them."""
        with self._open() as db:
            found = verified_idle.recorded(db, now_ms, first, last, scheduled=scheduled)
        return {SessionKey(one.agent, one.session): one for one in found}

    def record_verified(self, found: Iterable[Verified]) -> None:
        """Record sessions whose files were read and found idle."""
        with self._open() as db, db.transaction():
            verified_idle.record(db, found)

    def add_sessions(self, keys: Iterable[SessionKey], now_ms: int) -> list[SessionKey]:
        """Record sessions whose folders were found, as having work. Return those that were not known before."""
        with self._open() as db:
            known = {SessionKey(row["agent"], row["session"]) for row in db.all("SELECT agent, session FROM sessions")}
            fresh = sorted(set(keys) - known)
            if fresh:
                with db.transaction():
                    _insert_sessions(db, fresh, now_ms)
        return fresh

    def with_file(self, work: Callable[[Writer], T]) -> T:
        """Return what `work` does with the open file; it makes its own transactions."""
        with self._open() as db:
            return work(db)

    def check(self) -> None:
        """Raise RegistryGoneError unless central.db is still the same file. Costs one stat."""
        if self._anchor is not None and not self._anchor.holds(self._path):
            raise RegistryGoneError(f"{self._path.name} was deleted, emptied or replaced while the daemon runs.")

    def remake(self, keys: Iterable[SessionKey], memory: Memory, now_ms: int) -> None:
        """Use the file that exists now, or create one, and update it with what the running daemon knows.

        Missing sessions are added as having work. Incarnations without a slot are recorded as ended.
        """
        with open_owner(self._path, Role.CENTRAL) as db, db.transaction():
            db.execute(
                "INSERT INTO install(id, install_id, created_at) VALUES (1, ?, ?)"
                " ON CONFLICT(id) DO UPDATE SET install_id = excluded.install_id",
                (memory.install_id, now_ms),
            )
            _insert_sessions(db, sorted({*keys, *memory.sessions}), now_ms)
            db.executemany(
                "UPDATE sessions SET quarantined_at = coalesce(quarantined_at, ?), quarantine_reason = ?"
                " WHERE agent = ? AND session = ?",
                [(now_ms, reason, *key) for key, reason in memory.quarantined.items()],
            )
            db.execute(
                "UPDATE incarnations SET ended_at = ?, end_reason = 'registry_replaced' WHERE ended_at IS NULL",
                (now_ms,),
            )
            db.executemany(
                "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, container_id, created_at, started_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET ended_at = NULL, end_reason = NULL",
                [
                    (row.id, *row.key, row.runtime, row.fingerprint, row.container_id, row.created_at, row.started_at)
                    for row in memory.live
                ],
            )
        self._anchor = FileAnchor(self._path)

    def _open(self) -> Writer:
        if self._anchor is None:
            db = open_owner(self._path, Role.CENTRAL)
            try:
                self._anchor = FileAnchor(self._path)
            except BaseException:
                db.close()
                raise
            return db
        self.check()
        return open_owner(self._path, Role.CENTRAL, create=False)

    def _update(self, key: SessionKey, assignments: str, values: tuple[object, ...]) -> None:
        with self._open() as db, db.transaction():
            db.execute(f"UPDATE sessions SET {assignments} WHERE agent = ? AND session = ?", (*values, *key))


def _check_epoch(db: Writer, epoch: int) -> None:
    row = db.one("SELECT epoch FROM serving WHERE id = 1")
    if row is not None and row["epoch"] > epoch:
        raise FencedError(f"this daemon claims in epoch {epoch}; epoch {row['epoch']} has begun.")


def _insert_sessions(db: Writer, keys: Iterable[SessionKey], now_ms: int) -> None:
    db.executemany(
        "INSERT INTO sessions(agent, session, created_at, active) VALUES (?, ?, ?, 1)"
        " ON CONFLICT(agent, session) DO NOTHING",
        [(*key, now_ms) for key in keys],
    )


def _session(row: sqlite3.Row) -> SessionRow:
    return SessionRow(
        key=SessionKey(row["agent"], row["session"]),
        active=bool(row["active"]),
        next_due_at=row["next_due_at"],
        quarantine_reason=row["quarantine_reason"],
        spawn_failures=row["spawn_failures"],
        next_spawn_at=row["next_spawn_at"],
        last_spawn_error=row["last_spawn_error"],
    )
