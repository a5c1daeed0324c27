"""The bus inside the benchmark's own process: the real parts, wired by the composition root, without sockets or agents.

For what cannot be seen from outside a daemon: the cost of one look, and a drain into a channel that does nothing. Every
touch of the product's inner names is in this file.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final, cast

import anyio

from bench.noop_channel import ENTRY_POINT, NAME, NoopChannel
from bench.stage import ECHO
from container_runner.store import Store
from daemon.app.bus import Bus, Overrides
from daemon.channels.protocol import Incoming
from daemon.channels.registry import find_types
from daemon.config.agents import Agent
from daemon.config.models import Config, Delivery, Runtime
from daemon.core.clock import SystemClock
from daemon.core.delivery_plan import ChannelRules
from daemon.core.session_key import SessionKey
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import Collected, collect
from daemon.engine.session import Session
from daemon.logs.pipeline import configure
from daemon.runtimes.factory import build_runtime
from daemon.store.data_folder import DataFolder
from daemon.store.messages import insert, next_even_seq, note_claim, set_routing
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import change_status
from daemon.store.verified_idle import recorded
from daemon.systemd.watchdog import Pulse
from schema.connect import open_owner, open_reader
from schema.handles import Writer
from schema.instants import to_text
from schema.migrate import Role
from schema.rows import Address, MessageIn, MessageStatus

ADDRESS: Final = Address(NAME, "nobody")
QUESTION: Final = "question"
_FILL_AT_ONCE: Final = 10_000


@asynccontextmanager
async def open_house(data: Path) -> AsyncGenerator[Bus]:
    """A wired bus over a fresh data folder, its delivery started and nothing else."""
    clock = SystemClock()
    config = Config(data_dir=data, runtime=Runtime(kind="process"), agents={ECHO: Agent()}, channels={NAME: {}})
    types = {**find_types(), NAME: ENTRY_POINT}
    with ExitStack() as opened:
        folder = opened.enter_context(DataFolder.open(data, clock))
        folder.make_agents(config.agents)
        # Every event goes where a daemon's goes, to its file and to stderr: writing them is part of what a row costs.
        nowhere = opened.enter_context(Path(os.devnull).open("w", encoding="utf-8"))  # noqa: ASYNC230
        opened.callback(configure(config.logs, data, nowhere, clock).close)
        runtime = build_runtime(config, folder, "bench", clock)
        bus = Bus(config, folder, runtime, "bench", clock, Pulse(clock), Overrides(types=types))
        channels_run = anyio.Event()
        channels_run.set()
        async with anyio.create_task_group() as tasks:
            await tasks.start(bus.delivery.run, channels_run)
            yield bus
            await bus.delivery.close(10.0)
            tasks.cancel_scope.cancel()


async def make_session(bus: Bus, name: str) -> Session:
    """A session whose one message asked for answers on the noop channel."""
    session = await bus.sessions.create(SessionKey(ECHO, name))
    await session.call(lambda: accept_question(session.files))
    return session


def accept_question(files: SessionFiles) -> None:
    """Store one message as the ingress does."""
    now = SystemClock().now_ms()
    with files.inbound() as db, db.transaction():
        message = MessageIn(
            id=QUESTION, seq=next_even_seq(db), kind="chat", timestamp=to_text(now), status=MessageStatus.PENDING,
            content='{"text":"hello"}', series_id=QUESTION, channel_type=ADDRESS.channel_type,
            platform_id=ADDRESS.platform_id,
        )  # fmt: skip
        insert(db, message, now)
        set_routing(db, ADDRESS)


def say(files: SessionFiles, rows: int, places: int = 1) -> None:
    """Answers as a runner commits them, in one transaction; spread over `places` destinations in turn."""
    at = to_text(SystemClock().now_ms())
    with files.inbound() as db, db.transaction():
        db.executemany(
            "INSERT OR IGNORE INTO destinations(name, type, channel_type, platform_id) VALUES (?, 'channel', ?, ?)",
            [(f"place{place}", NAME, _place(place)) for place in range(places)],
        )
    with open_owner(files.folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
        row = db.one("SELECT coalesce(max(seq), 1) AS top FROM messages_out")
        top = int(row["top"]) if row is not None else 1
        db.executemany(
            "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, kind, channel_type, platform_id, content)"
            " VALUES (?, ?, ?, ?, 'chat', ?, ?, ?)",
            [
                (f"answer-{top}-{n}", top + 2 * n, QUESTION, at, NAME, _place(n % places), '{"text":"an answer"}')
                for n in range(1, rows + 1)
            ],
        )


def _place(number: int) -> str:
    return ADDRESS.platform_id if number == 0 else f"place-{number}"


def noop(bus: Bus) -> NoopChannel:
    """The bus's channel of that name."""
    return cast("NoopChannel", bus.channels[NAME])


def receipts(files: SessionFiles) -> int:
    """How many rows have one."""
    with files.inbound() as db:
        row = db.one("SELECT count(*) AS n FROM delivered WHERE status = 'delivered'")
        return int(row["n"]) if row is not None else 0


def look(files: SessionFiles) -> Collected:
    """One look at a session, as the delivery makes it whenever it is poked."""
    means = DeliveryContext(
        {NAME: ChannelRules(deduplicates=True, hold_in_doubt=False)},
        Delivery(), 1024**2, frozenset(), frozenset(), random.Random(0).random(),  # noqa: S311 - nothing is retried
    )  # fmt: skip
    return collect(files, means, "incarnation", SystemClock())


