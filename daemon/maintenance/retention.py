"""Retention: takes what is done and old out of the host's own files, a small step at a time, over all sessions in turn.

It never decides what is done (`daemon/store/pruning.py` does), never writes a container's file (the runner prunes its own,
`container_runner/retention.py`), and holds a session's lock for one step only. A failure of one session ends with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import structlog

from daemon.config.models import Retention as RetentionConfig
from daemon.core.clock import Clock
from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.store import conversations
from daemon.store.expiry import ROW_GONE, RULE, drop_gone, expire_dead_letters
from daemon.store.mailbox import Mailbox
from daemon.store.mailbox_lives import forget_messages
from daemon.store.pruning import Step, prune_messages, prune_receipts, prune_records
from daemon.store.routes import prune_mentioned
from daemon.store.session_files import SessionFiles
from daemon.store.session_trash import remove_trash
from schema.errors import ClawbusError, ReadRaceError, StorageError
from schema.ids import time_of
from schema.os_faults import typed_host_errors

_PAGE: Final = 200
_BETWEEN_STEPS_S: Final = 0.02  # so that others can use the file
_BETWEEN_SESSIONS_S: Final = (
    2.0  # after a start every session is checked once; ten thousand must cost less than 1 % of a core
)
_DAY_S: Final = 86_400.0
_SLACK: Final = 30  # a session with unchanged files is checked again after this fraction of the age
_FIRST_S: Final = 60.0  # a start has better things to do; and a daemon that is restarted every day must get to it
_AGAIN_S: Final = 900.0  # after a pass that did not trust the clock
_JUMP_MS: Final = 600_000  # ages are not judged by a clock that has just moved by more than this
_UNDER_WAY_MS: Final = 3_600_000  # a deletion that began less long ago may still remove its folder
_MIN_FREE_BYTES: Final = 4 * 1024**2
_MAX_LIVE_BYTES: Final = 64 * 1024**2  # copied under the session's lock, so no more than a second or two of it

_Marks = tuple[int, tuple[int, int] | None]  # when each of a session's two files was last written
Prune = Callable[[SessionFiles, int, int, int, int], Step]


@dataclass(slots=True)
class LastPass:
    """What the last pass did, for `status`. `taken`: rows deleted, by kind; `given_back`: bytes by which files shrank."""

    at: int | None = None
    duration_ms: int = 0
    sessions: int = 0
    errors: int = 0
    given_back: int = 0
    taken: Counter[str] = field(default_factory=Counter[str])

    def note(self, what: str, rows: int) -> None:
        """Add rows that were deleted, if there were any."""
        if rows:
            self.taken[what] += rows


class Retention:
    """Built by the composition root; `run` in one task.

    `occupied`: whether a container holds the session's place. `forgot` is called after conversations were forgotten.
    """

    def __init__(
        self,
        sessions: Sessions,
        mailbox: Mailbox,
        config: RetentionConfig,
        clock: Clock,
        occupied: Callable[[SessionKey], bool],
        look: Callable[[SessionKey], None] = lambda _: None,
        delete: Callable[[SessionKey], Awaitable[object]] | None = None,
        forgot: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._delete = delete
        self._forgot = forgot
        self._sessions = sessions
        self._mailbox = mailbox
        self._config = config
        self._clock = clock
        self._occupied = occupied
        self._look = look
        self._log = structlog.get_logger("retention")
        self._offset_ms = self._offset()
        self._looked: dict[SessionKey, tuple[_Marks, int]] = {}  # at the last check, and its time (epoch ms)
        self.last = LastPass()

    @property
    def ages(self) -> Mapping[str, float | None]:
        """How long finished rows are kept, in seconds; None means forever."""
        config = self._config
        named = (
            ("messages", config.messages_s),
            ("incarnations", config.incarnations_s),
            ("mailbox", config.mailbox_s),
            ("dead_letters", config.dead_letters_s),
            ("idle_sessions", config.idle_sessions_s),
        )
        return {what: seconds or None for what, seconds in named}

    async def run(self) -> None:
        """Run a pass soon after the start and then at every interval, until cancelled."""
        await anyio.sleep(min(_FIRST_S, self._config.interval_s))
        while True:
            before, passed = self.last, await self.prune()
            # A pass that waited comes again soon: a clock that is set every day must not keep them all away.
            waited = passed is before
            await anyio.sleep(min(_AGAIN_S, self._config.interval_s) if waited else self._config.interval_s)

    async def prune(self) -> LastPass:
        """Run one pass over everything. Log errors instead of raising them; the next pass continues with the rest.

        Delete nothing, and return the pass before, if the wall clock was set forward since then: it may be set right again
        before the next one, and what was deleted by mistake would not come back.
        """
        if self._was_set_forward():
            return self.last
        began, this = self._clock.monotonic(), LastPass(self._clock.now_ms())
        for part in (
            self._prune_sessions, self._expire_sessions, self._prune_incarnations, self._prune_deletions,
            self._prune_mentioned, self._prune_conversations, self._prune_mailbox,
        ):  # fmt: skip
            try:
                await part(this)
            except ClawbusError as error:
                this.errors += 1
                self._log.warning("retention_failed", code=error.code, error=str(error))
        this.duration_ms = int((self._clock.monotonic() - began) * 1000)
        self.last = this
        level = self._log.info if this.taken or this.errors else self._log.debug
        level("retention_passed", sessions=this.sessions, errors=this.errors, duration_ms=this.duration_ms,
              given_back=this.given_back, **this.taken)  # fmt: skip
        return this

    def _offset(self) -> int:
        return self._clock.now_ms() - int((self._clock.monotonic() + self._clock.slept_s()) * 1000)

    def _was_set_forward(self) -> bool:
        """Return whether the wall clock was set forward since the last call. A sleep of the machine does not count."""
        by_ms = self._offset() - self._offset_ms
        self._offset_ms += by_ms
        if by_ms > _JUMP_MS:
            self._log.warning("retention_waits", by_ms=by_ms, error="the clock was set forward")
        return by_ms > _JUMP_MS

    async def _prune_sessions(self, this: LastPass) -> None:
        cutoff = self._cutoff(self._config.messages_s)
        after: SessionKey | None = None
        there: set[SessionKey] = set()
        while True:
            page_after = after
            keys = await self._sessions.central(lambda registry, at=page_after: registry.all_keys(at, _PAGE))
            there.update(keys)
            for key in keys:
                marks = _marks(self._sessions.files_of(key))
                if marks is None or not self._may_have_old(key, marks):
                    continue
                if await self._prune_session(key, cutoff, this):
                    self._looked[key] = marks, self._clock.now_ms()
                await anyio.sleep(_BETWEEN_SESSIONS_S)
            if len(keys) < _PAGE:
                break
            after = keys[-1]
        for key in self._looked.keys() - there:  # a deleted session costs no memory
            del self._looked[key]

    def _may_have_old(self, key: SessionKey, marks: _Marks) -> bool:
        """Return whether the session may have rows to prune: it has changed, or its last check is long ago. Opens nothing."""
        known = self._looked.get(key)
        if known is None or known[0] != marks:
            return True
        age = self._clock.now_ms() - known[1]
        shortest = min(filter(None, (self._config.messages_s, self._config.dead_letters_s)), default=_DAY_S)
        return not 0 <= age < shortest * 1000 / _SLACK

    async def _prune_session(self, key: SessionKey, cutoff: int | None, this: LastPass) -> bool:
        """Prune one session; return False when it could not be read."""
        log = self._log.bind(agent=key.agent, session=key.session)
        taken: Counter[str] = Counter()
        fine = False
        this.sessions += 1
        try:
            session = await self._sessions.look_up(key)
            if session is None or session.quarantined is not None:
                return False
            await self._close(session)
            parts: tuple[tuple[str, Prune], ...] = (
                ("messages", partial(prune_messages, forget=partial(forget_messages, self._mailbox.path, key))),
                ("receipts", prune_receipts), ("records", prune_records),
            )  # fmt: skip
            for what, prune in parts if cutoff is not None else ():
                await self._in_steps(session, what, prune, cutoff or 0, taken)
            if taken:
                this.given_back += await self._compact(session)
            fine = True
        except ReadRaceError:
            pass  # its container is in the middle of a commit; the next pass checks it again
        except ClawbusError as error:
            this.errors += 1
            log.warning("retention_failed", code=error.code, error=str(error))
        except Exception:  # one session's surprise must not end the pass for the others
            this.errors += 1
            log.exception("retention_raised")
        if taken and cutoff is not None:
            log.info("session_pruned", through=cutoff, **taken)
            this.taken.update(taken)
            await self._tell(taken, cutoff)
        return fine

    async def _close(self, session: Session) -> None:
        """Close old dead letters, and scheduled answers whose row is gone."""
        batch, now = self._config.batch, self._clock.now_ms()
        log = self._log.bind(agent=session.key.agent, session=session.key.session)
        cutoff, expired, gone = self._cutoff(self._config.dead_letters_s), 0, 0
        while cutoff is not None and (
            count := await session.call(partial(expire_dead_letters, session.files, cutoff, batch, now))
        ):
            expired += count
            await anyio.sleep(_BETWEEN_STEPS_S)
        position: int | None = 0
        while position is not None:
            dropped, position = await session.call(partial(drop_gone, session.files, position, batch, now))
            gone += len(dropped)
            for answer in dropped:
                log.error("delivery_dead_lettered", message_out=answer, code=ROW_GONE, error="its row is gone")
        if expired:
            log.warning("dead_letters_expired", count=expired, rule=RULE)
        if expired or gone:
            self._look(session.key)  # an idle session's count is kept in central.db

    async def _in_steps(self, session: Session, what: str, prune: Prune, cutoff: int, taken: Counter[str]) -> None:
        position, done = 0, False
        while not done:
            work = partial(prune, session.files, cutoff, position, self._config.batch, self._clock.now_ms())
            step = await session.call(work)
            position, done = step.position, step.done
            if step.taken:
                taken[what] += step.taken
                await anyio.sleep(_BETWEEN_STEPS_S)

    async def _compact(self, session: Session) -> int:
        """Compact only without a container; none can start while we hold the lock."""
        async with session.lock:
            if self._occupied(session.key) or session.sending:
                return 0
            return await session.call_locked(partial(_compact, session.files))

    async def _expire_sessions(self, this: LastPass) -> None:
        """Delete sessions that were idle for too long. Check each once more under its lock before deleting it."""
        cutoff, after = self._cutoff(self._config.idle_sessions_s), None
        while cutoff is not None and self._delete is not None:
            page = await self._idle_sessions(after, cutoff)
            for key in page:
                marks = _marks(self._sessions.files_of(key))
                if marks is None or max(marks[0], marks[1][0] if marks[1] else 0) // 1_000_000 >= cutoff:
                    continue
                try:
                    await self._delete(key)
                    this.taken["expired_sessions"] += 1
                except ClawbusError as error:
                    this.errors += 1
                    self._log.warning("retention_failed", agent=key.agent, session=key.session, code=error.code,
                                      error=str(error))  # fmt: skip
                await anyio.sleep(_BETWEEN_STEPS_S)
            if len(page) < _PAGE:
                return
            after = page[-1]

    async def _idle_sessions(self, after: SessionKey | None, cutoff: int) -> list[SessionKey]:
        return await self._sessions.central(lambda registry: registry.idle_sessions(after, _PAGE, cutoff))

    async def _prune_incarnations(self, this: LastPass) -> None:
        cutoff = self._cutoff(self._config.incarnations_s)
        after: str | None = ""
        while cutoff is not None and after is not None:
            taken, after = await self._incarnations_step(cutoff, after)
            if taken:
                this.taken["incarnations"] += taken
            await anyio.sleep(_BETWEEN_STEPS_S)

    async def _incarnations_step(self, cutoff: int, after: str) -> tuple[int, str | None]:
        now, batch = self._clock.now_ms(), self._config.batch
        return await self._sessions.central(lambda registry: registry.prune_incarnations(cutoff, after, batch, now))

    async def _prune_deletions(self, this: LastPass) -> None:
        """Forget old deletions, and remove the folders that could not be removed when their sessions were deleted."""
        cutoff = self._cutoff(self._config.incarnations_s)
        if cutoff is not None:
            this.note("deletions", await self._sessions.central(lambda registry: registry.prune_deletions(cutoff)))
        begun = await self._sessions.central(lambda registry: registry.open_deletions())
        before = self._clock.now_ms() - _UNDER_WAY_MS
        for deletion in (one for one, _, moved in begun if moved and (time_of(one) or 0) < before):
            try:
                with typed_host_errors("a deleted session's folder cannot be removed"):
                    await anyio.to_thread.run_sync(remove_trash, self._sessions.folder, deletion)
            except StorageError as error:
                this.errors += 1
                self._log.warning("session_trash_left", deletion=deletion, error=str(error), hint=error.hint)
            else:
                await self._note_removed(deletion)

    async def _note_removed(self, deletion: str) -> None:
        now = self._clock.now_ms()
        await self._sessions.central(lambda registry: registry.deletion_done(deletion, now))

    async def _prune_mentioned(self, this: LastPass) -> None:
        this.note("mentioned", await self._sessions.central(lambda registry: registry.with_file(prune_mentioned)))

    async def _prune_conversations(self, this: LastPass) -> None:
        cutoff = self._cutoff(self._config.incarnations_s)
        if cutoff is None:
            return
        forget = partial(conversations.prune, cutoff=cutoff)
        taken = await self._sessions.central(lambda registry: registry.with_file(forget))
        this.note("conversations", taken)
        if taken and self._forgot is not None:
            await self._forgot()

    async def _prune_mailbox(self, this: LastPass) -> None:
        cutoff, after, taken = self._cutoff(self._config.mailbox_s), 0, 0
        while cutoff is not None:
            work = partial(self._mailbox.prune, cutoff, after, self._config.batch)
            with typed_host_errors("mailbox.db cannot be pruned"):
                number, following = await anyio.to_thread.run_sync(work)
            taken += number
            if following is None:
                break
            after = following
            await anyio.sleep(_BETWEEN_STEPS_S)
        if taken and cutoff is not None:
            this.taken["mailbox"] += taken
            await self._tell({"mailbox": taken}, cutoff)

    async def _tell(self, taken: Mapping[str, int], cutoff: int) -> None:
        """Write the numbers to central.db for `status`. Numbers that a crash loses are still in the session's file."""
        now = self._clock.now_ms()
        try:
            await self._sessions.central(lambda registry: registry.note_pruned(taken, now, cutoff))
        except ClawbusError as error:
            self._log.warning("retention_failed", code=error.code, error=str(error))

    def _cutoff(self, age_s: float) -> int | None:
        """Return the instant before which ended rows go, or None if none of them goes."""
        return self._clock.now_ms() - int(age_s * 1000) if age_s else None


def _marks(files: SessionFiles) -> _Marks | None:
    """Return None without an inbound.db; the sweep reports that."""
    try:
        return files.folder.inbound_db.stat().st_mtime_ns, files.outbound_mark()
    except OSError:
        return None


def _compact(files: SessionFiles) -> int:
    with files.inbound() as db:
        return db.compact(min_free_bytes=_MIN_FREE_BYTES, max_live_bytes=_MAX_LIVE_BYTES)
