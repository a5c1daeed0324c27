"""Delivery in a whole bus: order, failures, crashes, shutdown and quarantine, with a channel that the test drives."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import ReleaseSession
from daemon.engine import delivery as delivery_module
from daemon.engine import delivery_steps, destination_sends, inline_delivery
from daemon.engine.delivery_batch import Batch
from daemon.store import deliveries
from schema.errors import FileBusyError, ReadDeadlineError, ReadRaceError, StorageError
from tests.support.bus_kit import AGENT, SECONDS, BusKit, until
from tests.support.fake_agent import Agent

pytestmark = [pytest.mark.anyio]

A, B, C = '{"n":"a"}', '{"n":"b"}', '{"n":"c"}'


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncGenerator[BusKit]:
    made = BusKit(tmp_path / "data")
    async with made.running():
        yield made


async def working(kit: BusKit, session: str = "main", places: Sequence[str] = ("p1", "p2")) -> Agent:
    """A session with a running container that may write to these places of the fake channel."""
    await kit.send(session, message_id="m1")
    await kit.started(session)
    agent = kit.agent(session)
    batch = agent.claim()
    assert batch is not None
    files = kit.bus.sessions.files_of(SessionKey(AGENT, session))

    def allow() -> None:
        with files.inbound() as db, db.transaction():
            for place in places:
                db.execute(
                    "INSERT INTO destinations(name, type, channel_type, platform_id) VALUES (?, 'channel', 'fake', ?)",
                    (place, place),
                )

    await (await kit.session(session)).call(allow)
    agent.answer(batch, '{"n":"first"}')
    await until(lambda: kit.fake.texts("room") == ['{"n":"first"}'])
    await kit.settle()
    kit.fake.sent.clear()
    kit.fake.calls.clear()
    return agent


def say(agent: Agent, place: str, *contents: str) -> list[str]:
    return [agent.say(content, ("fake", place, None)) for content in contents]


def states_written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The states of delivery rows, as they are written from now on."""
    written: list[str] = []
    real = deliveries.track

    def tracked(db: Any, row: Any, **facts: Any) -> None:
        written.append(str(facts["state"]))
        real(db, row, **facts)

    monkeypatch.setattr(deliveries, "track", tracked)
    return written


async def open_rows(kit: BusKit) -> dict[str, dict[str, Any]]:
    rows = await kit.inbound("SELECT * FROM delivery_attempts ORDER BY seq")
    return {row["message_out_id"]: row for row in rows}


async def failing(kit: BusKit, row_id: str) -> dict[str, Any]:
    """The row, once its failed attempt is recorded."""
    with anyio.fail_after(SECONDS):
        while True:
            row = (await open_rows(kit)).get(row_id)
            if row is not None and row["state"] in ("retrying", "dead"):
                return row
            await anyio.lowlevel.checkpoint()


