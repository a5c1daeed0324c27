"""central.db: which sessions exist, which have work, which incarnations are live. Only the daemon writes it.

Synchronous; callers use a worker thread. It never opens a session's files. Only the first open may create the file: if it is
gone or replaced later, that is an error, never an empty registry (see `daemon/store/rebuild.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from daemon.core.deploy_errors import FencedError
from daemon.core.egress_usage import UsageRow
from daemon.core.errors import RegistryGoneError
from daemon.core.session_key import SessionKey
from daemon.store import egress_usage, incarnations, session_deletions, session_rows, verified_idle, workers
from daemon.store.dead_letters import Operator
from daemon.store.file_anchor import FileAnchor
from daemon.store.incarnations import IncarnationRow
from daemon.store.pruned import note
from daemon.store.session_rows import SessionRow, Totals
from daemon.store.verified_idle import Verified
from schema.connect import open_owner
from schema.file_pool import FilePool
from schema.frozen import frozen
from schema.handles import Writer
from schema.ids import new_id
from schema.migrate import Role

T = TypeVar("T")


@frozen
class Memory:
    """What a running daemon knows about its registry without reading the file."""

    install_id: str
    sessions: frozenset[SessionKey]
    quarantined: Mapping[SessionKey, str]
    live: tuple[IncarnationRow, ...]


class Registry:
    """Reads and writes central.db and keeps it open between operations. After the first one, it must stay the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = FilePool(1)
        self._anchor: FileAnchor | None = None  # the file that was opened first
        self._epoch = 0  # the epoch of the slot that this daemon serves in; 0 without slots
        self._worker: str | None = None  # the worker that makes claims; None if none is registered
        self._is_ours: Callable[[str], None] | None = None  # raises for an agent that another daemon of this host owns

    def last_epoch(self) -> int:
        """Return the last epoch that claims were made in; 0 without slots."""
        with self._open() as db:
            row = db.one("SELECT epoch FROM serving WHERE id = 1")
        return int(row["epoch"]) if row is not None else 0

    def take_epoch(self, epoch: int | None) -> None:
        """Make claims in this epoch from now on; None: in the last one, for a daemon without a slot.

        To be called by the daemon that holds the data folder's lock. Raise FencedError when a later one was recorded.
        """
        if epoch in (None, last := self.last_epoch()):  # recorded already: also where nothing can be written now
            self._epoch = last
            return
        with self._open() as db, db.transaction():
            _check_epoch(db, epoch)
            db.execute("INSERT OR REPLACE INTO serving(id, epoch) VALUES (1, ?)", (epoch,))
        self._epoch = epoch

    def claim_as(self, worker: str, is_ours: Callable[[str], None] | None = None) -> None:
        """Make claims in the name of a registered worker from now on. `is_ours` raises for an agent of another's."""
        self._worker, self._is_ours = worker, is_ours

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
            incarnations.end_all(db, now_ms, "copied")

    def session(self, key: SessionKey) -> SessionRow | None:
        """Return one session, or None."""
        with self._open() as db:
            return session_rows.read(db, key)

    def with_work(self) -> list[SessionRow]:
        """Return the sessions that are marked active, or that will have work at a known time."""
        with self._open() as db:
            return session_rows.with_work(db)

    def all_keys(self, after: SessionKey | None, limit: int) -> list[SessionKey]:
        """Return a page of all sessions in key order, for the slow full pass."""
        with self._open() as db:
            return session_rows.page(db, after, limit)

    def count_sessions(self) -> int:
        """Return the number of sessions."""
        with self._open() as db:
            return session_rows.count(db)

    def activate(self, key: SessionKey, now_ms: int) -> None:
        """Record the session and that it has work. Call this before writing its first row of work."""
        with self._open() as db, db.transaction():
            session_rows.activate(db, key, now_ms)
            session_deletions.keep_folder(db, key)

    def deactivate(
        self, key: SessionKey, next_due_at: int | None, dead_letters: int | None = None, schedules: int | None = None
    ) -> None:
        """Record that the session has no work, or none before `next_due_at`, its open dead letters, and whether it has schedules.

        None leaves a number unchanged.
        """
        with self._open() as db, db.transaction():
            session_rows.deactivate(db, key, next_due_at, dead_letters, schedules)

    def totals(self) -> Totals:
        """Return the totals, without opening a session. The cost depends on the number of quarantines and dead letters."""
        with self._open() as db:
            return session_rows.totals(db)

    def probe(self) -> None:
        """Open and read the file, so that it raises the error that an operation would raise now."""
        with self._open() as db:
            db.one("SELECT 1 FROM sessions LIMIT 1")

    def quarantine(self, key: SessionKey, reason: str, now_ms: int) -> None:
        """Take the session out of service until an operator releases it."""
        with self._open() as db, db.transaction():
            session_rows.quarantine(db, key, reason, now_ms)

    def release(self, key: SessionKey) -> None:
        """Put a quarantined session back into service, and clear its spawn failures."""
        with self._open() as db, db.transaction():
            session_rows.release(db, key)

    def spawn_failed(self, key: SessionKey, failures: int, next_spawn_at: int, error: str) -> None:
        """Record a failed spawn and when the next may be tried."""
        with self._open() as db, db.transaction():
            session_rows.spawn_failed(db, key, failures, next_spawn_at, error)

    def spawn_recovered(self, key: SessionKey) -> None:
        """Forget past spawn failures."""
        with self._open() as db, db.transaction():
            session_rows.spawn_recovered(db, key)

    def begin_incarnation(self, row: IncarnationRow) -> bool:
        """Record an incarnation before its container exists. Return False if the session already has another live one.

        Raise FencedError when another slot's daemon has taken over, DuplicateOwnershipError when another daemon is
        registered for the agent.
        """
        with self._open() as db, db.transaction():
            _check_epoch(db, self._epoch)
            if self._worker is not None:
                workers.check_owner(db, self._worker, row.key.agent)
            if self._is_ours is not None:
                self._is_ours(row.key.agent)
            return incarnations.begin(db, row, self._epoch)

    def incarnation_started(self, incarnation: str, container_id: str, started_at: int) -> None:
        """Record that the incarnation's container runs."""
        with self._open() as db, db.transaction():
            incarnations.started(db, incarnation, container_id, started_at)

    def end_incarnation(self, incarnation: str, at: int, exit_code: int | None, reason: str) -> None:
        """Record a confirmed exit, after it has been settled. Safe to repeat."""
        with self._open() as db, db.transaction():
            incarnations.end(db, incarnation, at, exit_code, reason)

    def prune_incarnations(self, cutoff: int, after: str, limit: int, now_ms: int) -> tuple[int, str | None]:
        """Delete those of the next `limit` incarnations after id `after` that ended before `cutoff`; keep each session's newest.

        Return how many were deleted, and the id to continue from, or None when no old ones follow. Times are epoch milliseconds.
        """
        with self._open() as db:
            return incarnations.prune(db, cutoff, after, limit, now_ms)

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
            return incarnations.live(db)

    def ended_incarnations(self, key: SessionKey) -> dict[str, int]:
        """Return when a session's incarnations exited (epoch milliseconds), by id; the newest 10,000."""
        with self._open() as db:
            return incarnations.ended(db, key)

    def begin_deletion(self, deletion: str, key: SessionKey, now_ms: int, operator: Operator) -> None:
        """Delete the session and its incarnations from the registry, and record that it is being deleted."""
        with self._open() as db, db.transaction():
            session_deletions.begin(db, deletion, key, now_ms, operator)

    def undo_deletion(self, deletion: str, key: SessionKey, now_ms: int) -> None:
        """Undo a deletion whose folder could not be moved to the trash: the session exists as before."""
        with self._open() as db, db.transaction():
            session_deletions.forget(db, deletion)
            session_rows.insert(db, [key], now_ms)

    def deletion_moved(self, deletion: str, key: SessionKey) -> None:
        """Record that the folder is in the trash: from now on a session with that name is a new one."""
        with self._open() as db, db.transaction():
            session_deletions.note_moved(db, deletion, key)

    def deletion_done(self, deletion: str, now_ms: int) -> None:
        """Record that the deletion is complete."""
        with self._open() as db, db.transaction():
            session_deletions.note_done(db, deletion, now_ms)

    def open_deletions(self) -> list[tuple[str, SessionKey, bool]]:
        """Return unfinished deletions: (id, session, whether its folder is in the trash)."""
        with self._open() as db:
            return session_deletions.unfinished(db)

    def prune_deletions(self, cutoff: int) -> int:
        """Remove the records of deletions that ended before `cutoff` (epoch milliseconds); return how many there were."""
        with self._open() as db, db.transaction():
            return session_deletions.prune(db, cutoff)

    def idle_sessions(self, after: SessionKey | None, limit: int, created_before: int) -> list[SessionKey]:
        """Return a page of sessions without work, quarantine, open dead letters or container, created before a time."""
        with self._open() as db:
            return session_rows.idle_page(db, after, limit, created_before)

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

    def add_sessions(
        self, keys: Iterable[SessionKey], now_ms: int, is_there: Callable[[SessionKey], bool] = lambda _: True
    ) -> list[SessionKey]:
        """Record sessions whose folders were found, as having work. Return those that were not known before.

        Leave out those that are being deleted, and those that are not there any more when they are to be recorded.
        """
        with self._open() as db:
            going = {key for _, key, moved in session_deletions.unfinished(db) if not moved}
            fresh = [key for key in session_rows.unknown(db, keys) if key not in going and is_there(key)]
            if fresh:
                with db.transaction():
                    session_rows.insert(db, fresh, now_ms)
        return fresh

    def with_file(self, work: Callable[[Writer], T]) -> T:
        """Return what `work` does with the open file; it makes its own transactions."""
        with self._open() as db:
            return work(db)

    def check(self) -> None:
        """Raise RegistryGoneError unless central.db is still the same file. Costs one stat."""
        if self._anchor is not None and not self._anchor.holds(self._path):
            raise RegistryGoneError(f"{self._path.name} was deleted, emptied or replaced while the daemon runs.")

    def rebuild(self, keys: Iterable[SessionKey], memory: Memory, now_ms: int) -> None:
        """Use the file that exists now, or create one, and update it with what the running daemon knows.

        Missing sessions are added as having work. Incarnations without a slot are recorded as ended.
        """
        with open_owner(self._path, Role.CENTRAL) as db, db.transaction():
            db.execute(
                "INSERT INTO install(id, install_id, created_at) VALUES (1, ?, ?)"
                " ON CONFLICT(id) DO UPDATE SET install_id = excluded.install_id",
                (memory.install_id, now_ms),
            )
            session_rows.insert(db, sorted({*keys, *memory.sessions}), now_ms)
            session_rows.quarantine_again(db, memory.quarantined, now_ms)
            incarnations.end_all(db, now_ms, "registry_replaced")
            incarnations.insert_live(db, memory.live)
        self._anchor = FileAnchor(self._path)

    def _open(self) -> AbstractContextManager[Writer]:
        if self._anchor is not None:
            self.check()
        return self._kept.using(self._path, self._open_owner)

    def _open_owner(self) -> Writer:
        db = open_owner(self._path, Role.CENTRAL, create=self._anchor is None)
        if self._anchor is None:
            try:
                self._anchor = FileAnchor(self._path)
            except BaseException:
                db.close()
                raise
        return db


def _check_epoch(db: Writer, epoch: int) -> None:
    row = db.one("SELECT epoch FROM serving WHERE id = 1")
    if row is not None and row["epoch"] > epoch:
        raise FencedError(f"this daemon claims in epoch {epoch}; epoch {row['epoch']} has begun.")
