"""The schedules of one session: what an occurrence writes, what operator and configuration may change, and what a crash leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config.models import Delivery
from daemon.core.errors import ScheduleError, UnknownScheduleError
from daemon.core.lifecycle import Policy, Wake
from daemon.core.schedules import CatchUp, Times
from daemon.engine import schedule_steps
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import collect
from daemon.engine.sweep_steps import Settings, Swept, sweep_files
from daemon.maintenance.session_deletion import unfinished_work
from daemon.store import schedules
from daemon.store.dead_letters import Operator
from daemon.store.schedules import KEPT_RUNS, Scheduled, ScheduleRow, ScheduleState
from schema.rows import Address
from tests.support.session_world import NOW, SessionWorld

HOUR = 3_600_000
WHO = Operator("anna", "a test")
HOME = Address("local", "me")


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    return SessionWorld(tmp_path / "s")


def hourly(text: str = "hello", catch_up: CatchUp = CatchUp.SKIP, count: int | None = None) -> Scheduled:
    return Scheduled(Times(every_ms=HOUR, catch_up=catch_up, count=count), f'{{"text":"{text}"}}', HOME)


def put(world: SessionWorld, what: Scheduled, key: str = "k") -> dict[str, object]:
    with world.files.inbound() as db, db.transaction():
        return schedule_steps.put(db, key, what, WHO, world.now)


def sweep(world: SessionWorld, configured: dict[str, Scheduled] | None = None) -> Swept:
    settings = Settings(Policy(), configured=configured or {})
    return sweep_files(world.files, None, world.now, settings, occupied=False, floor=0)


def row(world: SessionWorld, key: str = "k") -> ScheduleRow:
    with world.files.inbound() as db:
        found = schedules.find(db, key)
    assert found is not None
    return found


def finish(world: SessionWorld) -> None:
    world.change("UPDATE messages_in SET status = 'completed'")


def test_an_occurrence_is_a_message_that_wakes_the_agent_and_the_next_one_is_set(world: SessionWorld) -> None:
    put(world, hourly())
    assert sweep(world).schedule_at == NOW + HOUR
    world.now += HOUR
    swept = sweep(world)
    assert [message.id for message in swept.fired] == [f"schedule:k@{NOW + HOUR}"]
    assert any(isinstance(action, Wake) for action in swept.actions)
    assert (swept.schedules, swept.schedule_at, row(world).sent) == (1, NOW + 2 * HOUR, 1)
    assert world.events(f"schedule:k@{NOW + HOUR}") == ["scheduled"]
    assert sweep(world).fired == (), "not twice"


def test_an_idle_session_is_due_at_its_next_occurrence(world: SessionWorld) -> None:
    put(world, hourly())
    assert sweep(world).next_at == NOW + HOUR


def test_a_clock_that_is_set_back_brings_nothing_twice(world: SessionWorld) -> None:
    put(world, hourly())
    world.now += HOUR
    assert len(sweep(world).fired) == 1
    finish(world)
    world.now -= HOUR
    world.change("UPDATE schedules SET next_at = ?", (NOW + HOUR,))  # as a restored copy of the file has it
    world.now += HOUR
    assert sweep(world).fired == ()
    assert row(world).next_at == NOW + 2 * HOUR


@pytest.mark.parametrize("times", [Times(every_ms=HOUR), Times(cron="0 * * * *")])
@pytest.mark.parametrize("made_ahead", [False, True])
def test_a_clock_that_was_years_ahead_for_a_while_silences_no_schedule(
    world: SessionWorld, times: Times, made_ahead: bool
) -> None:
    years = 87_600 * HOUR
    if not made_ahead:
        put(world, Scheduled(times, '{"text":"hello"}', HOME))
    world.now += years
    if made_ahead:
        put(world, Scheduled(times, '{"text":"hello"}', HOME))
        world.now += HOUR
    sweep(world)
    world.change("UPDATE messages_in SET status = 'completed'")
    world.now -= years + (HOUR if made_ahead else 0)
    swept = sweep(world)
    assert swept.schedule_at is not None
    assert NOW < swept.schedule_at <= NOW + HOUR
    assert swept.next_at == swept.schedule_at
    assert sweep(world).schedule_at == swept.schedule_at
    fired = list[str]()
    for _ in range(3):
        world.now += HOUR
        fired += [message.id for message in sweep(world).fired]
        world.change("UPDATE messages_in SET status = 'completed'")
    assert len(fired) >= 2, "the one that the other clock counted as missed stays so"
    assert len(set(fired)) == len(fired)


def test_an_occurrence_is_left_out_while_the_one_before_is_not_finished(world: SessionWorld) -> None:
    put(world, hourly())
    world.now += HOUR
    assert len(sweep(world).fired) == 1
    world.now += HOUR
    assert sweep(world).fired == ()
    with world.files.inbound() as db:
        newest = schedules.runs(db, "k", 1)[0]
    assert newest["message_id"] is None
    assert "is not finished" in newest["detail"]
    finish(world)
    world.now += HOUR
    assert len(sweep(world).fired) == 1


def test_one_that_is_made_again_under_the_key_of_a_cancelled_one_is_another(world: SessionWorld) -> None:
    put(world, hourly("old"))
    for status in ("failed", "pending"):
        world.now += HOUR
        (message,) = sweep(world).fired
        world.change(f"UPDATE messages_in SET status = '{status}' WHERE id = '{message.id}'")
    with world.files.inbound() as db, db.transaction():
        schedule_steps.cancel(db, "k", WHO, world.now)
    put(world, hourly("new"))
    with world.files.inbound() as db:
        assert schedules.failures_in_a_row(db, "k") == 0
    world.now += HOUR
    (message,) = sweep(world).fired
    assert "new" in message.content, "no occurrence of its own is unfinished"
    with world.files.inbound() as db:
        assert "message schedule:k@" in str(schedules.runs(db, "k", 9)[1]["detail"])


def test_the_last_occurrence_is_sent_although_a_message_is_not_finished(world: SessionWorld) -> None:
    """`schedule run` before a schedule that fires once must not cost its only occurrence."""
    put(world, Scheduled(Times(at=NOW + HOUR), '{"text":"hello"}', HOME))
    with world.files.inbound() as db, db.transaction():
        schedule_steps.run_now(db, "k", WHO, world.now)
    world.now += HOUR
    assert [message.id for message in sweep(world).fired] == [f"schedule:k@{NOW + HOUR}"]
    assert row(world).state is ScheduleState.OVER


def test_everything_that_was_missed_comes_in_order(world: SessionWorld) -> None:
    put(world, hourly(catch_up=CatchUp.ALL))
    world.now += 60 * HOUR
    first, second = sweep(world), sweep(world)
    assert len(first.fired) == 50
    assert first.next_at == 0, "the rest is due now"
    ids = [message.id for message in (*first.fired, *second.fired)]
    assert ids == [f"schedule:k@{NOW + number * HOUR}" for number in range(1, 61)]
    assert [message.seq for message in first.fired] == sorted(message.seq for message in first.fired)


def test_what_several_schedules_of_a_session_missed_comes_in_the_order_of_time(world: SessionWorld) -> None:
    put(world, hourly(catch_up=CatchUp.ALL), "b")
    half = Scheduled(Times(every_ms=HOUR // 2, catch_up=CatchUp.ALL), '{"text":"half"}', HOME)
    put(world, half, "a")
    put(world, Scheduled(Times(at=NOW + 28 * HOUR + 1, catch_up=CatchUp.LATEST), '{"text":"once"}', HOME), "c")
    world.now += 30 * HOUR + 2
    fired: list[tuple[int, str]] = []
    while batch := sweep(world).fired:
        fired += [(int(message.id.rpartition("@")[2]), message.id[9]) for message in batch]
    assert fired == sorted(fired)
    assert [sum(key == name for _, key in fired) for name in "abc"] == [60, 30, 1]
    assert [row(world, name).sent for name in "abc"] == [60, 30, 1]
    seqs = world.read("SELECT id FROM messages_in ORDER BY seq")
    assert [int(one["id"].rpartition("@")[2]) for one in seqs] == [instant for instant, _ in fired]


def test_the_same_again_changes_nothing_and_another_text_does(world: SessionWorld) -> None:
    assert put(world, hourly())["was"] == "added"
    world.now += 1000
    assert put(world, hourly()) == {"key": "k", "was": "unchanged", "next_at": NOW + HOUR, "state": "active"}
    assert put(world, hourly("other"))["was"] == "changed"
    with world.files.inbound() as db, db.transaction():
        schedule_steps.pause(db, "k", WHO, world.now)
    assert put(world, hourly("third"))["state"] == "paused", "a change does not resume it"


def test_pause_survives_and_resume_makes_nothing_up(world: SessionWorld) -> None:
    put(world, hourly())
    with world.files.inbound() as db, db.transaction():
        schedule_steps.pause(db, "k", WHO, world.now)
    world.now += 5 * HOUR + 1
    assert sweep(world).fired == ()
    with world.files.inbound() as db, db.transaction():
        assert schedule_steps.resume(db, "k", WHO, world.now)["next_at"] == NOW + 6 * HOUR


def test_a_count_ends_it(world: SessionWorld) -> None:
    put(world, hourly(count=1))
    world.now += HOUR
    assert (len(sweep(world).fired), row(world).state) == (1, ScheduleState.OVER)
    assert sweep(world).schedules == 1, "lists show it"
    assert unfinished_work(world.files) == ["1 messages are not finished"], "and it keeps no session"


def test_the_configuration_is_taken_over_and_what_it_drops_goes(world: SessionWorld) -> None:
    configured = {"c": hourly()}
    sweep(world, configured)
    assert row(world, "c").origin == "config"
    with world.files.inbound() as db, db.transaction():
        schedule_steps.pause(db, "c", WHO, world.now)
    world.now += 1000
    sweep(world, configured)
    assert row(world, "c").state is ScheduleState.PAUSED, "an unchanged one stays paused"
    with (
        pytest.raises(ScheduleError, match="belongs to the configuration"),
        world.files.inbound() as db,
        db.transaction(),
    ):
        schedule_steps.cancel(db, "c", WHO, world.now)
    put(world, hourly(), "own")
    sweep(world, {})
    with world.files.inbound() as db:
        assert [one.key for one in schedules.all_(db)] == ["own"]


def test_run_now_leaves_the_occurrences_alone(world: SessionWorld) -> None:
    put(world, hourly())
    with world.files.inbound() as db, db.transaction():
        assert schedule_steps.run_now(db, "k", WHO, world.now)["message_id"] == f"schedule:k@{NOW}"
    assert row(world).next_at == NOW + HOUR
    with pytest.raises(UnknownScheduleError), world.files.inbound() as db, db.transaction():
        schedule_steps.run_now(db, "nothing", WHO, world.now)


@pytest.mark.parametrize("step", ["note_run", "put"])
def test_a_death_in_the_middle_leaves_the_occurrence_due(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before, between and after the writes of one transaction: all of them are there, or none."""
    put(world, hourly())
    world.now += HOUR
    real = getattr(schedules, step)
    for after in (False, True):

        def dies(*given: object, after: bool = after, **named: object) -> object:
            if after:
                real(*given, **named)
            raise SystemError("killed")

        with monkeypatch.context() as patched:
            patched.setattr(schedules, step, dies)
            with pytest.raises(SystemError):
                sweep(world)
        assert row(world).next_at == NOW + HOUR
        assert world.events(f"schedule:k@{NOW + HOUR}") == []
    assert len(sweep(world).fired) == 1


