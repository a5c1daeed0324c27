"""What nobody could try is not given up: after a stop, or a machine's sleep, the daemon tries for a while itself."""

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from daemon.channels.protocol import Outgoing, Receipt
from daemon.core.errors import TransientDeliveryError
from daemon.core.giving_up import tried_long_enough
from daemon.core.message_fate import Defer, Fate, GiveUp, deferred
from daemon.engine.awake import Awake
from schema.rows import Ack, AckStatus, Deferral, MessageIn, MessageStatus
from tests.support.bus_kit import BusKit, until
from tests.support.clock import MovedClock
from tests.support.fake_channel import FakeChannel

HOUR = 3_600_000
DAY = 24 * HOUR


def test_the_hour_of_its_own() -> None:
    assert tried_long_enough(2 * DAY, 0, 0, DAY)
    assert not tried_long_enough(2 * DAY, 0, 2 * DAY - HOUR, DAY)
    assert tried_long_enough(2 * DAY, 0, 2 * DAY - HOUR - 1, DAY)
    assert tried_long_enough(2 * DAY, 0, 2 * DAY - 11, 10), "or less, where less is configured"
    assert not tried_long_enough(DAY, 0, 0, DAY)


def test_sleep_and_a_clock_that_is_set_begin_it_anew() -> None:
    clock = MovedClock()
    awake, began = Awake(clock), clock.now_ms()
    clock.advance(50_000)
    clock.jump(30)
    assert awake.since() == began
    clock.jump(-10_000)
    assert awake.since() == clock.now_ms(), "set back: its start does not lie in the future"
    clock.jump(7_200)
    assert awake.since() == clock.now_ms()
    clock.advance(100)
    assert awake.since() == clock.now_ms() - 100_000


@pytest.mark.parametrize(
    ("up_s", "off_ms", "doubted"),
    [(20.0, 30 * DAY, True), (20.0, HOUR, False), (20.0, -DAY, False), (20.0, None, False), (4000.0, 30 * DAY, False)],
)
def test_a_clock_that_was_wrong_before_the_start_is_doubted_after_a_boot(
    up_s: float, off_ms: int | None, *, doubted: bool
) -> None:
    clock = MovedClock(up_s=up_s)
    awake = Awake(clock, clock.now_ms() - off_ms if off_ms is not None else None)
    assert awake.doubts() == doubted
    clock.advance(301)
    assert not awake.doubts()


def test_later_over_a_weekend_without_a_daemon_is_not_given_up() -> None:
    message = MessageIn("m", 2, "chat", "", MessageStatus.PENDING, "{}", deferrals=1)
    ack = Ack("m", AckStatus.LATER, 3 * DAY, "I1", deferral=Deferral(2))
    assert isinstance(deferred(message, ack, 0, Fate(), 3 * DAY), GiveUp)
    assert isinstance(deferred(message, ack, 0, Fate(trying_since=3 * DAY - 1000), 3 * DAY), Defer)


@pytest.mark.anyio
@pytest.mark.parametrize("away", ["stopped", "asleep"])
async def test_an_answer_that_nobody_could_send_for_two_days_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """The network, or a receiver on the same machine, is often up a moment later than the daemon."""
    kit = BusKit(tmp_path / "data", delivery={"retry_base_s": 1.0})
    tries: list[str] = []

    async def deliver(_: FakeChannel, message: Outgoing) -> Receipt:
        await anyio.lowlevel.checkpoint()
        tries.append(message.message_out_id)
        raise TransientDeliveryError("no route to host")

    async def retrying(number: int) -> None:
        await until(lambda: len(tries) >= number)
        await until(lambda: not kit.bus.delivery.senders)
        assert [row["state"] for row in await kit.inbound("SELECT state FROM delivery_attempts")] == ["retrying"]

    monkeypatch.setattr(FakeChannel, "deliver", deliver)
    async with kit.running() as bus:
        await kit.send()
        await kit.started()
        batch = kit.agent().claim()
        assert batch is not None
        kit.agent().answer(batch)
        bus.delivery.poke(await kit.session())
        await retrying(1)
        if away == "asleep":
            kit.clock.jump(2 * 86_400)
            bus.delivery.poke(await kit.session())
            await retrying(2)
    if away == "stopped":
        kit.advance(2 * 86_400)
        async with kit.running() as bus:
            bus.delivery.poke(await kit.session())
            await retrying(2)
