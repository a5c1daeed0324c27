"""A clock that is far ahead for a minute and comes back ends nothing for good, and puts nothing off."""

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from container_runner.shared.outbox import Outbox
from container_runner.shared.reply import Reply
from daemon.channels.protocol import Outgoing, Receipt
from daemon.core.errors import SpawnError, TransientDeliveryError
from daemon.core.schedules import Times
from daemon.core.session_key import SessionKey
from daemon.engine import schedule_steps
from daemon.store.dead_letters import Operator
from daemon.store.schedules import Scheduled
from schema.questions import APPROVAL, Question, to_content
from schema.rows import Address
from tests.support.bus_kit import AGENT, BusKit, until
from tests.support.clock import MovedClock
from tests.support.fake_channel import FakeChannel

pytestmark = pytest.mark.anyio
YEAR_S = 366 * 86_400
DAY_S = 86_400


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncGenerator[BusKit]:
    kit = BusKit(tmp_path / "data", delivery={"retry_base_s": 1.0}, sweep={"backoff_base_s": 1.0})
    async with kit.running():
        yield kit


async def ahead_for_a_minute(kit: BusKit) -> None:
    """The clock is a year ahead, for a minute with sweeps in it, and comes back."""
    await kit.bus.sweeper.tick()
    kit.clock.jump(YEAR_S)
    for _ in range(3):
        await kit.bus.sweeper.tick()
        await kit.settle()
        kit.clock.advance(20)
    await set_right(kit)


async def test_a_message_expires_at_its_own_time(kit: BusKit) -> None:
    at = kit.clock.now_ms() + 3_600_000
    await kit.send(message_id="m1", not_after=at)
    await ahead_for_a_minute(kit)
    assert (await kit.message("m1"))["status"] == "pending"
    kit.advance(3_700)
    await kit.bus.sweeper.tick()
    assert (await kit.message("m1"))["status"] == "cancelled"


async def set_right(kit: BusKit) -> None:
    """The clock comes back, and the session is swept."""
    kit.clock.jump(-YEAR_S)
    await kit.bus.sweeper.tick()
    await kit.bus.sweeper.sweep(SessionKey(AGENT, "main"))
    await kit.settle()


async def ask(kit: BusKit) -> None:
    """The agent asks, with a deadline in an hour."""
    agent = kit.agent()
    batch = agent.claim()
    assert batch is not None
    identity, question = "q-1", Question("deploy?", APPROVAL, free_text=False, timeout_s=3600)
    folder = (await kit.session()).files.folder
    reply = Reply("system", to_content(identity, question), batch.messages[0].id, "fake", "room", None)
    Outbox(folder.inbound_db.parent, folder.outbox, kit.clock.now_ms).add(identity, reply)
    kit.bus.delivery.poke(await kit.session())
    await until(lambda: bool(kit.fake.sent))
    await kit.settle()


async def outcomes(kit: BusKit) -> list[str | None]:
    return [row["outcome"] for row in await kit.inbound("SELECT outcome FROM questions")]


async def test_a_question_ends_at_its_deadline(kit: BusKit) -> None:
    await kit.send(message_id="m1")
    await kit.started()
    await ask(kit)
    await ahead_for_a_minute(kit)
    assert await outcomes(kit) == [None]
    kit.advance(3_600)
    await kit.bus.sweeper.tick()
    assert await outcomes(kit) == ["timeout"]


async def test_a_question_that_was_asked_meanwhile_ends_an_hour_later(kit: BusKit) -> None:
    await kit.send(message_id="m1")
    await kit.started()
    kit.clock.jump(YEAR_S)
    await kit.bus.sweeper.tick()
    await ask(kit)
    await set_right(kit)
    assert await outcomes(kit) == [None]
    kit.advance(3_660)
    await kit.bus.sweeper.tick()
    assert await outcomes(kit) == ["timeout"]


async def test_what_is_over_ends_where_the_clock_stays(kit: BusKit) -> None:
    await kit.send(message_id="m1", not_after=kit.clock.now_ms() + 3_600_000)
    kit.clock.jump(DAY_S)
    await kit.bus.sweeper.tick()
    assert (await kit.message("m1"))["status"] == "pending"
    kit.advance(301)
    await kit.bus.sweeper.tick()
    assert (await kit.message("m1"))["status"] == "cancelled"


async def schedule(kit: BusKit, times: Times) -> None:
    """Store a schedule as an operator does."""
    session = await kit.session()

    def put() -> None:
        what = Scheduled(times, '{"text":"go"}', Address("fake", "room"))
        with session.files.inbound() as db, db.transaction():
            schedule_steps.put(db, "k", what, Operator("anna"), kit.clock.now_ms())

    await session.call(put)


async def fired(kit: BusKit) -> list[str]:
    return [row["id"] for row in await kit.inbound("SELECT id FROM messages_in WHERE series_id = 'schedule:k'")]