def runner_of(files: SessionFiles) -> Store:
    """A runner's access to the session's files. It keeps outbound.db open between looks, as the runner does."""
    return Store(files.folder.inbox, files.folder.outbox, "incarnation", SystemClock().now_ms)


def runner_look(runner: Store) -> int:
    """One look of a runner at what is due: how many messages it claimed."""
    batch = runner.claim(10, first_poll=False)
    return 0 if batch is None else len(batch.messages)


def fill_history(files: SessionFiles, done: int) -> None:
    """`done` messages that were accepted, claimed, answered, delivered and settled, in every table that keeps them.

    As the two sides write them, but without their syncs: nobody needs this to survive a power cut.
    """
    at = to_text(SystemClock().now_ms())
    with open_owner(files.folder.outbound_db, Role.OUTBOUND) as db:
        db.execute("PRAGMA synchronous=OFF")
        with db.transaction():
            _fill(db, "messages_out(id, seq, in_reply_to, timestamp, kind, channel_type, platform_id, content)",
                  done, lambda n: (f"out-{n}", 4 * n + 1, f"in-{n}", at, "chat", NAME, "nobody", '{"text":"an answer"}'))  # fmt: skip
            _fill(db, "processing_ack(message_id, status, status_changed, incarnation)",
                  done, lambda n: (f"in-{n}", "completed", at, "incarnation"))  # fmt: skip
    with files.outbound() as out:
        file_id = out.file_id if out is not None else ""
    with files.inbound() as db:
        db.execute("PRAGMA synchronous=OFF")
        with db.transaction():
            _fill(db, "messages_in(id, seq, kind, timestamp, status, series_id, channel_type, platform_id, content)",
                  done, lambda n: (f"in-{n}", 4 * n, "chat", at, "completed", f"in-{n}", NAME, "nobody", '{"text":"hi"}'))  # fmt: skip
            for event in ("accepted", "claimed", "completed"):
                _fill(db, "message_history(message_id, event, at)", done, lambda n, event=event: (f"in-{n}", event, n))
            _fill(db, "attempts(message_id, incarnation, claimed_at, ended_at, outcome)",
                  done, lambda n: (f"in-{n}", "incarnation", n, n, "completed"))  # fmt: skip
            _fill(db, "delivered(message_out_id, status, delivered_at)", done, lambda n: (f"out-{n}", "delivered", at))
            db.execute("INSERT INTO delivery_cursor(id, seq, file_id) VALUES (1, ?, ?)", (4 * done + 1, file_id))


def know_outbound(files: SessionFiles) -> None:
    """Let a copied session take its outbound.db for the one that it has always had: a look must not find it anew."""
    with files.outbound() as out:
        file_id = out.file_id if out is not None else ""
    with files.inbound() as db:
        db.execute("PRAGMA synchronous=OFF")
        with db.transaction():
            db.execute("UPDATE delivery_cursor SET file_id = ?", (file_id,))


def _fill(db: Writer, into: str, rows: int, values: Callable[[int], tuple[object, ...]]) -> None:
    places = ", ".join("?" for _ in values(0))
    for first in range(1, rows + 1, _FILL_AT_ONCE):
        last = min(first + _FILL_AT_ONCE, rows + 1)
        db.executemany(f"INSERT INTO {into} VALUES ({places})", [values(number) for number in range(first, last)])


def register_idle(data: Path, sessions: int) -> None:
    """Rows of central.db for that many sessions without work; the first daemon on the folder makes the rest of it."""
    with open_owner(data / "central.db", Role.CENTRAL) as db, db.transaction():
        db.executemany(
            "INSERT INTO sessions(agent, session, created_at, active) VALUES (?, ?, ?, 0)",
            [(ECHO, session_name(number), number + 1) for number in range(sessions)],
        )


class Odd(StrEnum):
    """What is wrong with one session of many."""

    DEAD = "dead"  # a message that was given up
    STUCK = "stuck"  # a message that is claimed, and no progress
    GHOST = "ghost"  # a message that the host takes for claimed, and its container never said so


def make_odd(files: SessionFiles, odd: Odd) -> None:
    """Leave a message in that state, a day old, as the product's own functions write it."""
    at = SystemClock().now_ms() - 86_400_000
    accept_question(files)
    with files.inbound() as db, db.transaction():
        if odd is Odd.DEAD:
            change_status(db, QUESTION, MessageStatus.FAILED, "failed", at)
        else:
            note_claim(db, QUESTION, f"incarnation-{odd}", at, at)
    if odd is Odd.STUCK:
        with open_owner(files.folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
            db.execute(
                "INSERT INTO processing_ack(message_id, status, status_changed, incarnation) VALUES (?, ?, ?, ?)",
                (QUESTION, "processing", to_text(at), f"incarnation-{odd}"),
            )


def records_of_idle(data: Path, now: int) -> int:
    """How many sessions the daemon has read and recorded as idle."""
    with open_reader(data / "central.db") as db:
        return len(recorded(db, now))


def session_name(number: int) -> str:
    """Of one session of many."""
    return f"s{number:06d}"


async def accept_many(bus: Bus, session: str, messages: int) -> None:
    """Messages through the ingress, one after the other. They wake nobody: they are context."""
    for number in range(messages):
        await bus.ingress.accept(
            Incoming(ECHO, session, {"text": "hello"}, message_id=f"put-{number}", address=ADDRESS, trigger=False)
        )