def test_the_record_of_occurrences_is_bounded(world: SessionWorld) -> None:
    put(world, hourly())
    with world.files.inbound() as db, db.transaction():
        for number in range(KEPT_RUNS + 20):
            schedules.note_run(db, "k", number, number, message_id=None, detail="x")
        kept = schedules.runs(db, "k", 1000)
    assert [one["due"] for one in kept][:: KEPT_RUNS - 1] == [KEPT_RUNS + 19, 20]


def test_five_thousand_that_are_due_at_once_each_come_once(world: SessionWorld) -> None:
    with world.files.inbound() as db, db.transaction():
        for number in range(5000):
            schedules.put(
                db, ScheduleRow(f"k{number}", hourly(), "operator", ScheduleState.ACTIVE, NOW + HOUR, 0, NOW, "anna")
            )
    world.now += HOUR
    assert len({message.id for message in sweep(world).fired}) == 5000
    assert sweep(world).fired == ()


FAILED = '{"text": "The agent failed.", "error": {"code": "COMMAND_EXIT", "message": "x", "reference": "r"}}'
MEANS = DeliveryContext({}, Delivery(), 20_000, held=frozenset(), under_way=frozenset(), jitter=0.5)


def fail_next(world: SessionWorld, say: bool = True) -> Swept:
    """Bring the next occurrence, and have its turn fail as a runner reports it."""
    world.now += HOUR
    swept = sweep(world)
    for message in swept.fired:
        if say:
            world.say(f"o-{message.id}", in_reply_to=message.id, content=FAILED)
        world.claim(message.id, by="I1")
        world.ack("failed", message.id, by="I1")
        collect(world.files, MEANS, None, world)
    return swept


