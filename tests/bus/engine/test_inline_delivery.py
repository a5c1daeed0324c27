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
from daemon.engine import decision_steps, delivery_steps, inline_delivery
from schema.errors import FileBusyError, StorageError
from tests.bus.engine.test_delivery import failing, open_rows, say, states_written, working
from tests.support import fake_channel
from tests.support.bus_kit import BusKit, until
from tests.support.fake_agent import Agent
from tests.support.fake_channel import FakeChannel

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
            answer, self.answer = self.answer, None  # once
            return answer
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
    contents = ['{"error":{"code":"A"}}', '{"error":{"code":"B"}}']  # rows that are intended first
    say(agent, "p1", *contents)
    await until(lambda: own.taken == contents)
    await kit.settle()
    assert await open_rows(kit) == {}
    assert own.taken == contents
    assert kit.fake.calls == [], "it was handed over, and is not sent again"


async def test_a_new_answer_is_settled_and_has_its_receipt_in_one_commit(
    kit: BusKit, own: OwnFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await ready(kit, own)
    written = states_written(monkeypatch)
    monkeypatch.setattr(inline_delivery, "record_outcomes", None)
    (row,) = say(agent, "p1", *texts(1))
    await until(lambda: own.taken == texts(1))
    await kit.settle()
    receipts = await kit.inbound(f"SELECT status, platform_message_id FROM delivered WHERE message_out_id = '{row}'")
    assert [tuple(receipt.values()) for receipt in receipts] == [("delivered", "here")]
    assert (written, await open_rows(kit), kit.fake.calls) == ([], {}, [])


@pytest.mark.parametrize("content", ['{"error":{"code":"A"}}', '{"text":"?","question":{"id":"q","text":"?"}}'])
async def test_an_error_and_what_stands_beside_it_are_intended_first(
    kit: BusKit, own: OwnFake, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    agent, session = await ready(kit, own), await kit.session()
    monkeypatch.setattr(delivery_steps, "is_question", lambda _, text: "question" in text)
    monkeypatch.setattr(decision_steps, "_note_question", lambda *_: None)
    written = states_written(monkeypatch)
    async with session.lock:  # so that one poll finds all of them
        say(agent, "p1", content, *texts(1))
        say(agent, "p2", *texts(1))
    kit.bus.delivery.poke(session)
    await until(lambda: len(own.taken) == 3)
    await kit.settle()
    assert own.taken == [*texts(1), content, *texts(1)], "the order within a place holds, the other place goes first"
    assert (written, await open_rows(kit)) == (["intended"] * 2, {})


async def test_a_commit_that_fails_after_the_channel_has_the_rows_leaves_them_new(
    kit: BusKit, own: OwnFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a crash at that point does: the channel gets the same rows again, and only then they are delivered."""
    agent, session = await ready(kit, own), await kit.session()
    real, failed = delivery_steps.write_receipts, list[int]()

    def fails_once(*arguments: Any) -> None:
        real(*arguments)
        if not failed:
            failed.append(1)
            raise StorageError("no space left")

    monkeypatch.setattr(delivery_steps, "write_receipts", fails_once)
    async with session.lock:  # so that one poll finds both
        rows = say(agent, "p1", *texts(2))
    kit.bus.delivery.poke(session)
    await until(lambda: bool(failed))
    kit.bus.delivery.poke(session)
    await until(lambda: own.taken == texts(2) * 2)
    await kit.settle()
    after = await kit.inbound("SELECT message_out_id FROM delivered")
    assert {row["message_out_id"] for row in after} >= set(rows)
