"""Sends of several rows at once, and queues longer than a batch: order, what is recorded, and that nothing is left lying."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.channels.protocol import Outgoing, Receipt
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from tests.bus.engine.test_delivery import failing, open_rows, say, working
from tests.support import fake_channel
from tests.support.bus_kit import BusKit, until
from tests.support.fake_channel import FakeChannel

pytestmark = [pytest.mark.anyio]


class ManyFake:
    """What is added to the fake channel: the runs that it was handed, and what it does instead of taking them."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.refuse: dict[str, Exception] = {}  # content -> what is said of it
        self.answer: list[Any] | None = None
        self.error: Exception | None = None

    async def deliver_many(self, channel: FakeChannel, messages: Sequence[Outgoing]) -> Sequence[Any]:
        self.runs.append([message.content for message in messages])
        if self.error is not None:
            raise self.error
        results: list[Any] = []
        for message in messages if self.answer is None else ():
            if message.content in self.refuse:
                return [*results, self.refuse.pop(message.content)]
            results.append(await FakeChannel.deliver(channel, message))
        return results if self.answer is None else self.answer


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> ManyFake:
    made = ManyFake()

    class ManyFakeChannel(FakeChannel):  # a class of its own: what a class can do is asked once, and remembered
        async def deliver_many(self, messages: Sequence[Outgoing]) -> Sequence[Any]:
            return await made.deliver_many(self, messages)

    monkeypatch.setattr(fake_channel, "FakeChannel", ManyFakeChannel)
    return made


@pytest.fixture
async def kit(tmp_path: Path, many: ManyFake) -> AsyncGenerator[BusKit]:
    channels = {"fake": {"type": "fake", "deduplicates": True}}
    made = BusKit(tmp_path / "data", channels=channels, delivery={"batch": 3})
    async with made.running():
        yield made


def texts(count: int) -> list[str]:
    return [f'{{"n":{number}}}' for number in range(count)]


async def test_a_queue_longer_than_a_batch_drains_by_itself(kit: BusKit, many: ManyFake) -> None:
    agent = await working(kit)
    say(agent, "p1", *texts(20))
    kit.bus.delivery.poke(await kit.session())
    await until(lambda: len(kit.fake.texts("p1")) == 20)
    await kit.settle()
    assert kit.fake.texts("p1") == texts(20)
    assert await open_rows(kit) == {}
    assert max(map(len, many.runs)) == 3


async def test_one_row_alone_is_sent_alone(kit: BusKit, many: ManyFake) -> None:
    agent = await working(kit)
    say(agent, "p1", *texts(1))
    await until(lambda: kit.fake.texts("p1") == texts(1))
    assert many.runs == []


async def test_rows_behind_a_failed_one_wait_for_it(kit: BusKit, many: ManyFake) -> None:
    agent = await working(kit)
    many.refuse[texts(3)[1]] = TransientDeliveryError("not now")
    ids = say(agent, "p1", *texts(3))
    row = await failing(kit, ids[1])
    assert (row["state"], row["attempts"], row["last_error_code"]) == ("retrying", 1, "DELIVERY_TRANSIENT")
    await kit.settle()
    assert kit.fake.texts("p1") == texts(1)
    assert (await open_rows(kit))[ids[2]]["attempts"] == 0, "it was not begun"
    kit.advance(60)
    await until(lambda: kit.fake.texts("p1") == texts(3))


async def test_rows_behind_a_dead_letter_go_on_at_once(kit: BusKit, many: ManyFake) -> None:
    agent = await working(kit)
    many.refuse[texts(3)[0]] = PermanentDeliveryError("never")
    ids = say(agent, "p1", *texts(3))
    await until(lambda: kit.fake.texts("p1") == texts(3)[1:])
    assert (await failing(kit, ids[0]))["state"] == "dead"


@pytest.mark.parametrize(
    ("error", "code"),
    [(TransientDeliveryError("gone"), "DELIVERY_TRANSIENT"), (ValueError("a bug"), "CHANNEL_BUG")],
)
async def test_a_run_that_raises_is_borne_by_its_first_row(
    kit: BusKit, many: ManyFake, error: Exception, code: str
) -> None:
    agent = await working(kit)
    many.error = error
    ids = say(agent, "p1", *texts(3))
    assert (await failing(kit, ids[0]))["last_error_code"] == code
    rows = await open_rows(kit)
    assert [(rows[one]["state"], rows[one]["attempts"]) for one in ids[1:]] == [("queued", 0)] * 2
    many.error = None
    kit.advance(60)
    await until(lambda: kit.fake.texts("p1") == texts(3))


@pytest.mark.parametrize("answer", [[], [Receipt(), "yes"], [None]])
async def test_what_is_no_receipt_is_no_delivery(kit: BusKit, many: ManyFake, answer: list[Any]) -> None:
    agent = await working(kit)
    many.answer = answer
    ids = say(agent, "p1", *texts(3))
    receipts = sum(isinstance(one, Receipt) for one in answer)
    assert (await failing(kit, ids[receipts]))["last_error_code"] == "CHANNEL_BUG"
    assert set(await open_rows(kit)) == set(ids[receipts:])


async def test_a_run_that_hangs_ends_with_its_time_out(tmp_path: Path, many: ManyFake) -> None:
    channels = {"fake": {"type": "fake", "deduplicates": True}}
    kit = BusKit(tmp_path / "hang", channels=channels, delivery={"batch": 3, "send_timeout_s": 0.05})
    async with kit.running():
        agent = await working(kit)
        kit.fake.stalled["p1"] = anyio.Event()
        ids = say(agent, "p1", *texts(2))
        assert "no answer" in (await failing(kit, ids[0]))["last_error"]


async def test_many_deliveries_are_told_in_one_event(tmp_path: Path, many: ManyFake) -> None:
    channels = {"fake": {"type": "fake", "deduplicates": True}}
    kit = BusKit(tmp_path / "told", channels=channels)
    with capture_logs() as logs:
        async with kit.running():
            agent = await working(kit)
            ids = say(agent, "p1", *texts(30))
            await until(lambda: len(kit.fake.texts("p1")) == 30)
            await kit.settle()
    told = [one for entry in logs if entry["event"] == "messages_delivered" for one in entry["messages_out"]]
    told += [entry["message_out"] for entry in logs if entry["event"] == "message_delivered"]
    assert sorted(set(told) & set(ids)) == sorted(ids)
    assert len(told) == len(set(told))
