"""Protections of the operator's verbs that `tests.simulation.mutations` takes out: each must be noticed by the checks."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final
from unittest import mock

import daemon.maintenance.container_ends
import daemon.maintenance.folder_backup
import daemon.maintenance.message_repair
import daemon.maintenance.session_repair
import daemon.maintenance.stale_sweep
from daemon.core.run_state import Life
from daemon.engine.supervisor.adoption import Adoption
from daemon.engine.supervisor.reconcile import Reconciler
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.supervisor.terminator import Terminator
from daemon.maintenance.daemon_executor import DaemonExecutor
from daemon.maintenance.offline import OfflineExecutor
from daemon.store.registry import Registry


def _kill_asks_for_every_start() -> contextlib.AbstractContextManager[Any]:
    """A kill of a session without a container asks for every recorded start, also those of other sessions under way."""
    real = Reconciler.look_at

    async def look_at(self: Reconciler, key: Any) -> None:
        for row in await self._state.sessions.central(lambda registry: registry.live_incarnations()):
            if row.container_id is None:
                await self._state.runtime.find_or_cancel_spawn(row.id)
        await real(self, key)

    return mock.patch.object(Reconciler, "look_at", look_at)


def _adopt_side_by_side() -> contextlib.AbstractContextManager[Any]:
    """Two adoptions at once, neither of which minds the slots that the other makes."""

    async def adopt(self: Adoption) -> bool:
        slots, self._state.slots = self._state.slots, {}
        try:
            agreed = await self._adopt()
        finally:
            self._state.slots = {**slots, **self._state.slots}
        self._state.set_available()
        self._state.accepting = True
        return agreed

    async def look_at(self: Reconciler, _: Any) -> None:
        await adopt(self._adoption)

    return mock.patch.object(Reconciler, "look_at", look_at)


def _kill_is_answered_at_once() -> contextlib.AbstractContextManager[Any]:
    """The answer to a kill comes when the signal is sent."""

    async def end(self: Supervisor, key: Any, reason: str, *, graceful: bool) -> Any:
        return self._terminator.begin_end(key, reason, graceful=graceful)

    return mock.patch.object(Supervisor, "end", end)


def _nobody_knows_is_none() -> contextlib.AbstractContextManager[Any]:
    """A daemon that has not seen what runs answers as if nothing did."""
    return mock.patch.object(DaemonExecutor, "_check_known", lambda *_: None)


def _quarantine_in_memory() -> contextlib.AbstractContextManager[Any]:
    """An operator's quarantine ends with the daemon."""
    return mock.patch.object(Registry, "quarantine", lambda *_: None)


def _quarantine_ends_nothing() -> contextlib.AbstractContextManager[Any]:
    """Whoever is in quarantine is given a container all the same."""
    real = Terminator.begin_end

    def begin_end(self: Terminator, key: Any, reason: str, **more: Any) -> Any:
        slot = self._state.slots.get(key)
        if slot is not None and reason == "quarantine":
            slot.session.quarantined = None
            return slot
        return real(self, key, reason, **more)

    return mock.patch.object(Terminator, "begin_end", begin_end)


def _reset_loses() -> contextlib.AbstractContextManager[Any]:
    """A reset does not look for what the host has not taken note of."""
    return mock.patch.object(daemon.maintenance.session_repair, "_refuse_losses", lambda *_: None)


def _cancel_leaves_the_status() -> contextlib.AbstractContextManager[Any]:
    """A cancel is answered and informs the sender, and the message waits on."""
    return mock.patch.object(daemon.maintenance.message_repair, "change_status", lambda *_, **__: True)


def _cancel_any() -> contextlib.AbstractContextManager[Any]:
    """A cancel ends every message that waits in its session."""
    real = daemon.maintenance.message_repair.change_status

    def change(db: Any, message_id: str, *arguments: Any, **more: Any) -> bool:
        for row in db.all("SELECT id FROM messages_in WHERE status = 'pending'"):
            real(db, row["id"], *arguments, **more)
        return True

    return mock.patch.object(daemon.maintenance.message_repair, "change_status", change)


def _retry_is_not_stored() -> contextlib.AbstractContextManager[Any]:
    """A message that is retried after its end has a new id in the answer, and no row."""

    def requeue(_db: Any, letter: Any, *_: Any) -> Any:
        return SimpleNamespace(id=f"{letter.id}+r1")

    return mock.patch.object(daemon.maintenance.message_repair, "requeue_message", requeue)


def _offline_silence_is_none() -> contextlib.AbstractContextManager[Any]:
    """While no daemon runs, a runtime that does not answer counts as one without containers."""
    return mock.patch.object(OfflineExecutor, "_listed", lambda self, _: self._listing.containers or ())


def _offline_kill_is_answered_at_once() -> contextlib.AbstractContextManager[Any]:
    """While no daemon runs, the answer to a kill comes when the signal is sent."""

    async def kill(runtime: Any, container: Any, _: float) -> None:
        await runtime.kill(container.container_id)

    return mock.patch.object(daemon.maintenance.container_ends, "kill", kill)


def _sweep_cancels_what_lives() -> contextlib.AbstractContextManager[Any]:
    """A sweep takes every container for gone and every run for old."""
    real = daemon.maintenance.stale_sweep.plan

    def plan(runs: Any, scope: Any) -> Any:
        gone = [
            replace(
                one, session_alive=False, verdict=replace(one.verdict, stale=True),
                evidence=replace(one.evidence, life=Life.GONE, claimed_at=0),
            )
            for one in runs
        ]  # fmt: skip
        return real(gone, scope)

    return mock.patch.object(daemon.maintenance.stale_sweep, "plan", plan)


def _backup_without_answers() -> contextlib.AbstractContextManager[Any]:
    """A backup leaves out what the containers have written."""
    return mock.patch.object(daemon.maintenance.folder_backup, "_outbound", lambda *_: iter(()))


def _backup_of_another_moment() -> contextlib.AbstractContextManager[Any]:
    """A backup lacks the last row of each history."""
    real = daemon.maintenance.folder_backup.copy_verified

    def copy(source: Any, final: Any) -> Any:
        done = real(source, final)
        with contextlib.closing(sqlite3.connect(final)) as db, contextlib.suppress(sqlite3.Error), db:
            db.execute("DELETE FROM message_history WHERE id = (SELECT max(id) FROM message_history)")
        return done

    return mock.patch.object(daemon.maintenance.folder_backup, "copy_verified", copy)


MUTATIONS: Final[Mapping[str, Callable[[], contextlib.AbstractContextManager[Any]]]] = MappingProxyType(
    {
        "a kill withdraws what others start": _kill_asks_for_every_start,
        "a kill adopts what is supervised": _adopt_side_by_side,
        "a kill is answered before the exit": _kill_is_answered_at_once,
        "a daemon that has seen nothing says nothing runs": _nobody_knows_is_none,
        "a quarantine is kept in memory alone": _quarantine_in_memory,
        "a quarantine ends no container": _quarantine_ends_nothing,
        "a reset puts unread answers aside": _reset_loses,
        "a cancel is answered and not written": _cancel_leaves_the_status,
        "a cancel takes others with it": _cancel_any,
        "a retry is answered and not stored": _retry_is_not_stored,
        "an offline command takes silence for no container": _offline_silence_is_none,
        "an offline kill is answered before the exit": _offline_kill_is_answered_at_once,
        "a sweep cancels what lives": _sweep_cancels_what_lives,
        "a backup lacks the answers": _backup_without_answers,
        "a backup lacks rows": _backup_of_another_moment,
    }
)
