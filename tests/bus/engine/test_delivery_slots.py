"""Sends under way are bounded, and a session that floods a receiver that hangs delays nobody else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from daemon.channels.protocol import Outgoing, Receipt
from daemon.core.errors import TransientDeliveryError
from daemon.core.session_key import SessionKey
from schema.errors import StorageError
from schema.rows import Address
from tests.support.bus_kit import AGENT, BusKit, until
from tests.support.fake_agent import Agent
from tests.support.fake_channel import FakeChannel

pytestmark = [pytest.mark.anyio]

THREADS = 1500


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncGenerator[BusKit]:
    made = BusKit(
        tmp_path / "data", delivery={"send_timeout_s": 30.0, "max_sends_per_place": 6, "max_sends_per_session": 4},
        channels={"fake": {"type": "fake"}, "web": {"type": "fake"}},
    )  # fmt: skip
    async with made.running():
        yield made


class Watched:
    """Counts what is under way at a channel, by session and place, and the most there ever was."""

    def __init__(self, channel: FakeChannel) -> None:
        self.now: Counter[tuple[str, str]] = Counter()
        self.most: Counter[str] = Counter()
        self.channel = channel
        self._deliver = channel.deliver
        channel.deliver = self.deliver

    async def deliver(self, message: Outgoing) -> Receipt:
        key = (message.session, message.address.platform_id)
        self.now[key] += 1
        self.most["session"] = max(self.most["session"], self.now[key])
        self.most["all"] = max(self.most["all"], sum(self.now.values()))
        try:
            return await self._deliver(message)
        finally:
            self.now[key] -= 1


async def working(kit: BusKit, session: str, *places: str) -> Agent:
    await kit.send(session, message_id="m1", address=Address("fake", "room"))
    await kit.started(session)
    agent = kit.agent(session)
    batch = agent.claim()
    assert batch is not None
    files = kit.bus.sessions.files_of(SessionKey(AGENT, session))

    def allow() -> None:
        with files.inbound() as db, db.transaction():
            for place in places:
                db.execute(
                    "INSERT INTO destinations(name, type, channel_type, platform_id) VALUES (?, 'channel', 'web', ?)",
                    (place, place),
                )

    await (await kit.session(session)).call(allow)
    agent.answer(batch, '{"n":"first"}')
    return agent


def web(kit: BusKit) -> FakeChannel:
    found = kit.bus.channels["web"]
    assert isinstance(found, FakeChannel)
    return found


async def look(kit: BusKit, session: str) -> None:
    kit.bus.delivery.poke(await kit.session(session))


def flood(agent: Agent, place: str, count: int) -> list[str]:
    return [agent.say(json.dumps({"n": number}), ("web", place, f"t{number}")) for number in range(count)]


async def test_a_flood_to_a_receiver_that_hangs_is_bounded_delays_nobody_and_arrives_in_full(kit: BusKit) -> None:
    channel = web(kit)
    watched = Watched(channel)
    channel.stalled["hangs"] = anyio.Event()
    loud, quiet = await working(kit, "loud", "hangs", "works"), await working(kit, "quiet", "works", "hangs")
    said = flood(loud, "hangs", THREADS)
    await look(kit, "loud")
    await until(lambda: watched.now["loud", "hangs"] == 4)
    rows = await kit.inbound("SELECT state, count(*) AS n FROM delivery_attempts GROUP BY state", session="loud")
    assert {row["state"]: row["n"] for row in rows}["intended"] == 4  # what waits for a slot is not in doubt
    # Meanwhile: the same session to another place, its own mailbox, and another session to both places.
    loud.say('{"to":"works"}', ("web", "works", None))
    loud.say('{"to":"mailbox"}', ("fake", "room", None))
    quiet.say('{"from":"quiet"}', ("web", "works", None))
    await look(kit, "loud")
    await look(kit, "quiet")
    await until(lambda: sorted(channel.texts("works")) == ['{"from":"quiet"}', '{"to":"works"}'])
    await until(lambda: '{"to":"mailbox"}' in kit.fake.texts("room"))
    quiet.say('{"behind":"the flood"}', ("web", "hangs", None))
    await look(kit, "quiet")
    await until(lambda: watched.now["quiet", "hangs"] == 1)  # the flood does not have all slots of the place
    channel.stalled.pop("hangs").set()
    await until(lambda: len(channel.texts("hangs")) == THREADS + 1, seconds=60)
    await kit.settle()
    assert {one.message_out_id for one in channel.sent} >= set(said)
    assert len({one.message_out_id for one in channel.sent}) == len(channel.sent)
    assert watched.most["session"] == 4
    assert watched.most["all"] <= 4 + 1 + 4 + 1
    assert await kit.inbound("SELECT * FROM delivery_attempts", session="loud") == []


async def test_two_sessions_that_flood_one_place_take_turns(kit: BusKit) -> None:
    channel = web(kit)
    watched = Watched(channel)
    gate = channel.stalled["place"] = anyio.Event()
    first, second = await working(kit, "first", "place"), await working(kit, "second", "place")
    flood(first, "place", 60)
    await look(kit, "first")
    await until(lambda: watched.now["first", "place"] == 4)
    flood(second, "place", 60)
    await look(kit, "second")
    await until(lambda: watched.now["second", "place"] == 2)
    await kit.settle_collects()
    del channel.stalled["place"]
    gate.set()
    await until(lambda: len(channel.texts("place")) == 120)
    early = Counter(one.session for one in channel.sent[:80] if one.address.platform_id == "place")
    assert min(early.values()) >= 20


async def test_after_slow_failures_a_place_is_probed_by_one_send_at_a_time(kit: BusKit) -> None:
    channel = web(kit)
    watched = Watched(channel)
    gate = channel.stalled["place"] = anyio.Event()
    agent = await working(kit, "main", "place")
    flood(agent, "place", 20)
    await look(kit, "main")
    await until(lambda: watched.now["main", "place"] == 4)
    channel.script["place"].extend(TransientDeliveryError("no answer") for _ in range(4))
    kit.clock.advance(5)
    channel.stalled["place"] = anyio.Event()
    gate.set()
    await until(lambda: len(channel.calls) == 5)
    await kit.settle_collects()
    assert watched.now["main", "place"] == 1
    channel.stalled.pop("place").set()
    await until(lambda: len(channel.texts("place")) == 16)
    kit.advance(3600)
    await until(lambda: len(channel.texts("place")) == 20)


async def test_a_look_that_fails_after_it_took_slots_gives_them_back(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daemon.store import deliveries  # noqa: PLC0415

    channel = web(kit)
    agent = await working(kit, "main", "place")
    await kit.settle()
    real, left = deliveries.advance, [3]

    def failing(*arguments: object) -> None:
        if left[0]:
            left[0] -= 1
            raise StorageError("disk I/O error")
        real(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(deliveries, "advance", failing)
    flood(agent, "place", 30)
    while left[0]:
        await look(kit, "main")
        await kit.settle()
        assert channel.sent or kit.bus.delivery._contexts.slots.in_use("web") == 0
    await look(kit, "main")
    await until(lambda: len(channel.texts("place")) == 30)
    await kit.settle()
    assert kit.bus.delivery._contexts.slots.in_use("web") == 0


async def test_a_quarantined_session_passes_its_turn_on(kit: BusKit) -> None:
    channel = web(kit)
    watched = Watched(channel)
    gate = channel.stalled["place"] = anyio.Event()
    agents = {name: await working(kit, name, "place") for name in ("one", "two")}
    for agent in agents.values():
        flood(agent, "place", 10)
    for name in agents:
        await look(kit, name)
    await until(lambda: sum(watched.now.values()) == 6)
    held = await kit.session("two")
    held.quarantined = "a test"
    del channel.stalled["place"]
    gate.set()
    await until(lambda: sum(one.session == "one" for one in channel.sent) == 10)
    await kit.settle()
    assert kit.bus.delivery._contexts.slots.in_use("web") == 0


async def test_a_channel_that_takes_nothing_is_degraded_with_its_cause_and_heals_by_itself(kit: BusKit) -> None:
    channel = web(kit)
    agent = await working(kit, "main", "place")
    channel.script["place"].extend(TransientDeliveryError("answered 503") for _ in range(5))
    flood(agent, "place", 8)
    await look(kit, "main")
    await until(lambda: len(channel.texts("place")) == 3)
    await kit.settle()
    assert kit.bus.problems.degraded() == []  # it takes others
    channel.script["place"].extend(TransientDeliveryError("answered 503") for _ in range(5))
    kit.advance(10)
    await until(lambda: not channel.script["place"])
    await kit.settle()
    (degraded,) = kit.bus.problems.degraded()
    assert degraded["what"] == "channel web"
    assert degraded["why"] == "sends to place fail (5 in a row): answered 503"
    kit.advance(3600)
    await until(lambda: len(channel.texts("place")) == 8)
    await kit.settle()
    assert kit.bus.problems.degraded() == []
