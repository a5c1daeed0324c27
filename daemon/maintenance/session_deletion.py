"""Deletes a session: stops its container, then removes its registry rows and its folder.

The order is: change the registry, rename the folder, free the ids of its mailbox entries, remove it. A daemon that dies in
between finishes at its next start. Delivered answers stay delivered. A later message to the same name starts a new session.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import structlog

from daemon.core.clock import Clock
from daemon.core.errors import NotConfirmedError, RuntimeUnavailableError, ScheduleError
from daemon.core.repair_errors import SessionUnfinishedError
from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.store import deliveries, outbound, questions, schedules
from daemon.store.data_layout import Layout
from daemon.store.dead_letters import Operator
from daemon.store.mailbox_lives import forget_session
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from daemon.store.session_trash import move_to_trash, remove_trash
from schema.errors import ClawbusError, StorageError
from schema.ids import new_id
from schema.os_faults import typed_host_errors


def unfinished_work(files: SessionFiles) -> list[str]:
    """Return sentences about what would be lost with the session."""
    if not files.folder.inbound_db.exists():
        return []
    found: list[str] = []
    try:
        with files.inbound() as db:
            pending = db.one("SELECT count(*) AS n FROM messages_in WHERE status IN ('pending', 'paused')")
            waiting = deliveries.count_open(db)
            if pending is not None and pending["n"]:
                found.append(f"{pending['n']} messages are not finished")
            if asked := questions.count_open(db):
                found.append(f"{asked} questions wait for an answer (`clawbus question answer` gives one)")
            if kept := schedules.count(db):
                found.append(f"{kept} schedules are set (`clawbus schedule cancel` ends one)")
            if waiting:
                found.append(f"{waiting} answers are not delivered")
            with files.outbound() as out:
                if out is not None and outbound.has_after(out, deliveries.cursor(db, out.file_id)):
                    found.append("out/ holds answers that the host has not recorded")
    except ClawbusError as error:
        found.append(f"its content is unknown ({error.code}: {str(error).rstrip('.')})")
    return found


def refuse_configured(key: SessionKey, files: SessionFiles) -> None:
    """Raise ScheduleError for a session in which the configuration has a schedule: the next start would bring it back."""
    if not files.folder.inbound_db.exists():
        return
    try:
        with files.inbound() as db:
            kept = schedules.configured(db)
    except ClawbusError:
        return  # what cannot be read can be deleted with --force
    if kept:
        raise ScheduleError(
            f"session {key} has the schedule {kept[0].key} of the configuration.",
            hint=f"Remove [schedules.{kept[0].key}] from clawbus.toml, restart the daemon, and delete the session then.",
        )


def refuse_unfinished(key: SessionKey, found: list[str], *, force: bool) -> None:
    """Raise SessionUnfinishedError for a session with unfinished work, unless `force` is set."""
    if found and not force:
        raise SessionUnfinishedError(f"session {key} has work: {', and '.join(found)}.")


class Deletions:
    """Deletes sessions while the daemon runs."""

    def __init__(self, sessions: Sessions, supervisor: Supervisor, sessions_dir: Path, clock: Clock) -> None:
        self._sessions = sessions
        self._supervisor = supervisor
        self._dir = sessions_dir
        self._clock = clock
        self._log = structlog.get_logger("operator")

    async def delete(self, key: SessionKey, operator: Operator, *, force: bool) -> dict[str, Any]:
        """End the session's container and delete the session.

        Raise UnknownSessionError, ScheduleError, SessionUnfinishedError, NotConfirmedError, RuntimeUnavailableError or StorageError. The
        session then continues as before.
        """
        session = await self._sessions.get(key)
        if not self._supervisor.knows:
            raise RuntimeUnavailableError("it is unknown now whether a container of the session lives.")
        if session.quarantined is None:
            await session.call(partial(refuse_configured, key, session.files))
        refuse_unfinished(key, await self._unfinished(session), force=force)
        await self._supervisor.end(key, "operator_delete", graceful=True)
        async with session.lock:
            if self._supervisor.may_run(key) or session.sending:
                raise NotConfirmedError(
                    f"session {key} has just been woken again, or sends an answer; it was not deleted."
                )
            lost = (
                await session.call_locked(partial(unfinished_work, session.files))
                if session.quarantined is None
                else []
            )
            refuse_unfinished(key, lost, force=force)
            deletion = await self._put_aside(session, operator)
        self._log.warning("session_deleted", agent=key.agent, session=key.session, deletion=deletion, lost=lost,
                          by=operator.name, reason=operator.reason)  # fmt: skip
        removed = await self._remove(deletion)
        return {"deleted": True, "deletion": deletion, "lost": lost, "removed": removed}

    async def _unfinished(self, session: Session) -> list[str]:
        if session.quarantined is not None:
            return [f"it is in quarantine: {session.quarantined.rstrip('.')}"]
        return await session.call(partial(unfinished_work, session.files))

    async def _put_aside(self, session: Session, operator: Operator) -> str:
        """Remove the row, then move the folder. A folder whose deletion has begun is not registered again."""
        key, now = session.key, self._clock.now_ms()
        deletion = new_id(now)
        session.active = False  # its row goes: should the session live on, its next message must record it again
        await self._sessions.central(lambda registry: registry.begin_deletion(deletion, key, now, operator))
        try:
            session.files.evict()
            with typed_host_errors(f"the folder of {key} cannot be moved away"):
                await anyio.to_thread.run_sync(move_to_trash, self._dir, key, deletion)
        except StorageError:
            await self._sessions.central(lambda registry: registry.undo_deletion(deletion, key, now))
            raise
        try:
            forget = partial(forget_session, Layout(self._dir.parent).mailbox_db, key, deletion)
            with typed_host_errors("mailbox.db cannot be changed"):
                await anyio.to_thread.run_sync(forget)
            await self._sessions.central(lambda registry: registry.deletion_moved(deletion, key))
        except ClawbusError as error:
            # The session is gone all the same, and the next start finds its folder in the trash.
            self._log.warning("session_trash_left", deletion=deletion, error=str(error), hint=error.hint)
        finally:
            self._sessions.forget(session)
        return deletion

    async def _remove(self, deletion: str) -> bool:
        """Remove the folder. Return False if something is left for the daemon's next start to remove."""
        try:
            with typed_host_errors("a deleted session's folder cannot be removed"):
                await anyio.to_thread.run_sync(remove_trash, self._dir, deletion)
            now = self._clock.now_ms()
            await self._sessions.central(lambda registry: registry.deletion_done(deletion, now))
        except ClawbusError as error:
            self._log.warning("session_trash_left", deletion=deletion, error=str(error), hint=error.hint)
            return False
        return True


def delete_from_files(
    registry: Registry,
    sessions_dir: Path,
    files: SessionFiles,
    key: SessionKey,
    operator: Operator,
    clock: Callable[[], int],
    *,
    lives: bool,
    force: bool,
) -> dict[str, Any]:
    """Delete a session without a daemon, under the data folder's lock. `lives`: its container runs, or may run."""
    if lives:
        raise NotConfirmedError(
            f"a container of session {key} runs, or the runtime does not say; start the daemon first."
        )
    refuse_configured(key, files)
    lost = unfinished_work(files)
    refuse_unfinished(key, lost, force=force)
    deletion = new_id(clock())
    registry.begin_deletion(deletion, key, clock(), operator)
    files.evict()
    try:
        move_to_trash(sessions_dir, key, deletion)
    except StorageError:
        registry.undo_deletion(deletion, key, clock())
        raise
    forget_session(Layout(sessions_dir.parent).mailbox_db, key, deletion)
    registry.deletion_moved(deletion, key)
    remove_trash(sessions_dir, deletion)
    registry.deletion_done(deletion, clock())
    return {"deleted": True, "deletion": deletion, "lost": lost, "removed": True}
