"""Time in text: read tolerantly, written one way, compared by instant, and never taken for local time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.instants import from_text, to_text

BASE = 1_795_219_200_000  # 2026-11-21T00:00:00Z


@pytest.fixture(params=["UTC", "Pacific/Kiritimati", "America/New_York"], autouse=True)
def _machine_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test runs on a machine of another time zone, and must not notice."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


READ = {
    "canonical": ("2026-11-21T00:00:00.000Z", BASE),
    "no zone is UTC": ("2026-11-21T00:00:00", BASE),
    "as datetime('now') writes it": ("2026-11-21 00:00:00", BASE),
    "space and Z": ("2026-11-21 00:00:00Z", BASE),
    "milliseconds": ("2026-11-21 00:00:00.123", BASE + 123),
    "one digit of a second": ("2026-11-21T00:00:00.5Z", BASE + 500),
    "microseconds are cut": ("2026-11-21T00:00:00.123999Z", BASE + 123),
    "offset ahead": ("2026-11-21T05:30:00+05:30", BASE),
    "offset behind": ("2026-11-20T19:00:00-05:00", BASE),
    "offset without colon": ("2026-11-21T05:30:00+0530", BASE),
    "surrounding space": ("  2026-11-21T00:00:00Z\n", BASE),
    "date alone": ("2026-11-21", BASE),
    "before the epoch": ("1969-12-31T23:59:59.999Z", -1),
    "first year": ("0001-01-01T00:00:00Z", -62_135_596_800_000),
}


@pytest.mark.parametrize("name", READ)
def test_text_is_read(name: str) -> None:
    text, instant = READ[name]
    assert from_text(text) == instant


@pytest.mark.parametrize(
    "garbage",
    [
        None, 17, 17.5, b"2026-11-21T00:00:00Z", True, "", " ", "now", "soon", "1795219200000", "2026-13-01T00:00:00Z",
        "2026-02-30", "2026-11-21T25:00:00Z", "2026-11-21T00:00:00+99:00", "2026-11-21T00:00:00Q", "\0", "0000-00-00",
        "99999-01-01T00:00:00Z", "2026-11-21T00:00:00" + "0" * 60, "9" * 1_000_000,
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_garbage_is_no_instant(garbage: object) -> None:
    assert from_text(garbage) is None


@pytest.mark.parametrize(("instant", "text"), [(BASE, "2026-11-21T00:00:00.000Z"), (BASE + 7, "2026-11-21T00:00:00.007Z"),
                                               (-1, "1969-12-31T23:59:59.999Z"),
                                               (-62_135_596_800_000, "0001-01-01T00:00:00.000Z")])  # fmt: skip
def test_text_is_written_one_way(instant: int, text: str) -> None:
    assert to_text(instant) == text


@pytest.mark.parametrize("instant", [2**60, -(2**60), 253_402_300_800_000])
def test_an_instant_outside_the_calendar_is_refused(instant: int) -> None:
    with pytest.raises(OverflowError):
        to_text(instant)


CALENDAR = st.integers(min_value=-62_135_596_800_000, max_value=253_402_300_799_999)


@given(CALENDAR)
def test_what_is_written_is_read_back(instant: int) -> None:
    assert from_text(to_text(instant)) == instant


@given(CALENDAR, CALENDAR)
def test_written_text_sorts_as_its_instants(one: int, other: int) -> None:
    assert (to_text(one) < to_text(other)) == (one < other)


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)),  # noqa: DTZ001 - the zone comes next
    st.integers(min_value=-14 * 60, max_value=14 * 60),
    st.sampled_from("T "),
)
def test_any_offset_means_the_same_instant(moment: datetime, minutes: int, separator: str) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = from_text(aware.astimezone(UTC).isoformat())
    assert expected is not None
    assert from_text(aware.isoformat(sep=separator)) == expected


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.999Z"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00.000Z"),
    ],
)
def test_an_offset_that_leads_out_of_the_calendar_is_its_end(text: str, written: str) -> None:
    """What was read can be written: an agent may ask for such a time, and a runner may write it into any column."""
    found = from_text(text)
    assert found is not None
    assert to_text(found) == written


@given(st.text(max_size=80))
def test_no_text_raises(text: str) -> None:
    found = from_text(text)
    assert found is None or from_text(to_text(found)) == found
