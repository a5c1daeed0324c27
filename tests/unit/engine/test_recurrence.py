"""Series: the next instant on the wall clock of a time zone, once for each instant, and never two branches of one series."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.schedules import next_cron
from daemon.engine.recurrence import rearm
from daemon.store import messages
from daemon.store.transitions import change_status
from schema.ids import check_message_id
from schema.rows import MessageIn, MessageStatus
from tests.support.session_world import NOW, SessionWorld

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC") -> int:
    """Epoch ms of a wall-clock time, `fold=1` written as a trailing `*`."""
    moment = datetime.fromisoformat(text.rstrip("*")).replace(tzinfo=ZoneInfo(zone), fold=int(text.endswith("*")))
    return int(moment.astimezone(UTC).timestamp() * 1000)


NEXT = {
    # expression, scheduled, now, zone, expected
    "from the scheduled time": ("0 9 * * *", at("2026-11-20 09:00"), at("2026-11-20 09:00"), "UTC", at("2026-11-21 09:00")),
    "a late run does not shift the series": ("0 9 * * *", at("2026-11-20 09:00"), at("2026-11-20 17:31"), "UTC",
                                             at("2026-11-21 09:00")),
    "a run over the next instant skips it": ("*/5 * * * *", at("2026-11-20 09:00"), at("2026-11-20 09:12"), "UTC",
                                             at("2026-11-20 09:15")),
    "missed ones are skipped": ("0 9 * * *", at("2026-11-01 09:00"), at("2026-11-20 10:00"), "UTC", at("2026-11-21 09:00")),
    "settled before its time": ("0 9 * * *", at("2026-11-25 09:00"), at("2026-11-20 10:00"), "UTC", at("2026-11-26 09:00")),
    "a zone's morning": ("0 9 * * *", at("2026-01-01 09:00", BERLIN), at("2026-01-01 09:00", BERLIN), BERLIN,
                         at("2026-01-02 08:00")),
    "a zone's summer morning": ("0 9 * * *", at("2026-07-01 09:00", BERLIN), at("2026-07-01 09:00", BERLIN), BERLIN,
                                at("2026-07-02 07:00")),
    # 2026-03-29 in Berlin: 01:59:59 is followed by 03:00:00
    "over the gap 09:00 stays 09:00": ("0 9 * * *", at("2026-03-28 09:00", BERLIN), at("2026-03-28 09:00", BERLIN), BERLIN,
                                       at("2026-03-29 07:00")),
    "02:30 in the gap runs when the gap ends": ("30 2 * * *", at("2026-03-28 02:30", BERLIN), at("2026-03-28 02:30", BERLIN),
                                                BERLIN, at("2026-03-29 03:00", BERLIN)),
    "and is 02:30 again the day after": ("30 2 * * *", at("2026-03-29 03:00", BERLIN), at("2026-03-29 03:00", BERLIN), BERLIN,
                                         at("2026-03-30 02:30", BERLIN)),
    "every half hour through the gap": ("*/30 * * * *", at("2026-03-29 01:30", BERLIN), at("2026-03-29 01:30", BERLIN),
                                        BERLIN, at("2026-03-29 03:00", BERLIN)),
    # 2026-10-25 in Berlin: 02:59:59 is followed by 02:00:00
    "over the fold 09:00 stays 09:00": ("0 9 * * *", at("2026-10-24 09:00", BERLIN), at("2026-10-24 09:00", BERLIN), BERLIN,
                                        at("2026-10-25 08:00")),
    "02:30 in the fold runs the first time": ("30 2 * * *", at("2026-10-24 02:30", BERLIN), at("2026-10-24 02:30", BERLIN),
                                              BERLIN, at("2026-10-25 00:30")),
    "and not the second": ("30 2 * * *", at("2026-10-25 02:30", BERLIN), at("2026-10-25 02:30", BERLIN), BERLIN,
                           at("2026-10-26 02:30", BERLIN)),
    "every half hour through the fold": ("*/30 * * * *", at("2026-10-25 02:30", BERLIN), at("2026-10-25 02:30", BERLIN),
                                         BERLIN, at("2026-10-25 02:00*", BERLIN)),
    # nothing comes
    "no such day": ("0 0 30 2 *", NOW, NOW, "UTC", None),
    "not an expression": ("every morning", NOW, NOW, "UTC", None),
    "empty": ("", NOW, NOW, "UTC", None),
    "out of range": ("61 * * * *", NOW, NOW, "UTC", None),
}  # fmt: skip


@pytest.mark.parametrize("name", NEXT)
def test_next_instant(name: str) -> None:
    expression, scheduled, now, zone, expected = NEXT[name]
    found = next_cron(expression, max(scheduled, now), zone)
    shown = [
        None if moment is None else datetime.fromtimestamp(moment / 1000, ZoneInfo(zone))
        for moment in (found, expected)
    ]
    assert found == expected, shown


@given(
    st.integers(min_value=at("2026-01-01"), max_value=at("2027-12-31")),
    st.integers(min_value=0, max_value=40 * 86_400_000),
    st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 9 * * 1-5", "15 */3 * * *", "0 0 1 * *"]),
    st.sampled_from(["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
def test_the_next_instant_is_always_later_than_both(scheduled: int, late: int, expression: str, zone: str) -> None:
    found = next_cron(expression, scheduled + late, zone)
    assert found is not None
    assert found > scheduled + late
    assert found % 60_000 == 0


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    return SessionWorld(tmp_path / "s")


def end(world: SessionWorld, message_id: str, status: MessageStatus) -> None:
    with world.files.inbound() as db, db.transaction():
        change_status(db, message_id, status, status.value, world.now, detail={"reason": "test"})


def arm(world: SessionWorld) -> list[MessageIn]:
    with world.files.inbound() as db, db.transaction():
        return rearm(db, messages.to_rearm(db), world.now, "UTC")


@pytest.mark.parametrize("status", [MessageStatus.COMPLETED, MessageStatus.FAILED])
def test_a_finished_occurrence_arms_the_next_of_its_series(world: SessionWorld, status: MessageStatus) -> None:
    world.accept("daily", recurrence="0 9 * * *", process_after=at("2026-11-20 09:00"), content='{"text":"report"}')
    end(world, "daily", status)
    (following,) = arm(world)
    instant = at("2026-11-21 09:00")
    row = world.message(f"daily@{instant}")
    assert (row["series_id"], row["recurrence"], row["tries"], row["status"]) == ("daily", "0 9 * * *", 0, "pending")
    assert (row["content"], row["channel_type"], row["platform_id"]) == ('{"text":"report"}', "local", "me")
    assert following.process_after == instant
    assert following.seq % 2 == 0
    assert world.events(following.id) == ["rearmed"]
    assert world.message("daily")["recurrence"] is None, "this occurrence is done with it"
    assert arm(world) == []


def test_a_long_series_keeps_its_name_and_its_step(world: SessionWorld) -> None:
    world.accept("s", recurrence="0 9 * * *", process_after=at("2026-11-20 09:00"))
    current = "s"
    for day in range(21, 29):
        end(world, current, MessageStatus.COMPLETED)
        (following,) = arm(world)
        assert following.process_after == at(f"2026-11-{day} 09:00")
        assert following.series_id == "s"
        current, world.now = following.id, at(f"2026-11-{day} 09:01")


@pytest.mark.parametrize("status", [MessageStatus.CANCELLED, MessageStatus.PAUSED, MessageStatus.PENDING])
def test_only_a_finished_occurrence_arms_anything(world: SessionWorld, status: MessageStatus) -> None:
    world.accept("s", recurrence="0 9 * * *")
    if status is not MessageStatus.PENDING:
        end(world, "s", status)
    assert arm(world) == []
    assert [row["id"] for row in world.read("SELECT id FROM messages_in")] == ["s"]


def test_a_series_cannot_fork(world: SessionWorld) -> None:
    world.accept("s", recurrence="0 9 * * *", process_after=at("2026-11-20 09:00"))
    end(world, "s", MessageStatus.COMPLETED)
    with world.files.inbound() as db, db.transaction():
        finished = messages.to_rearm(db)
        first = rearm(db, finished, world.now, "UTC")
        assert rearm(db, finished, world.now, "UTC") == []
    world.change("UPDATE messages_in SET recurrence = '0 9 * * *' WHERE id = 's'")  # as if a crash had lost that part
    assert arm(world) == []
    assert len(world.read("SELECT id FROM messages_in WHERE series_id = 's'")) == 2
    assert world.events(first[0].id) == ["rearmed"]


@pytest.mark.parametrize("expression", ["nonsense", "0 0 30 2 *", "0 0 0 0 0 0"])
def test_a_series_without_a_next_instant_ends_and_says_so(world: SessionWorld, expression: str) -> None:
    world.accept("s", recurrence=expression)
    end(world, "s", MessageStatus.COMPLETED)
    assert arm(world) == []
    assert world.events("s") == ["accepted", "completed", "series_ended"]
    assert arm(world) == [], "and only once"
    assert world.events("s")[-2:] == ["completed", "series_ended"]


def test_long_ids_that_begin_alike_are_different_series(world: SessionWorld) -> None:
    for tail in ("a", "b"):
        world.accept("x" * 190 + tail, recurrence="0 9 * * *")
        end(world, "x" * 190 + tail, MessageStatus.COMPLETED)
    armed = arm(world)
    assert len({message.id for message in armed}) == 2
    assert {message.series_id for message in armed} == {"x" * 190 + "a", "x" * 190 + "b"}
    for message in armed:
        assert check_message_id(message.id)


def test_a_time_of_the_epoch_is_a_time(world: SessionWorld) -> None:
    message = world.accept("s", recurrence="0 9 * * *", process_after=0)
    end(world, "s", MessageStatus.COMPLETED)
    world.change("UPDATE messages_in SET recurrence = NULL")
    with world.files.inbound() as db, db.transaction():
        (following,) = rearm(db, [replace(message, process_after=0)], 1000, "UTC")
    assert following.process_after == 9 * 3_600_000


def test_a_senders_message_with_the_next_occurrences_id_does_not_end_the_series(world: SessionWorld) -> None:
    world.accept("m1", process_after=NOW, recurrence="0 * * * *")
    following = next_cron("0 * * * *", NOW, "UTC")
    world.accept(f"m1@{following}")
    with world.files.inbound() as db, db.transaction():
        change_status(db, "m1", MessageStatus.COMPLETED, "completed", NOW)
        finished = messages.to_rearm(db)
        (armed,) = rearm(db, finished, NOW, "UTC")
        assert rearm(db, finished, NOW, "UTC") == [], "and it does not fork"
    assert (armed.id, armed.series_id) == (f"m1@{following}+r1", "m1")