async def test_a_thousand_pokes_are_one_drain_at_a_time(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await working(kit)
    session = await kit.session()
    now, most, looks = 0, 0, 0
    real, gate = inline_delivery.collect, threading.Lock()

    def counted(*arguments: Any) -> Any:
        nonlocal now, most, looks
        with gate:
            now, looks = now + 1, looks + 1
            most = max(most, now)
        try:
            time.sleep(0.002)  # long enough for a second one to be seen inside
            return real(*arguments)
        finally:
            with gate:
                now -= 1

    monkeypatch.setattr(inline_delivery, "collect", counted)
    say(agent, "p1", A)
    for round_ in range(10):
        for _ in range(100):
            kit.bus.delivery.poke(session)
        if round_ % 3 == 0:
            await anyio.lowlevel.checkpoint()
    await until(lambda: kit.fake.texts("p1") == [A])
    await kit.settle()
    assert most == 1
    assert looks < 50
    assert len(kit.fake.calls) == 1


async def test_nothing_is_begun_in_a_group_that_is_ending(kit: BusKit) -> None:
    """Its cancellation may have been delivered: then a new task is never told, and spins (simulation, seed 5000033)."""
    begun: list[str] = []

    async def work() -> None:
        begun.append("work")

    background, delivery = kit.bus.background, kit.bus.delivery
    await working(kit)
    session = await kit.session()
    await kit.settle()
    tasks = background._tasks, delivery._tasks
    async with anyio.create_task_group() as ending:
        background._tasks = delivery._tasks = ending
        ending.cancel_scope.cancel()
        background.later(work)
        assert not delivery.poke(session)
    background._tasks, delivery._tasks = tasks
    assert begun == []


async def test_a_stalled_destination_holds_back_itself_alone(kit: BusKit) -> None:
    agent = await working(kit)
    kit.fake.stalled["p1"] = anyio.Event()
    say(agent, "p1", A)
    say(agent, "p2", A)
    say(agent, "p1", B, C)
    say(agent, "p2", B)
    await until(lambda: kit.fake.texts("p2") == [A, B])
    assert kit.fake.texts("p1") == []
    assert [call.content for call in kit.fake.calls if call.address.platform_id == "p1"] == [A]
    kit.fake.stalled["p1"].set()
    await until(lambda: kit.fake.texts("p1") == [A, B, C])


@pytest.mark.parametrize("long", [False, True])
async def test_a_pile_behind_a_send_is_not_looked_at_before_its_end_unless_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    kit = BusKit(tmp_path / "pile", delivery={"batch": 2})
    monkeypatch.setattr(delivery_module, "_AHEAD_S", 0.001 if long else 3600)
    written = states_written(monkeypatch)
    async with kit.running():
        agent = await working(kit)
        await kit.settle()
        session = await kit.session()
        kit.bus.watch.remove(session.key)  # nobody looks but whom we ask, and the end of a send
        written.clear()
        kit.fake.stalled["p1"] = anyio.Event()
        say(agent, "p1", A, B, C, A, B, C)
        say(agent, "p2", A)
        kit.bus.delivery.poke(session)
        if long:
            await until(lambda: kit.fake.texts("p2") == [A])
        else:
            await kit.settle_collects()
            assert len(written) == 2, "one batch; what is behind it is not read and written before its turn"
        assert kit.fake.texts("p1") == [], "which still hangs"
        kit.fake.stalled["p1"].set()
        await until(lambda: kit.fake.texts("p1") == [A, B, C, A, B, C])


async def test_a_poll_beside_long_sends_reads_what_the_next_will_carry_and_at_most_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a send carries many rows, as to a receiver that deduplicates, fewer would be followed by many more polls."""
    channels = {"fake": {"type": "fake", "deduplicates": True}}
    kit = BusKit(tmp_path / "pile", channels=channels, delivery={"batch": 50, "max_sends_per_session": 1})
    monkeypatch.setattr(delivery_module, "_AHEAD_S", 3600)  # nobody polls but whom we ask, and the end of a send
    polls: list[int] = []
    real = delivery_steps.read_batch

    def counted(*arguments: Any) -> Batch:
        batch = real(*arguments)
        polls.append(len(batch.candidates))
        return batch

    def pile(first: int, count: int) -> list[str]:
        return [f'{{"n":{number}}}' for number in range(first, first + count)]

    async with kit.running():
        agent = await working(kit)
        await kit.settle()
        session = await kit.session()
        kit.bus.watch.remove(session.key)
        gates = {place: anyio.Event() for place in ("p1", "p2")}
        kit.fake.stalled.update(gates)
        monkeypatch.setattr(delivery_steps, "read_batch", counted)
        for to_first, to_second in ((pile(0, 30), []), (pile(30, 29), pile(0, 20)), (pile(59, 30), [])):
            say(agent, "p1", *to_first)
            say(agent, "p2", *to_second)
            kit.bus.delivery.poke(session)
            await kit.settle_collects()
        assert polls == [30, 49, 30], "a send to each place is under way, and 59 rows wait for the first to end"
        gates["p1"].set()
        await until(lambda: len(polls) == 4)
        assert polls[-1] == 50
        gates["p2"].set()
        await until(lambda: kit.fake.texts("p1") == pile(0, 89))
        assert kit.fake.texts("p2") == pile(0, 20)


async def test_sends_that_take_turns_are_none_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pile, each row is read and written once, however long the whole of it takes."""
    kit = BusKit(tmp_path / "pile", delivery={"batch": 1})
    pauses: list[anyio.Event] = []

    async def sleep(seconds: float) -> None:
        if seconds != delivery_module._AHEAD_S:
            return await anyio.sleep(seconds)
        pauses.append(anyio.Event())
        return await pauses[-1].wait()

    monkeypatch.setattr(delivery_module, "anyio", SimpleNamespace(**{**vars(anyio), "sleep": sleep}))
    written = states_written(monkeypatch)

    def begun() -> list[str]:
        return [call.content for call in kit.fake.calls if call.address.platform_id == "p1"]

    async with kit.running():
        agent = await working(kit)
        await kit.settle()
        session = await kit.session()
        kit.bus.watch.remove(session.key)
        written.clear()
        first, second = anyio.Event(), anyio.Event()
        kit.fake.stalled["p1"] = first
        say(agent, "p1", A, B, C, A)
        kit.bus.delivery.poke(session)
        await until(lambda: len(pauses) == 1 and begun() == [A])
        kit.fake.stalled["p1"] = second
        first.set()
        await until(lambda: begun() == [A, B])
        pauses[0].set()
        await until(lambda: len(pauses) == 2)
        await kit.settle_collects()
        assert written == ["intended", "intended"], "the first is through, and nothing was read behind the second"
        pauses[1].set()
        await until(lambda: len(pauses) == 3)
        assert written == ["intended", "intended", "queued"], "but behind one that hangs"
        second.set()
        pauses[2].set()
        await until(lambda: kit.fake.texts("p1") == [A, B, C, A])


async def test_a_failing_head_is_retried_and_holds_back_what_is_behind_it(kit: BusKit) -> None:
    agent = await working(kit)
    kit.fake.script["p1"].extend([TransientDeliveryError("busy"), TransientDeliveryError("wait", retry_after_s=120)])
    head, behind = say(agent, "p1", A, B)
    say(agent, "p2", C)
    row = await failing(kit, head)
    assert 3750 <= row["next_attempt_at"] - kit.clock.now_ms() <= 6250
    assert (row["attempts"], row["last_error_code"]) == (1, "DELIVERY_TRANSIENT")
    await until(lambda: kit.fake.texts("p2") == [C])
    assert [call.content for call in kit.fake.calls if call.address.platform_id == "p1"] == [A]
    await kit.settle()
    kit.advance(7)
    await until(lambda: len([call for call in kit.fake.calls if call.message_out_id == head]) == 2)
    await until(lambda: not kit.bus.delivery.senders)
    row = await failing(kit, head)
    assert row["attempts"] == 2
    assert row["next_attempt_at"] - kit.clock.now_ms() == 120_000
    assert (await open_rows(kit))[behind]["state"] == "queued"
    await kit.settle()
    kit.advance(121)
    await until(lambda: kit.fake.texts("p1") == [A, B])


async def test_retries_are_found_again_after_a_restart(kit: BusKit, tmp_path: Path) -> None:
    other = BusKit(tmp_path / "restarted")
    async with other.running():
        agent = await working(other)
        other.fake.script["p1"].append(TransientDeliveryError("busy"))
        [head] = say(agent, "p1", A)
        await failing(other, head)
    async with other.running():
        await other.settle()
        assert other.fake.calls == []
        other.advance(7)
        await until(lambda: other.fake.texts("p1") == [A])
        assert other.fake.sent[0].attempt == 2


async def test_a_permanent_failure_is_a_dead_letter_and_the_agent_is_told_without_being_woken(kit: BusKit) -> None:
    agent = await working(kit)
    kit.fake.script["p1"].append(PermanentDeliveryError("no such room"))
    dead, later = say(agent, "p1", A, B)
    row = await failing(kit, dead)
    assert (row["state"], row["last_error_code"]) == ("dead", "DELIVERY_PERMANENT")
    await until(lambda: kit.fake.texts("p1") == [B])
    notice = await kit.message(f"dead-letter:{dead}")
    assert (notice["kind"], notice["trigger"], notice["status"]) == ("system", 0, "pending")
    receipts = {row["message_out_id"]: row["status"] for row in await kit.inbound("SELECT * FROM delivered")}
    assert (receipts[dead], receipts[later]) == ("failed", "delivered")
    kit.bus.supervisor.begin_end(SessionKey(AGENT, "main"), "idle", graceful=True)
    await kit.gone()
    await kit.bus.sweeper.tick()
    await kit.fence()
    assert kit.spawned() == 1


async def test_no_answer_in_time_is_transient(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", delivery={"send_timeout_s": 0.02})
    async with kit.running():
        agent = await working(kit)
        kit.fake.stalled["p1"] = anyio.Event()
        [head] = say(agent, "p1", A)
        row = await failing(kit, head)
        assert (row["state"], row["last_error_code"]) == ("retrying", "DELIVERY_TRANSIENT")
        assert "0.02 s" in row["last_error"]


@pytest.mark.parametrize("bug", ["raises", "returns nothing"])
async def test_a_channels_bug_is_transient_and_logged(kit: BusKit, bug: str) -> None:
    agent = await working(kit)
    if bug == "raises":
        kit.fake.script["p1"].append(ValueError("a bug"))
    else:
        kit.fake.receipts = "sent, I think"
    with capture_logs() as logs:
        [head] = say(agent, "p1", A)
        row = await failing(kit, head)
    assert (row["state"], row["last_error_code"]) == ("retrying", "CHANNEL_BUG")
    assert [entry["channel"] for entry in logs if entry["event"] == "channel_raised"] == ["fake"]
    kit.fake.receipts = None
    await kit.settle()
    kit.advance(7)
    await until(lambda: kit.fake.texts("p1")[-1:] == [A] and not kit.bus.delivery.senders)


async def test_a_channel_that_the_host_has_no_memory_for_is_no_bug_of_it(kit: BusKit) -> None:
    agent = await working(kit)
    kit.fake.script["p1"].append(MemoryError())
    with capture_logs() as logs:
        [head] = say(agent, "p1", A)
        row = await failing(kit, head)
    assert (row["state"], row["last_error_code"]) == ("retrying", "HOST_TROUBLE")
    assert not [entry for entry in logs if entry["event"] == "channel_raised"]


async def test_a_receipt_that_is_no_text_is_recorded_as_text(kit: BusKit) -> None:
    from daemon.channels.protocol import Receipt  # noqa: PLC0415

    agent = await working(kit)
    kit.fake.receipts = Receipt(platform_message_id=object())  # pyright: ignore[reportArgumentType]
    [row_id] = say(agent, "p1", A)
    await until(lambda: kit.fake.texts("p1") == [A])
    await kit.settle()
    [row] = await kit.inbound("SELECT * FROM delivered WHERE message_out_id = ?", row_id)
    assert "object" in row["platform_message_id"]


# --- crashes


@pytest.mark.parametrize(
    ("table", "state"),
    [
        ({"deduplicates": True, "in_doubt": "hold"}, "sent"),
        ({"in_doubt": "resend"}, "sent"),
        ({"in_doubt": "hold"}, "dead"),
    ],
)
async def test_a_crash_after_the_intent_leaves_the_row_in_doubt(
    tmp_path: Path, table: dict[str, Any], state: str
) -> None:
    kit = BusKit(tmp_path / "data", channels={"fake": {"type": "fake", **table}})
    async with kit.running():
        agent = await working(kit)
        kit.fake.stalled["p1"] = anyio.Event()
        [row_id] = say(agent, "p1", A)
        await until(lambda: len(kit.fake.calls) == 1)
        [first] = kit.fake.calls
        kit.crash()
    async with kit.running():
        if state == "sent":
            await until(lambda: kit.fake.texts("p1") == [A])
            [second] = kit.fake.calls
            assert second.key == first.key, "the receiver can tell that it is the same"
        else:
            row = await failing(kit, row_id)
            assert (row["state"], row["last_error_code"]) == ("dead", "IN_DOUBT")
            assert kit.fake.calls == []


async def test_a_receipt_that_was_not_recorded_is_sent_again_with_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path / "data")
    real = destination_sends.record_outcomes
    tries = 0

    def full(*_: Any) -> Any:
        nonlocal tries
        tries += 1
        raise StorageError("disk full")

    async with kit.running():
        agent = await working(kit)
        monkeypatch.setattr(destination_sends, "record_outcomes", full)
        say(agent, "p1", A, B)
        await until(lambda: tries > 1)
        assert [call.content for call in kit.fake.calls] == [A], "what is behind it waits for the receipt"
        [first] = kit.fake.calls
        kit.crash()
    monkeypatch.setattr(destination_sends, "record_outcomes", real)
    async with kit.running():
        await until(lambda: kit.fake.texts("p1") == [A, B])
        assert kit.fake.calls[0].key == first.key


async def test_a_busy_file_delays_a_receipt_and_loses_none(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await working(kit)
    real, failures = destination_sends.record_outcomes, [FileBusyError("locked"), StorageError("disk full")]

    def fails_first(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(destination_sends, "record_outcomes", fails_first)
    [row_id] = say(agent, "p1", A)
    await until(lambda: kit.fake.texts("p1") == [A] and not kit.bus.delivery.senders)
    assert len(kit.fake.calls) == 1
    assert await kit.inbound("SELECT 1 FROM delivered WHERE message_out_id = ?", row_id)


# --- the daemon's end


async def test_a_send_under_way_finishes_at_shutdown_and_its_receipt_is_recorded(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", channels={"fake": {"type": "fake", "deduplicates": True}})
    async with kit.running():
        agent = await working(kit)
        kit.fake.stalled["p1"] = anyio.Event()
        done, begun = say(agent, "p1", A, B)
        await until(lambda: len(kit.fake.calls) == 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kit.stop, SECONDS)
            await until(lambda: kit.bus.delivery._closing)
            kit.fake.stalled["p1"].set()
    assert kit.fake.texts("p1") == [A], "a closing daemon begins no further send"
    async with kit.running():
        receipts = [row["message_out_id"] for row in await kit.inbound("SELECT message_out_id FROM delivered")]
        assert done in receipts
        await until(lambda: kit.fake.texts("p1") == [B])
        assert kit.fake.calls[0].message_out_id == begun


async def test_a_stuck_send_is_cut_and_in_doubt_and_its_neighbours_are_not(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", channels={"fake": {"type": "fake", "deduplicates": True}})
    async with kit.running():
        agent = await working(kit)
        hold = kit.fake.stalled["p2"] = anyio.Event()
        [blocker] = say(agent, "p2", A)
        await until(lambda: len(kit.fake.calls) == 1)
        batch = say(agent, "p2", A, B, C)  # queued behind it, and sent as one batch
        await kit.settle_collects()
        stuck = kit.fake.stalled["p2"] = anyio.Event()
        real = kit.fake.deliver

        async def second_sticks(message: Any) -> Any:
            if message.message_out_id == batch[1]:
                await stuck.wait()
            return await real(message)

        kit.fake.deliver = second_sticks
        del kit.fake.stalled["p2"]
        hold.set()
        await until(lambda: [one.message_out_id for one in kit.fake.sent] == [blocker, batch[0]])
        await kit.stop(grace_s=0.05)
    files = kit.bus.sessions.files_of(SessionKey(AGENT, "main"))
    with files.inbound() as db:
        delivered = {row["message_out_id"] for row in db.all("SELECT message_out_id FROM delivered")}
        states = {row["message_out_id"]: row["state"] for row in db.all("SELECT * FROM delivery_attempts")}
    assert {blocker, batch[0]} <= delivered, "a receipt is kept although the batch was cut"
    assert states == {batch[1]: "intended", batch[2]: "queued"}
    async with kit.running():
        await until(lambda: kit.fake.texts("p2") == [B, C])


# --- files that cannot be read


async def test_a_hostile_file_puts_one_session_into_quarantine_and_nothing_is_lost(kit: BusKit) -> None:
    good = await working(kit, "good")
    await kit.send("bad", message_id="m1")
    await kit.started("bad")
    container = kit.host.of_session("bad")
    agent = kit.agent("bad")
    path = agent.outbox / "outbound.db"
    path.write_bytes(b"no database" * 1000)
    kit.bus.delivery.poke(await kit.session("bad"))
    await kit.gone("bad")
    assert container.signals == ["KILL"]
    row = await kit.row("bad")
    assert row.quarantine_reason is not None
    # Said by our own look at the first bytes, or by SQLite when the file turns bad between that and a statement.
    assert re.search("not a SQLite database|not a database", row.quarantine_reason)
    await kit.send("bad", message_id="m2")  # is kept
    await kit.bus.sweeper.tick()
    await kit.fence()
    assert kit.spawned("bad") == 1, "no wake"
    say(good, "p1", A)
    await until(lambda: kit.fake.texts("p1") == [A])
    path.unlink()
    assert (await kit.operations.execute(ReleaseSession(AGENT, "bad")))["released"] is True
    await kit.started("bad")
    batch = kit.agent("bad").claim()
    assert batch is not None
    assert [message.id for message in batch.messages] == ["m1", "m2"]


async def test_a_quarantine_outlives_a_restart(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        agent = await working(kit)
        (agent.outbox / "outbound.db").write_bytes(b"no database" * 1000)
        kit.bus.delivery.poke(await kit.session())
        await kit.gone()
        await until(lambda: ("kill", "fake-1") in kit.host.calls)
    async with kit.running():
        await kit.send()
        await kit.bus.sweeper.tick()
        await kit.fence()
        assert kit.spawned() == 1


async def test_a_read_race_is_debug_and_tried_again(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await working(kit)
    real, failures = inline_delivery.collect, [ReadRaceError("hot journal")]

    def races_first(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(inline_delivery, "collect", races_first)
    kit.bus.watch.remove((await kit.session()).key)  # nothing but the retry may look again
    with capture_logs() as logs:
        kit.bus.delivery.poke(await kit.session())
        await until(lambda: not failures)
        await kit.settle()
        say(agent, "p1", A)
        kit.advance(0.1)
        await until(lambda: kit.fake.texts("p1") == [A])
    assert [entry["log_level"] for entry in logs if entry["event"] == "outbound_read_race"] == ["debug"]
    assert [entry for entry in logs if entry["log_level"] in ("warning", "error")] == []


async def test_a_bug_in_a_look_is_logged_and_ends_nothing(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await working(kit)
    real, failures = inline_delivery.collect, [KeyError("a bug")]

    def fails_first(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(inline_delivery, "collect", fails_first)
    kit.bus.watch.remove((await kit.session()).key)
    kit.bus.delivery.poke(await kit.session())
    await until(lambda: not failures)
    await kit.settle()
    say(agent, "p1", A)
    kit.advance(31)
    await until(lambda: kit.fake.texts("p1") == [A])


async def test_a_look_that_hangs_holds_its_session_for_a_bounded_time_and_nobody_else(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await working(kit)
    session = await kit.session()
    session.operation_s = 0.02
    entered, leave = threading.Event(), threading.Event()
    real = inline_delivery.collect

    def hangs(files: Any, *arguments: Any) -> Any:
        if files is session.files:
            entered.set()
            leave.wait(SECONDS)
        return real(files, *arguments)

    monkeypatch.setattr(inline_delivery, "collect", hangs)
    kit.bus.delivery.poke(session)
    await until(entered.is_set)
    try:
        with anyio.fail_after(SECONDS):
            while session.quarantined is None:
                await kit.settle()
                kit.advance(2)
                await anyio.wait_all_tasks_blocked()
        await kit.send("two")
        await kit.started("two")
    finally:
        leave.set()


async def test_a_row_that_was_never_sent_is_not_in_doubt_after_an_orderly_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path / "data", channels={"fake": {"type": "fake", "in_doubt": "hold"}})
    entered, left = threading.Event(), threading.Event()
    real = inline_delivery.collect

    def outlasts_the_cancel(*arguments: Any) -> Any:
        entered.set()
        try:
            while not kit.bus.delivery._closing:
                time.sleep(0.001)
            time.sleep(0.05)
            return real(*arguments)
        finally:
            left.set()

    async with kit.running():
        agent = await working(kit)
        monkeypatch.setattr(inline_delivery, "collect", outlasts_the_cancel)
        say(agent, "p1", A)
        await until(entered.is_set)
        await kit.stop(SECONDS)
    assert kit.fake.calls == []
    await until(left.is_set)
    monkeypatch.setattr(inline_delivery, "collect", real)
    async with kit.running():
        await until(lambda: kit.fake.texts("p1") == [A])


async def test_three_slow_looks_in_a_row_are_a_quarantine_and_fewer_are_not(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await working(kit)
    session = await kit.session()
    real, failures = inline_delivery.collect, [ReadDeadlineError("slow")] * 2

    def slow_first(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(inline_delivery, "collect", slow_first)
    for left in (1, 0):
        kit.bus.delivery.poke(session)
        await until(lambda wanted=left: len(failures) == wanted)
        await kit.settle()
    kit.bus.delivery.poke(session)
    await kit.settle()
    assert session.quarantined is None
    assert not session.consecutive_timeouts, "one good look clears them"
    failures.extend([ReadDeadlineError("slow")] * 3)
    kit.bus.delivery.poke(session)  # from here on its own retries, each with a sweep that reads well
    with anyio.fail_after(SECONDS):
        while session.quarantined is None:
            await kit.settle()
            kit.advance(2)
            await anyio.wait_all_tasks_blocked()