def notices(world: SessionWorld) -> list[str]:
    return [row["id"] for row in world.read("SELECT id FROM host_messages ORDER BY seq")]


def test_a_schedule_that_keeps_failing_is_paused_and_said_once(world: SessionWorld) -> None:
    put(world, hourly())
    for _ in range(5):
        assert len(fail_next(world).fired) == 1
    first = f"o-schedule:k@{NOW + HOUR}"
    kept = world.read("SELECT message_out_id FROM delivery_attempts WHERE source = 'agent'")
    assert [one["message_out_id"] for one in kept] == [first], "the later ones are no news"
    assert len(world.read("SELECT 1 FROM delivered WHERE status = 'not_wanted'")) == 4
    swept = fail_next(world)
    assert (swept.fired, [(one.key, one.failures) for one in swept.failing]) == ((), [("k", 5)])
    assert (row(world).state, row(world).failures) == (ScheduleState.PAUSED, 5)
    assert notices(world) == [f"paused:k@{world.now}"]
    assert fail_next(world).failing == ()
    with world.files.inbound() as db, db.transaction():
        schedule_steps.resume(db, "k", WHO, world.now)
    assert row(world).failures == 0
    assert len(fail_next(world).fired) == 1, "the failures of before do not count"


def test_a_success_in_between_begins_the_count_again(world: SessionWorld) -> None:
    put(world, hourly())
    for _ in range(4):
        fail_next(world)
    world.now += HOUR
    assert len(sweep(world).fired) == 1
    finish_pending(world)
    for _ in range(5):
        assert len(fail_next(world).fired) == 1
    told = world.read("SELECT message_out_id FROM delivery_attempts WHERE source = 'agent'")
    assert len(told) == 2, "each row of failures is said once"


