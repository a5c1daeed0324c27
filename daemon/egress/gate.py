"""The gate: a listener for each session with a container, and the tasks of its connections.

Which socket a request came in by says which session sent it, so no token is needed. A session whose container has ended has
no listener. A daemon that starts listens again for the containers that it adopts.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio import to_thread
from anyio.abc import TaskGroup, TaskStatus

from daemon.config.egress import Egress
from daemon.core.clock import Clock
from daemon.core.errors import DataFolderError
from daemon.core.events import (
    EGRESS_CLIENT_GONE,
    ContainerAdopted,
    ContainerExited,
    EgressRequest,
    Event,
    Subscriptions,
)
from daemon.egress.client import Client, ClientGoneError
from daemon.egress.exchange import Exchanges, Outcome
from daemon.egress.ledger import Ledger
from daemon.egress.line_budget import LineBudget
from daemon.egress.refusals import EgressRefusal, GateBusyError
from daemon.egress.rules import Rules
from daemon.egress.secrets import Secrets
from daemon.egress.sockets import discard, gate_folder, listen_in
from daemon.egress.upstream import GuardedBackend, Upstream
from daemon.http.resolver import Resolver, lookups_are_of
from schema.errors import StorageError
from schema.os_faults import typed_host_errors

_ALL_CONNECTIONS: Final = 2048
_RETRY_S: Final = 1.0

Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class _Door:
    """One session's listener. Made in a worker thread, so without anything of the event loop's."""

    key: Key
    socket: socket.socket
    lines: LineBudget = field(default_factory=LineBudget)
    closed: bool = False
    scope: anyio.CancelScope | None = None

    def close(self) -> None:
        """End the listener and its connections. Call it in the event loop."""
        self.closed = True
        if self.scope is not None:
            self.scope.cancel()


class Gate:
    """Built before the supervisor, whose specs need its folders; `run` serves until it is cancelled."""

    def __init__(
        self, config: Egress, folder: Path, clock: Clock, ledger: Ledger, publish: Callable[[Event], None]
    ) -> None:
        self._config = config
        self._root = folder
        self._clock = clock
        self._ledger = ledger
        self._publish = publish
        self._rules = Rules(config)
        self._doors: dict[Key, _Door] = {}
        self._lock = threading.Lock()  # guards `_doors` and their files, because `open` runs in worker threads
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: TaskGroup | None = None
        self._connections: Counter[str] = Counter()  # under way, by agent
        self._log = structlog.get_logger("egress")

    def subscribe(self, events: Subscriptions) -> None:
        """Follow the containers: listen for those that are adopted, stop for those that have ended."""
        events.subscribe(ContainerAdopted, self._adopted)
        events.subscribe(ContainerExited, self._exited)

    def folder(self, agent: str, session: str) -> Path | None:
        """Return the folder of the session's socket; None where the agent may reach nothing."""
        return gate_folder(self._root, agent, session) if self._config.may_use(agent) else None

    def open(self, agent: str, session: str) -> None:
        """Listen for a session, if it does not yet. Blocks. Raise StorageError, and DataFolderError while the gate does not run."""
        folder = self.folder(agent, session)
        if folder is None:
            return
        with self._lock:
            if (agent, session) in self._doors and folder.is_dir():
                return
            loop = self._loop
            if loop is None:
                raise DataFolderError("the gate does not run.")
            sock = listen_in(folder)
            door = self._doors[agent, session] = _Door((agent, session), sock)
        loop.call_soon_threadsafe(self._begin, door)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve every session until cancelled. Requests under way are cut, and their clients see that."""
        trust = await to_thread.run_sync(ssl.create_default_context)
        backend = GuardedBackend(Resolver(self._clock), self._rules.private_targets)
        upstream = Upstream(
            backend, trust, connect_s=self._config.connect_timeout_s, silence_s=self._config.silence_timeout_s
        )
        secrets = Secrets(self._clock)
        self._exchanges = Exchanges(
            self._rules, upstream, self._ledger, secrets, silence_s=self._config.silence_timeout_s
        )
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._ledger.run, name="ledger")
                self._loop, self._tasks = asyncio.get_running_loop(), tasks
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._loop = self._tasks = None
            with self._lock:
                for door in self._doors.values():
                    door.socket.close()
                self._doors.clear()
            secrets.close()
            with anyio.CancelScope(shield=True):
                await upstream.aclose()

    def _begin(self, door: _Door) -> None:
        if self._tasks is None or door.closed:
            door.socket.close()
            return
        self._tasks.start_soon(self._attend, door, name=f"gate of {door.key[0]}/{door.key[1]}")

    def _adopted(self, event: ContainerAdopted) -> None:
        if self._tasks is not None and self._config.may_use(event.agent):
            self._tasks.start_soon(self._open_for_adopted, event.agent, event.session)

    async def _open_for_adopted(self, agent: str, session: str) -> None:
        while True:
            try:
                with typed_host_errors("the gate cannot listen"):
                    return await to_thread.run_sync(self.open, agent, session)
            except (DataFolderError, StorageError) as error:
                self._log.warning("egress_not_listening", agent=agent, session=session, error=str(error))
            await anyio.sleep(_RETRY_S)

    def _exited(self, event: ContainerExited) -> None:
        with self._lock:
            door = self._doors.pop((event.agent, event.session), None)
        if door is not None:
            door.close()
        if self._tasks is not None and self._config.may_use(event.agent):
            self._tasks.start_soon(self._discard_soon, (event.agent, event.session))

    async def _discard_soon(self, key: Key) -> None:
        # A folder that cannot be removed now stays, and is reused.
        with suppress(StorageError), typed_host_errors("a socket's folder cannot be removed"):
            await to_thread.run_sync(self._discard, key)

    def _discard(self, key: Key) -> None:
        with self._lock:
            if key not in self._doors:
                discard(gate_folder(self._root, *key))

    async def _attend(self, door: _Door) -> None:
        """Accept a session's connections, at most as many at once as configured."""
        loop = asyncio.get_running_loop()
        slots = anyio.Semaphore(self._config.max_connections)  # what is beyond waits in the kernel
        door.scope = anyio.CancelScope()
        try:
            with door.scope:
                async with anyio.create_task_group() as tasks:
                    while not door.closed:
                        await slots.acquire()
                        try:
                            sock, _ = await loop.sock_accept(door.socket)
                        except OSError as error:  # out of descriptors
                            slots.release()
                            self._log.warning("egress_accept_failed", error=str(error), agent=door.key[0])
                            await anyio.sleep(_RETRY_S)
                        else:
                            tasks.start_soon(self._serve, door, sock, slots)
        finally:
            door.socket.close()

    async def _serve(self, door: _Door, sock: socket.socket, slots: anyio.Semaphore) -> None:
        client = Client(sock, self._config.max_body_bytes)
        lookups_are_of(door.key[0])
        try:
            agent = door.key[0]
            if not self._has_room(agent):
                return await self._turn_away(door, client)
            self._connections[agent] += 1
            try:
                while await self._one(door, client):
                    pass
            finally:
                self._connections[agent] -= 1
        except ClientGoneError:
            pass
        except Exception:  # noqa: BLE001 - whatever one connection meets, the others go on
            self._log.exception("egress_connection_raised", agent=door.key[0], session=door.key[1])
        finally:
            client.close()
            slots.release()

    def _has_room(self, agent: str) -> bool:
        """Return whether an agent may have one more connection. The last quarter is for agents with few."""
        used = self._connections.total()
        few = max(1, _ALL_CONNECTIONS // 16)
        return used < _ALL_CONNECTIONS * 3 // 4 or (used < _ALL_CONNECTIONS and self._connections[agent] < few)

    async def _turn_away(self, door: _Door, client: Client) -> None:
        busy = GateBusyError("too many connections of all agents together.")
        await client.refuse(busy)
        self._report(door, client, Outcome("?", None, busy.status, busy.code, str(busy)), self._clock.monotonic())

    async def _one(self, door: _Door, client: Client) -> bool:
        """Carry out one request. Return whether another may follow on the connection."""
        outcome = Outcome("?")
        began = self._clock.monotonic()
        try:
            request = await client.request()
            if request is None:
                return False
            began = self._clock.monotonic()
            outcome.method = request.method.decode("ascii", "replace")[:16]
            kept = await self._exchanges.carry_out(door.key[0], client, request, outcome)
        except EgressRefusal as refusal:
            kept, outcome.code, outcome.error, outcome.status = False, refusal.code, str(refusal), refusal.status
            await client.refuse(refusal)
        except ClientGoneError:
            kept, outcome.code = False, EGRESS_CLIENT_GONE
        self._report(door, client, outcome, began)
        if not kept and not client.whole:
            await client.linger()
        return kept

    def _report(self, door: _Door, client: Client, outcome: Outcome, began: float) -> None:
        now, target = self._clock.monotonic(), outcome.target
        name = target.name if target is not None else ""
        if outcome.admitted:
            self._ledger.ended(
                door.key[0], name, outcome.usage, client.received, client.sent, whole=outcome.code is None
            )
        else:
            self._ledger.refused(door.key[0], name)
        self._publish(
            EgressRequest(
                self._clock.now_ms(), *door.key, name or None, outcome.method,
                target.shown if target is not None else "", outcome.status, outcome.code, outcome.error[:300],
                client.received, client.sent, int((now - began) * 1000), door.lines.take(now), outcome.usage,
            )
        )  # fmt: skip
