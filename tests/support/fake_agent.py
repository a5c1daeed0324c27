"""A container's program, played in the test's process over the runner's own store.

`Agent` is the hands: claim, heartbeat, answer, or leave things half done. `echo` is a whole program for
`FakeHost.run_agents`. Nothing here waits inside a transaction, so a kill falls between two of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from container_runner.shared.reply import Reply
from container_runner.store import Batch, OutboundRow, Store
from daemon.core.clock import Clock
from daemon.runtimes.protocol import ContainerSpec
from schema.connect import open_owner
from schema.handles import Writer
from schema.layout import CONTAINER_IN, CONTAINER_OUT, HEARTBEAT, OUTBOUND_DB
from schema.migrate import Role
from schema.rows import AckStatus
from tests.support.fake_runtime import FakeContainer

POLL_S = 0.005


class Agent:
    """One incarnation at work."""

    def __init__(self, spec: ContainerSpec, clock: Clock) -> None:
        folders = {mount.target: mount.source for mount in spec.mounts}
        self.outbox: Path = folders[CONTAINER_OUT]
        self.incarnation = spec.incarnation
        self.store = Store(folders[CONTAINER_IN], self.outbox, spec.incarnation, clock.now_ms)
        self._clock = clock
        self._first = True

    def claim(self, limit: int = 10) -> Batch | None:
        """What is due, claimed; None when there is nothing."""
        found = self.store.claim(limit, first_poll=self._first)
        self._first = False
        return found

    def beat(self) -> None:
        """Progress."""
        path = self.outbox / HEARTBEAT
        path.touch()
        nanoseconds = self._clock.now_ms() * 1_000_000
        os.utime(path, ns=(nanoseconds, nanoseconds))

    def answer(self, batch: Batch, *contents: str, status: AckStatus = AckStatus.COMPLETED) -> list[OutboundRow]:
        """Finish a turn: one row for each content (default: an echo of each message), and the acks, in one commit."""
        replies = [Reply("chat", content, batch.messages[-1].id, None, None, None) for content in contents]
        if not contents:
            replies = [
                Reply("chat", json.dumps({"echo": json.loads(m.content)}), m.id, None, None, None)
                for m in batch.messages
            ]
        rows = self.store.outbound_rows(replies)
        self.store.finish(rows, [message.id for message in batch.messages], status)
        return rows

    def say(self, content: str, place: tuple[str, str, str | None] | None = None, *, kind: str = "chat") -> str:
        """A row out of turn, answering nothing; its id."""
        channel, platform, thread = place if place is not None else (None, None, None)
        rows = self.store.outbound_rows([Reply(kind, content, None, channel, platform, thread)])
        self.store.finish(rows, [], AckStatus.COMPLETED)
        return rows[0].id

    def file(self) -> Writer:
        """outbound.db, for what a well-behaved runner would never write."""
        return open_owner(self.outbox / OUTBOUND_DB, Role.OUTBOUND)


def echo(clock: Clock) -> Callable[[FakeContainer], Awaitable[int]]:
    """A program that answers every message with itself, until it is ended."""

    async def program(container: FakeContainer) -> int:
        agent = Agent(container.spec, clock)
        agent.store.start()
        while True:
            batch = agent.claim()
            if batch is None:
                await anyio.sleep(POLL_S)
                continue
            agent.beat()
            await anyio.lowlevel.checkpoint()
            agent.answer(batch)

    return program


def claims_and_dies(clock: Clock) -> Callable[[FakeContainer], Awaitable[int]]:
    """A program that claims what is due and then ends with exit code 1, having answered nothing."""

    async def program(container: FakeContainer) -> int:
        agent = Agent(container.spec, clock)
        agent.store.start()
        while True:
            if agent.claim() is not None:
                return 1
            await anyio.sleep(POLL_S)

    return program
