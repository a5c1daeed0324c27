"""What happens to the bus in one run: clients that insist on a yes, an operator, and a machine that misbehaves.

Drawn from the seed before and while it runs. Calm again after `active_s`; the run then heals and is checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import anyio

from daemon.channels.protocol import Accepted, Incoming, Outgoing
from daemon.core.errors import IdConflictError
from daemon.core.session_key import SessionKey
from daemon.store.install import mark_restored
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from schema.plain_file import ReadLimits
from schema.rows import Address
from tests.simulation.agent import BAD, LATER, POISON
from tests.simulation.backups import Backups
from tests.simulation.bus import AGENTS, SimDaemon, session_root
from tests.simulation.host import Container, SimHost
from tests.simulation.operators import Operator
from tests.simulation.people import People
from tests.simulation.receivers import TRAITS, Receivers
from tests.simulation.world import World

_PLACES: Final = ("room", "hall")


@dataclass
class Ledger:
    """What the clients know: every message they sent, and those that the bus said yes to."""

    sent: dict[tuple[SessionKey, str], Incoming] = field(default_factory=dict[tuple[SessionKey, str], Incoming])
    accepted: dict[tuple[SessionKey, str], list[Accepted]] = field(
        default_factory=dict[tuple[SessionKey, str], list[Accepted]]
    )
    waiting: int = 0


class Scenario:
    """One run's events."""

    def __init__(self, world: World, daemon: SimDaemon, host: SimHost, receivers: Receivers) -> None:
        rng = world.rng
        self.world = world
        self.daemon = daemon
        self.host = host
        self.receivers = receivers
        self.ledger = Ledger()
        # Five runs in six are short: what two of them meet that differ in everything, one long run seldom does.
        self.long = rng.random() < 0.15
        count = rng.choice((1, 1, 2, 3) if self.long else (1, 1, 2))
        self.sessions = [SessionKey(AGENTS[number % 2], f"s{number}") for number in range(count)]
        self.active_s = rng.choice((10.0, 20.0, 40.0, 150.0) if self.long else (10.0, 20.0, 30.0))
        self.clock_back_ms = 0
        self.late: Counter[SessionKey] = Counter()  # looks in a row that found an overdue schedule and no reason for it
        self.backups = Backups(world, daemon)
        self.operator = Operator(world, daemon, host, self.sessions)
        self.people = People(world, self._insist_as)
        self._replies_left = rng.choice((0, 0, 2, 4))
        # From a source of its own: a draw more would make another run of every seed.
        self._repeats = Random(f"repeats {world.seed}")
        self._repeats_left = self._repeats.choice((0, 1, 2, 4))
        receivers.on_effect = self._answered
        host.on_exit = lambda agent, session: self._converse(
            SessionKey(agent, session), Address(rng.choice(sorted(TRAITS)), "room"), rng.choice((0.05, 0.3))
        )
        self._chaos: list[Callable[[], object]] = [
            item for item in self._every_chaos() if rng.random() < 0.4
        ]  # some kinds and no others
        self._chaos_every = rng.choice((3.0, 10.0, 40.0))

    def prepare(self) -> None:
        """Some sessions exist before the first message, with places they may write to."""
        for key in self.sessions:
            if self.world.rng.random() < 0.5:
                files = SessionFiles(session_root(self.daemon.layout, key), ReadLimits())
                registry = Registry(self.daemon.layout.central_db)
                registry.activate(key, self.world.clock.now_ms())
                files.create()
                with files.inbound() as db, db.transaction():
                    for number, channel in enumerate(self.world.rng.sample(sorted(TRAITS), 2)):
                        db.execute(
                            "INSERT INTO destinations(name, type, channel_type, platform_id) VALUES (?, 'channel', ?, ?)",
                            (f"place{number}", channel, "elsewhere"),
                        )

    async def play(self) -> None:
        """The active part."""
        world = self.world
        until = world.loop.time() + self.active_s
        world.loop.spawn(None, self.operator.work(until), "the operator")
        for number in range(world.rng.choice((1, 2, 3, 5) if self.long else (1, 1, 2, 3))):
            world.loop.spawn(None, self._client(number, world.between(0, self.active_s * 0.7)), f"client {number}")
        while world.loop.time() < until and not world.findings:
            await anyio.sleep(min(world.rng.expovariate(1 / self._chaos_every), until - world.loop.time() + 0.001))
            if self._chaos and world.loop.time() < until:
                world.rng.choice(self._chaos)()

    # --- clients

    def _message(self, number: int) -> tuple[SessionKey, Incoming]:
        world, rng = self.world, self.world.rng
        key = rng.choice(self.sessions)
        address = Address(rng.choice(sorted(TRAITS)), rng.choice(_PLACES), rng.choice((None, "t")))
        kind = rng.random()
        incoming = Incoming(
            agent=key.agent,
            session=key.session,
            content={"text": self._text(number, kind)},
            message_id=f"m{number}",
            address=address,
            trigger=not 0.06 <= kind < 0.14,
            on_wake=0.14 <= kind < 0.2,
            process_after=world.clock.now_ms() + int(world.between(-5, 60) * 1000) if 0.2 <= kind < 0.32 else None,
            # Once a year: it is armed again once, and not due within the run.
            recurrence="0 0 1 1 *" if 0.32 <= kind < 0.36 else None,
        )
        return key, self.people.from_somebody(key, incoming)

    def _text(self, number: int, kind: float) -> str:
        if kind < 0.06:
            return POISON
        if 0.36 <= kind < 0.44:
            return BAD
        return LATER if 0.44 <= kind < 0.5 else f"m{number}"

    async def _client(self, number: int, after: float) -> None:
        """Sends one message."""
        self.ledger.waiting += 1
        await anyio.sleep(after)
        key, incoming = self._message(number)
        await self._insist(key, f"m{number}", incoming)
        self.ledger.waiting -= 1
        if self.world.chance(0.15):  # a webhook that repeats itself
            await anyio.sleep(self.world.between(0, 30))
            self.daemon.request(incoming, lambda _: None)

    async def _insist(self, key: SessionKey, message_id: str, incoming: Incoming) -> None:
        """Send one message, under one id, until the bus says yes."""
        self.ledger.sent[key, message_id] = incoming
        accepted = self.ledger.accepted.setdefault((key, message_id), [])
        await self._insist_as(key, message_id, incoming, accepted)

    async def _insist_as(self, key: SessionKey, message_id: str, incoming: Incoming, accepted: list[Accepted]) -> None:
        """The same, noting the yes there."""
        world = self.world
        actor = f"client of {message_id}"
        while True:
            answer: list[Accepted | Exception] = []
            answered = anyio.Event()

            def take(result: Accepted | Exception, answer: list[Accepted | Exception] = answer) -> None:
                answer.append(result)
                world.loop.world_later(0.001, answered.set)  # noqa: B023 - one event per round

            sent = self.daemon.request(incoming, take)
            world.step(actor, f"sends {message_id} to {key}" + ("" if sent else ": nobody answers"))
            with anyio.move_on_after(world.between(5, 40) if sent else 0.1):
                await answered.wait()
            if answer and isinstance(answer[0], Accepted):
                accepted.append(answer[0])
                world.step(actor, f"has a yes for {message_id}")
                return
            if answer and isinstance(answer[0], IdConflictError):
                world.broken(f"{message_id} was refused as a conflict with itself")
                return
            await anyio.sleep(world.between(0.5, 10.0))

    def _answered(self, out: Outgoing) -> None:
        """An answer has arrived: its reader may write back, and a sender who reads of a failure may send again."""
        key = SessionKey(out.agent, out.session)
        self.people.read(out)
        self._converse(key, out.address, 0.2)
        message_id = (out.in_reply_to or "").partition("+r")[0]
        failed = "error" in json.loads(out.content)
        if failed and self._repeats_left and (key, message_id) in self.ledger.sent:
            self._repeats_left -= 1
            self.ledger.waiting += 1
            after = self._repeats.uniform(0.0, self._repeats.choice((0.5, 10.0, 90.0)))
            self.world.loop.spawn(None, self._send_again(key, message_id, after), "a sender who was refused")

    async def _send_again(self, key: SessionKey, message_id: str, after: float) -> None:
        await anyio.sleep(after)
        self.world.counts["sent_again_after_failure"] += 1
        await self._insist(key, message_id, self.ledger.sent[key, message_id])
        self.ledger.waiting -= 1

    def _converse(self, key: SessionKey, address: Address, within_s: float) -> None:
        """Somebody who reads an answer may write back at once, and somebody else just when the agent goes to sleep."""
        world = self.world
        if self._replies_left and not world.healing and world.rng.random() < 0.5:
            self._replies_left -= 1
            self.ledger.waiting += 1
            after = world.between(0.0, within_s)
            world.loop.spawn(None, self._write_back(key, address, after, f"r{self._replies_left}"), "a reply")

    async def _write_back(self, key: SessionKey, address: Address, after: float, message_id: str) -> None:
        await anyio.sleep(after)
        await self._insist(key, message_id, Incoming(*key, {"text": message_id}, message_id, address=address))
        self.ledger.waiting -= 1

    # --- trouble

    def _every_chaos(self) -> list[Callable[[], object]]:
        return [
            self._kill_daemon,
            self._stop_daemon,
            self._freeze_daemon,
            self._kill_container,
            self._freeze_container,
            self._vanish_container,
            self._dockerd_away,
            self._dockerd_restart,
            self._clock_jump,
            self._receiver_down,
            self.operator.act,
            self.backups.take,
            self._kill_both,
            self._restart_container,
            self._restart_policy,
            self._restored,
        ]

    def _container(self) -> Container | None:
        running = self.host.running()
        return self.world.rng.choice(running) if running else None

    def _restart_container(self) -> None:
        container = self._container()
        if container is not None:
            self.world.fault("chaos_restart_container", container.id)
            self.host.restart(container)

    def _restored(self) -> None:
        """The machine dies, and the folder comes back from a backup of this very moment: another installation."""
        record = self.daemon.layout.install_record
        if record.exists():
            self.world.fault("chaos_restored", "chaos")
            backup = self.backups.take()
            self._kill_daemon()
            for program in tuple(self.world.programs):
                program.close()
            for container in self.host.running():
                self.host.kill_now(container, "with the machine")
            if backup is None:
                mark_restored(record, None)
            else:
                self.backups.restore(backup)

    def _restart_policy(self) -> None:
        container = self._container()
        if container is not None:
            self.world.fault("chaos_restart_policy", container.id)
            self.host.set_restart_policy(container)

    def _kill_daemon(self) -> None:
        if self.daemon.process is not None:
            self.world.fault("chaos_kill_daemon", "chaos")
            self.world.kill(self.daemon.process, "at random")

    def _kill_both(self) -> None:
        self._kill_daemon()
        self._kill_container()

    def _stop_daemon(self) -> None:
        self.world.counts["chaos_stop_daemon"] += 1
        self.daemon.stop()

    def _freeze_daemon(self) -> None:
        if self.daemon.process is not None:
            self.world.freeze(self.daemon.process, self.world.rng.choice((1.0, 20.0, 100.0, 600.0)))

    def _kill_container(self) -> None:
        if (container := self._container()) is not None:
            self.world.fault("chaos_kill_container", "chaos", container.id)
            self.host.kill_now(container, "at random", out_of_memory=self.world.rng.random() < 0.3)

    def _freeze_container(self) -> None:
        container = self._container()
        if container is not None and container.process is not None:
            self.world.freeze(container.process, self.world.rng.choice((1.0, 30.0, 100.0, 900.0)))

    def _vanish_container(self) -> None:
        if (container := self._container()) is not None:
            self.world.fault("chaos_container_removed", "chaos", container.id)
            self.host.vanish(container)

    def _dockerd_away(self) -> None:
        if self.host.available:
            self.world.counts["chaos_dockerd_away"] += 1
            self.host.set_available(False)
            seconds = self.world.rng.choice((5.0, 40.0, 200.0, 200.0, 7200.0))
            self.world.loop.world_later(seconds, self.host.set_available, True)

    def _dockerd_restart(self) -> None:
        """Without live-restore: every container ends."""
        self._dockerd_away()
        for container in self.host.running():
            self.host.kill_now(container, "with dockerd")

    def _clock_jump(self) -> None:
        rng = self.world.rng
        jump = rng.choice((-1, 1)) * rng.choice((500, 3_000, 60_000, 600_000, 3_600_000))
        self.world.fault("clock_jump", "chaos", f"{jump} ms")
        self.world.clock.offset_ms += jump
        self.clock_back_ms += max(0, -jump)

    def _receiver_down(self) -> None:
        channel = self.world.rng.choice(sorted(TRAITS))
        self.world.fault("receiver_outage", "chaos", channel)
        self.receivers.down_until[channel] = self.world.loop.time() + self.world.rng.choice((10.0, 100.0, 600.0))

    # --- and its end

    def heal(self) -> None:
        """Everything works from now on."""
        self.world.step("world", "HEALS")
        self.world.loop.spawn(None, self.operator.settle(), "the operator")
        self.world.healing = True
        self.world.faults.heal()
        self.host.set_available(True)
        self.receivers.down_until.clear()
        for process in [self.daemon.process, *(item.process for item in self.host.running())]:
            if process is not None:
                self.world.thaw(process)
        if self.daemon.process is None or self.daemon.process.dead:
            self.daemon._restart()
