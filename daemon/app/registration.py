"""The daemon's registration in central.db: written when it starts, confirmed while it runs, ended with it.

A registry that cannot be written now, as on a full disk, keeps no daemon from starting: the data folder's lock alone makes
sure that there is one. Claims carry the worker's name once it is registered.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import anyio
import anyio.to_thread
import structlog

from daemon.app.bus import Bus
from daemon.core.deploy_errors import DuplicateOwnershipError
from daemon.core.events import MessageSettled
from daemon.core.ownership import AGENT, CHANNEL, ROLES, Ownership
from daemon.store import workers
from daemon.store.registry import Registry
from daemon.store.workers import Owned, WorkerRow
from daemon.workers.host_owners import HostOwners
from daemon.workers.source import Origin
from schema.errors import ClawbusError
from schema.handles import Writer
from schema.ids import new_id
from schema.os_faults import typed_host_errors

CONFIRM_S: Final = 30.0
_UNREADABLE: Final = "what other daemons of this host own cannot be read"
_RETRY_S: Final = 5.0  # seconds before the next try after a registry that could not be written


class Registration:
    """Built once for a daemon that serves; `run` confirms until cancelled."""

    def __init__(self, bus: Bus, registry: Registry, source: Origin | None, epoch: int, install_id: str) -> None:
        now = bus.clock.now_ms()
        role = bus.ownership.role
        # Without a role a daemon is a bus of its own: its names never meet those of another data folder.
        self._owners = HostOwners(role, install_id) if role else None
        self._bus, self._registry = bus, registry
        self._changed = anyio.Event()
        self._begun = False
        self._trouble: str | None = None
        self._turns: dict[str, tuple[str, int]] = {}  # messages completed since the last confirmation
        bus.events.subscribe(MessageSettled, self._settled)
        self.worker = WorkerRow(
            new_id(now), role, (source.release or "") if source is not None else "",
            source.source_digest if source is not None else "", (source.slot or "") if source is not None else "",
            socket.gethostname(), os.getpid(), epoch, now,
        )  # fmt: skip

    async def begin(self) -> None:
        """Register, and make claims in this name from now on. `run` does it later where the registry cannot be written."""
        await self._attempt(self._register)

    def poke(self) -> None:
        """Register what the configuration has now: it was read again."""
        self._changed.set()

    async def run(self) -> None:
        """Confirm at once, then every half minute and after each change. Raise DuplicateOwnershipError."""
        while True:
            done = await self._attempt(self._confirm)
            with anyio.move_on_after(CONFIRM_S if done else _RETRY_S):
                await self._changed.wait()
            self._changed = anyio.Event()

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Return whether the work succeeded. Log once what the host cannot do now. Raise DuplicateOwnershipError."""
        try:
            await work()
        except DuplicateOwnershipError:
            raise
        except (OSError, ClawbusError) as error:
            if str(error) != self._trouble:
                structlog.get_logger("daemon").warning("registration_not_confirmed", error=str(error))
            self._trouble = str(error)
            return False
        self._trouble = None
        return True

    def hold(self, agents: Iterable[str], ownership: Ownership) -> None:
        """Own these agents and the role's channels on this host, before the bus has them.

        Raise DuplicateOwnershipError when a daemon with another data folder and role owns one of them, and StorageError.
        """
        if self._owners is None:
            return
        channels = [name for name, role in ownership.channels.items() if role == ownership.role]
        with typed_host_errors(_UNREADABLE):
            self._owners.hold({*((AGENT, name) for name in agents), *((CHANNEL, name) for name in channels)})

    async def _register(self) -> None:
        owned = self._owned()
        with typed_host_errors(_UNREADABLE):
            await anyio.to_thread.run_sync(self.hold, tuple(self._bus.agents), self._bus.ownership)
        await self._write(lambda db: workers.register(db, self.worker, owned))
        self._registry.claim_as(self.worker.id, self._check_agent if self._owners is not None else None)
        self._begun = True

    async def _confirm(self) -> None:
        if not self._begun:
            await self._register()
        now, owned = self._bus.clock.now_ms(), self._owned()
        await self._write(lambda db: workers.confirm(db, self.worker, owned, now))
        turns, self._turns = self._turns, {}
        try:
            await self._write(lambda db: workers.note_turns(db, turns))
        except BaseException:
            self._turns = {**turns, **self._turns}
            raise
        self.worker = replace(self.worker, confirmed_at=now)

    async def end(self) -> None:
        """Record the end. A failure is ignored: the next daemon that starts records it."""
        now = self._bus.clock.now_ms()
        if self._owners is not None:
            self._owners.close()
        with suppress(OSError, ClawbusError):
            await self._write(lambda db: workers.note_turns(db, self._turns))
            await self._write(lambda db: workers.end(db, self.worker.id, now))

    def payload(self) -> dict[str, Any]:
        """Return what `/healthz` and `status` say of this worker: who it is, what it owns, and what it runs from."""
        worker, ownership = self.worker, self._bus.ownership
        counts = Counter(ownership.agents.values())
        return {
            "id": worker.id,
            "role": worker.role,
            "slot": worker.slot,
            "epoch": worker.epoch,
            "started_at": worker.registered_at,
            "last_registration_at": worker.confirmed_at,
            "role_counts": {**{role: counts[role] for role in ROLES}, "active": len(self._bus.agents)},
            "duplicate_ids": self._duplicates(),
            "runtime": {
                "prefix": sys.prefix,
                "deployment_model": "release" if worker.release else "installation",
                "outside_release": bool(self._bus.config.deploy.root) and not worker.release,
                "release": worker.release or None,
                "source_digest": worker.source_digest or None,
            },
        }

    def _duplicates(self) -> list[str] | None:
        """Return what a daemon with another data folder owns too; None when the host cannot tell."""
        # Called on the event loop: /proc is memory, so this waits for no disk.
        try:
            return self._owners.duplicates() if self._owners is not None else []
        except OSError:
            return None

    def _check_agent(self, name: str) -> None:
        if self._owners is not None:
            with typed_host_errors(_UNREADABLE):
                self._owners.check((AGENT, name))

    def _settled(self, event: MessageSettled) -> None:
        if event.completed:
            self._turns[event.agent] = (event.session, event.at)

    async def _write(self, work: Callable[[Writer], None]) -> None:
        with typed_host_errors("the registration cannot be written"):
            await anyio.to_thread.run_sync(self._registry.with_file, work)

    def _owned(self) -> Owned:
        agents, channels = self._bus.agents, self._bus.channels
        return frozenset([*((AGENT, name) for name in agents), *((CHANNEL, name) for name in channels)])