async def test_a_schedule_comes_at_its_own_time(kit: BusKit) -> None:
    await kit.send(message_id="m1")
    at = kit.clock.now_ms() + 3_600_000
    await schedule(kit, Times(at=at))
    await ahead_for_a_minute(kit)
    assert await fired(kit) == []
    kit.advance(3_600)
    await kit.bus.sweeper.tick()
    assert await fired(kit) == [f"schedule:k@{at}"]


async def test_what_was_due_just_before_the_clock_was_set_is_not_missed(kit: BusKit) -> None:
    """The time in which the clock is doubted makes no occurrence too late."""
    await kit.send(message_id="m1")
    at = kit.clock.now_ms() + 3_600_000
    await schedule(kit, Times(at=at))
    kit.clock.jump(3_600 + 200)  # three minutes late
    await kit.bus.sweeper.tick()
    await kit.settle()
    assert await fired(kit) == []
    kit.advance(310)
    await kit.bus.sweeper.tick()
    await kit.settle()
    assert await fired(kit) == [f"schedule:k@{at}"]


async def test_after_a_sleep_nothing_waits(kit: BusKit) -> None:
    """A machine that slept has the right time when it wakes."""
    await kit.send(message_id="m1", not_after=kit.clock.now_ms() + 3_600_000)
    at = kit.clock.now_ms() + 7_200_000
    await schedule(kit, Times(at=at))
    kit.clock.sleep(7_200 + 10)
    await kit.bus.sweeper.tick()
    await kit.settle()
    assert (await kit.message("m1"))["status"] == "cancelled"
    assert await fired(kit) == [f"schedule:k@{at}"]


async def test_a_clock_that_was_set_in_a_sleep_is_doubted(kit: BusKit) -> None:
    await kit.send(message_id="m1", not_after=kit.clock.now_ms() + DAY_S * 1000)
    kit.clock.sleep(3_600)
    kit.clock.jump(DAY_S)
    await kit.bus.sweeper.tick()
    await kit.settle()
    assert (await kit.message("m1"))["status"] == "pending"


async def test_a_retry_of_a_message(kit: BusKit) -> None:
    await kit.send(message_id="m1")
    await kit.started()
    await kit.bus.sweeper.tick()
    assert kit.agent().claim() is not None
    kit.bus.delivery.poke(await kit.session())
    await kit.settle()
    kit.clock.jump(YEAR_S)
    await kit.bus.sweeper.tick()
    await kit.ended()
    await kit.bus.sweeper.tick()
    kit.clock.advance(60)
    await set_right(kit)
    message = await kit.message("m1")
    assert (message["status"], message["tries"]) == ("pending", 1)
    kit.advance(30)
    await kit.bus.sweeper.tick()
    await kit.started()


async def test_a_retry_of_an_answer(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    async def deliver(_: FakeChannel, message: Outgoing) -> Receipt:
        await anyio.lowlevel.checkpoint()
        tries.append(message.message_out_id)
        raise TransientDeliveryError("no route to host")

    monkeypatch.setattr(FakeChannel, "deliver", deliver)
    await kit.send(message_id="m1")
    await kit.started()
    batch = kit.agent().claim()
    assert batch is not None
    kit.clock.jump(YEAR_S)
    await kit.bus.sweeper.tick()
    kit.agent().answer(batch)
    kit.bus.delivery.poke(await kit.session())
    await until(lambda: len(tries) >= 1)
    await kit.settle()
    await set_right(kit)
    kit.advance(30)
    await kit.bus.sweeper.tick()
    await until(lambda: len(tries) >= 2)


async def test_a_start_that_failed(kit: BusKit) -> None:
    kit.clock.jump(YEAR_S)
    await kit.bus.sweeper.tick()
    kit.host.refuse_next(SpawnError("no"))
    await kit.send(message_id="m1")
    await until(lambda: kit.slot() is None and kit.spawned() == 1)
    await until_backing_off(kit)
    await set_right(kit)
    kit.advance(30)
    await kit.bus.sweeper.tick()
    await kit.started()


async def until_backing_off(kit: BusKit) -> None:
    """Wait until the failed start is on record."""
    with anyio.fail_after(30):
        while (await kit.row()).next_spawn_at is None:  # noqa: ASYNC110 - it has no event of its own
            await anyio.sleep(0.002)


async def test_a_daemon_that_starts_with_a_clock_far_ahead_ends_nothing_before_it_is_set(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await kit.send(message_id="m1", not_after=kit.clock.now_ms() + 3_600_000)
    kit.used_at, kit.clock = kit.clock.now_ms(), MovedClock(kit.clock.now_ms() + YEAR_S * 1000, up_s=20.0)
    async with kit.running():
        await kit.bus.sweeper.tick()
        assert (await kit.message("m1"))["status"] == "pending"
        await set_right(kit)
        assert (await kit.message("m1"))["status"] == "pending"
        kit.advance(3_700)
        await kit.bus.sweeper.tick()
        assert (await kit.message("m1"))["status"] == "cancelled"