def finish_pending(world: SessionWorld) -> None:
    world.change("UPDATE messages_in SET status = 'completed' WHERE status = 'pending'")


@pytest.mark.parametrize(
    "identity", ["schedule:k", "schedule:k@x", "schedule:k@" + "9" * 30, "schedule:gone@1", "m1", ""]
)
def test_an_id_that_is_no_occurrence_repeats_nothing(world: SessionWorld, identity: str) -> None:
    put(world, hourly())
    fail_next(world)
    with world.files.inbound() as db:
        assert not schedules.repeats_failure(db, identity)


def test_a_death_while_it_is_paused_leaves_it_due(world: SessionWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    put(world, hourly())
    for _ in range(5):
        fail_next(world)
    world.now += HOUR
    for step in ("put", "announce"):
        with monkeypatch.context() as patched:
            patched.setattr(
                schedules if step == "put" else schedule_steps.host_messages,
                step,
                lambda *_: (_ for _ in ()).throw(SystemError),
            )
            with pytest.raises(SystemError):
                sweep(world)
        assert (row(world).state, notices(world)) == (ScheduleState.ACTIVE, [])
    assert len(sweep(world).failing) == 1


def test_a_senders_message_with_an_occurrences_id_takes_no_occurrences_place(world: SessionWorld) -> None:
    """A sender may choose any id, and a schedule's times can be known."""
    put(world, hourly())
    due = row(world).next_at
    assert due is not None
    world.accept(f"schedule:k@{due}")
    world.now = due
    (fired,) = sweep(world).fired
    assert (fired.id, fired.series_id) == (f"schedule:k@{due}+r1", "schedule:k")
    with world.files.inbound() as db:
        assert [one["message_id"] for one in schedules.runs(db, "k", 9)] == [fired.id]
    finish(world)
    world.now += HOUR
    (following,) = sweep(world).fired
    assert following.id == f"schedule:k@{due + HOUR}"
