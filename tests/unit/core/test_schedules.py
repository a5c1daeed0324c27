"""When schedules are due: both changes of the clock, catching up, and a year of simulated days in three zones."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from daemon.core.errors import ScheduleError
from daemon.core.schedules import (
    BATCH,
    MISSED_MS,
    CatchUp,
    Times,
    check,
    check_key,
    fire,
    last_until,
    local_instant,
    next_after,
    upcoming,
)

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
ZONES = ("Europe/Vienna", "America/New_York", "Australia/Lord_Howe")


def at(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


NOW = at("2026-06-01T12:00")


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (Times(), "exactly one"),
        (Times(at=NOW + 1, every_ms=1000), "exactly one"),
        (Times(at=NOW), "never fire"),
        (Times(at=NOW + DAY, until=NOW + HOUR), "never fire"),
        (Times(every_ms=999), "between 1 second"),
        (Times(every_ms=1000, count=0), "at least 1"),
        (Times(cron="0 9 * *"), "five fields"),
        (Times(cron="0 0 9 * * 1"), "five fields"),
        (Times(cron="61 9 * * *"), "not valid"),
        (Times(cron="0 0 30 2 *"), "not valid"),
        (Times(cron="0 9 * * *", timezone="Mars/Olympus"), "time zone"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(times: Times, words: str) -> None:
    with pytest.raises(ScheduleError, match=words) as refused:
        check(times, NOW)
    assert refused.value.hint


@pytest.mark.parametrize("key", ["", "a b", "../x", "-x", "x" * 65, "ü"])
def test_a_key_is_a_plain_name(key: str) -> None:
    with pytest.raises(ScheduleError):
        check_key(key)


def test_nothing_fires_before_its_time() -> None:
    for times in (Times(at=NOW + 1), Times(every_ms=1000, start=NOW), Times(cron="0 13 * * *")):
        due = next_after(times, NOW)
        assert due is not None
        assert fire(times, due, due - 1, 0) == fire(times, due, NOW, 0)
        assert fire(times, due, due - 1, 0).due == ()
        assert fire(times, due, due, 0).due == (due,)


def test_once_is_once() -> None:
    times = Times(at=NOW)
    assert fire(times, NOW, NOW, 0).next_at is None
    late = NOW + MISSED_MS + 1
    assert fire(times, NOW, late, 0).due == (), "missed, and nothing is made up for"
    assert fire(Times(at=NOW, catch_up=CatchUp.LATEST), NOW, late, 0).due == (NOW,)


@pytest.mark.parametrize("times", [Times(every_ms=HOUR, start=NOW), Times(cron="0 * * * *")])
def test_after_a_week_of_sleep_each_rule_does_what_it_says(times: Times) -> None:
    first, now = NOW + HOUR, NOW + 7 * DAY + 30 * MINUTE
    last = NOW + 7 * DAY
    skipped = fire(times, first, now, 0)
    assert (skipped.due, skipped.missed, skipped.next_at) == ((), True, last + HOUR)
    latest = fire(_with(times, CatchUp.LATEST), first, now, 0)
    assert (latest.due, latest.missed, latest.next_at) == ((last,), True, last + HOUR)
    found, due = list[int](), first
    while due <= now:
        every = fire(_with(times, CatchUp.ALL), due, now, len(found))
        assert 0 < len(every.due) <= BATCH
        assert every.next_at is not None
        found, due = [*found, *every.due], every.next_at
    assert found == list(range(first, last + 1, HOUR))


def _with(times: Times, rule: CatchUp) -> Times:
    return Times(times.at, times.every_ms, times.cron, times.timezone, times.start, catch_up=rule)


def test_a_little_late_is_not_missed() -> None:
    times = Times(cron="0 * * * *")
    assert fire(times, NOW, NOW + MISSED_MS, 0).due == (NOW,)
    assert fire(times, NOW, NOW + MISSED_MS + 1, 0).due == ()


def test_count_and_until_end_it() -> None:
    times = Times(every_ms=HOUR, start=NOW, count=2)
    assert fire(times, NOW + HOUR, NOW + HOUR, 0).next_at == NOW + 2 * HOUR
    assert fire(times, NOW + 2 * HOUR, NOW + 2 * HOUR, 1).next_at is None
    assert next_after(Times(every_ms=HOUR, start=NOW, until=NOW + 90 * MINUTE), NOW + HOUR) is None
    all_ = Times(every_ms=HOUR, start=NOW, count=3, catch_up=CatchUp.ALL)
    assert fire(all_, NOW + HOUR, NOW + DAY, 1).due == (NOW + HOUR, NOW + 2 * HOUR)


def test_local_times_in_a_gap_and_in_a_fold() -> None:
    vienna = "Europe/Vienna"
    assert local_instant("2026-03-29T02:30", vienna) == at("2026-03-29T01:30"), "skipped: as long after the change"
    assert local_instant("2026-10-25T02:30", vienna) == at("2026-10-25T00:30"), "twice: the first"
    assert local_instant("2026-10-25T02:30+01:00", vienna) == at("2026-10-25T01:30")
    for wrong in ("tomorrow", "2026-13-01", ""):
        with pytest.raises(ScheduleError, match="not a time"):
            local_instant(wrong, vienna)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 9 * * 1-5", "0 */6 * * *", "15 3 1 * *"])
def test_a_year_with_both_changes_of_the_clock(zone: str, cron: str) -> None:
    """Each wall-clock minute that matches comes once; a skipped one comes once as well, in the same hour."""
    times = Times(cron=cron, timezone=zone)
    found, due = list[int](), next_after(times, at("2026-01-01", zone))
    end = at("2027-01-01", zone)
    while due is not None and due < end:
        firing = fire(times, due, due, len(found))
        assert firing.due == (due,)
        # A clock that is set back asks again, and gets nothing before the next one.
        assert firing.next_at is not None
        assert fire(times, firing.next_at, due - HOUR, len(found) + 1).due == ()
        assert last_until(times, due) == due
        found.append(due)
        due = firing.next_at
    assert found == sorted(set(found))
    local = [datetime.fromtimestamp(one / 1000, ZoneInfo(zone)) for one in found]
    days = {one.date() for one in local}
    expected = {
        day
        for number in range(365)
        if _matches(cron, day := (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(number)).date())
    }
    assert days == expected
    if cron.startswith(("30 2", "0 9", "15 3")):
        assert len(found) == len(days), "one a day, whatever the clock does"


def _matches(cron: str, day: date) -> bool:
    fields = cron.split()
    weekday = fields[4] == "*" or day.weekday() < 5
    return weekday and (fields[2] == "*" or day.day == int(fields[2]))


def test_the_next_occurrences_end_with_the_schedule() -> None:
    every = Times(every_ms=1000, start=0)
    assert upcoming(every, 5000, 0, 3) == (5000, 6000, 7000)
    assert upcoming(Times(every_ms=1000, start=0, count=6), 5000, 4, 3) == (5000, 6000)
    assert upcoming(Times(every_ms=1000, start=0, until=6500), 5000, 0, 3) == (5000, 6000)
    assert upcoming(Times(at=5000), 5000, 0, 3) == (5000,)
    assert upcoming(every, None, 0, 3) == ()


@pytest.mark.parametrize("after_ms", [0, 1, 500, 59_999])
def test_the_last_minute_of_a_cron_expression_is_never_in_the_future(after_ms: int) -> None:
    each_minute = Times(cron="* * * * *")
    assert last_until(each_minute, NOW + after_ms) == NOW
    assert fire(each_minute, NOW, NOW + after_ms, 0).due == (NOW,)
