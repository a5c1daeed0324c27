"""The short way out: what a channel takes in the look's own thread, and that everything else goes the ordinary way."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.channels.protocol import Outgoing, Receipt
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.engine import inline_delivery
from schema.errors import FileBusyError
from tests.support import fake_channel
from tests.support.bus_kit import BusKit, until
from tests.support.fake_agent import Agent
from tests.support.fake_channel import FakeChannel
from tests.unit.engine.test_delivery import failing, open_rows, say, working

pytestmark = [pytest.mark.anyio]


class OwnFake:
    """What is added to the fake channel: what it took here, and what it does instead."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.threads: set[int] = set()
        self.refuse: dict[str, Exception] = {}
        self.busy = True  # until the kit has warmed up
        self.error: Exception | None = None
        self.answer: list[Any] | None = None

    def deliver_inline(self, messages: Sequence[Outgoing]) -> Sequence[Any] | None:
        self.threads.add(threading.get_ident())
        if self.busy:
            return None
        if self.error is not None:
            raise self.error
        if self.answer is not None:
            return self.answer
        results: list[Any] = []
        for message in messages:
            if message.content in self.refuse:
                return [*results, self.refuse.pop(message.content)]
            self.taken.append(message.content)
            results.append(Receipt("here"))
        return results


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> OwnFake:
    made = OwnFake()

    class OwnFakeChannel(FakeChannel):  # a class of its own: what a class can do is asked once, and remembered
        def deliver_inline(self, messages: Sequence[Outgoing]) -> Sequence[Any] | None:
            return made.deliver_inline(messages)

    monkeypatch.setattr(fake_channel, "FakeChannel", OwnFakeChannel)
    return made


@pytest.fixture
async def kit(tmp_path: Path, own: OwnFake) -> AsyncGenerator[BusKit]:
    channels = {"fake": {"type": "fake", "deduplicates": True}}
    made = BusKit(tmp_path / "data", channels=channels, delivery={"batch": 3})
    async with made.running():
        yield made


async def ready(kit: BusKit, own: OwnFake) -> Agent:
    """An agent at work; from now on the channel takes what it is handed here."""
    agent = await working(kit)
    await kit.settle()
    own.busy = False
    own.threads.clear()
    kit.fake.sent.clear()
    kit.fake.calls.clear()
    return agent


def texts(count: int) -> list[str]:
    return [f'{{"n":{number}}}' for number in range(count)]


async def test_a_pile_is_taken_in_order_and_every_row_has_its_receipt(kit: BusKit, own: OwnFake) -> None:
    agent = await ready(kit, own)
    with capture_logs() as logs:
        say(agent, "p1", *texts(10))
        kit.bus.delivery.poke(await kit.session())
        await until(lambda: len(own.taken) == 10)
        await kit.settle()
    assert own.taken == texts(10)
    assert kit.fake.calls == [], "nothing went the ordinary way"
    assert await open_rows(kit) == {}
    assert sum(log["event"] == "message_delivered" for log in logs) == 10
    assert threading.get_ident() not in own.threads


async def test_a_channel_that_would_have_to_wait_gets_it_the_ordinary_way(kit: BusKit, own: OwnFake) -> None:
    agent = await ready(kit, own)
    own.busy = True
    say(agent, "p1", *texts(3))
    await until(lambda: kit.fake.texts("p1") == texts(3))
    await kit.settle()
    assert await open_rows(kit) == {}


async def test_one_that_does_not_deduplicate_is_not_asked(tmp_path: Path, own: OwnFake) -> None:
    kit = BusKit(tmp_path / "other")
    async with kit.running():
        agent = await ready(kit, own)
        say(agent, "p1", *texts(1))
        await until(lambda: kit.fake.texts("p1") == texts(1))
    assert own.taken == []


async def test_rows_behind_a_failed_one_wait_for_it(kit: BusKit, own: OwnFake) -> None:
    agent = await ready(kit, own)
    own.refuse[texts(3)[1]] = TransientDeliveryError("not now")
    ids = say(agent, "p1", *texts(3))
    row = await failing(kit, ids[1])
    assert (row["state"], row["attempts"], row["last_error_code"]) == ("retrying", 1, "DELIVERY_TRANSIENT")
    await kit.settle()
    assert own.taken == texts(1)
    assert (await open_rows(kit))[ids[2]]["attempts"] == 0, "it was not begun"
    kit.advance(60)
    await until(lambda: own.taken == texts(3))


async def test_after_a_failure_the_other_places_get_theirs_the_ordinary_way(kit: BusKit, own: OwnFake) -> None:
    """A failure may be a lock that was waited for; a session's lock must not be held for one such wait after another."""
    agent, session = await ready(kit, own), await kit.session()
    own.refuse[texts(2)[0]] = TransientDeliveryError("locked")
    async with session.lock:  # so that one look finds both
        ids = [*say(agent, "p1", texts(2)[0]), *say(agent, "p2", texts(2)[1])]
    kit.bus.delivery.poke(session)
    await until(lambda: kit.fake.texts("p2") == [texts(2)[1]])
    assert own.taken == []
    assert (await failing(kit, ids[0]))["attempts"] == 1


async def test_rows_behind_a_dead_letter_go_on_at_once(kit: BusKit, own: OwnFake) -> None:
    agent = await ready(kit, own)
    own.refuse[texts(3)[0]] = PermanentDeliveryError("never")
    ids = say(agent, "p1", *texts(3))
    await until(lambda: own.taken == texts(3)[1:])
    assert (await failing(kit, ids[0]))["state"] == "dead"


async def test_a_channel_that_raises_is_told_of_and_asked_the_ordinary_way(kit: BusKit, own: OwnFake) -> None:
    agent = await ready(kit, own)
    own.error = ValueError("a bug")
    with capture_logs() as logs:
        say(agent, "p1", *texts(2))
        await until(lambda: kit.fake.texts("p1") == texts(2))
    assert any(log["event"] == "channel_raised" for log in logs)


async def test_what_is_no_receipt_is_no_delivery(kit: BusKit, own: OwnFake) -> None:
    agent = await ready(kit, own)
    own.answer = [Receipt("one"), "sent, trust me"]
    say(agent, "p1", *texts(2))
    await until(lambda: len(own.threads) > 0)
    own.answer = None
    # The first one is taken, the second comes again.
    await until(lambda: [*own.taken, *kit.fake.texts("p1")] == texts(2)[1:])
    await kit.settle()
    assert await open_rows(kit) == {}


async def test_receipts_that_cannot_be_recorded_here_are_recorded_the_ordinary_way(
    kit: BusKit, own: OwnFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await ready(kit, own)

    def locked(*_: object) -> Any:
        raise FileBusyError("locked")

    monkeypatch.setattr(inline_delivery, "record_outcomes", locked)
    say(agent, "p1", *texts(2))
    await until(lambda: own.taken == texts(2))
    await kit.settle()
    assert await open_rows(kit) == {}
    assert own.taken == texts(2)
    assert kit.fake.calls == [], "it was handed over, and is not sent again"
