"""Times as people write them: each form names one instant, also where the clock changes."""

from __future__ import annotations

import pytest

from daemon.core.errors import ScheduleError
from daemon.core.schedules import local_instant
from daemon.core.time_phrases import future_instant, instant_of

VIENNA = "Europe/Vienna"
SATURDAY = local_instant("2026-11-28T20:00", VIENNA)


def at(text: str, zone: str = VIENNA) -> int:
    return local_instant(text, zone)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2026-12-24T18:00", at("2026-12-24T18:00")),
        ("2026-12-24 18:00", at("2026-12-24T18:00")),
        ("2026-12-24T17:00Z", at("2026-12-24T17:00", "UTC")),
        ("2026-12-24T18:00-05:00", at("2026-12-24T23:00", "UTC")),
        ("21:00", at("2026-11-28T21:00")),
        ("20:00", at("2026-11-29T20:00")),
        ("9:05", at("2026-11-29T09:05")),
        ("today 23:59", at("2026-11-28T23:59")),
        (" Tomorrow  9:00 ", at("2026-11-29T09:00")),
        ("in 90s", SATURDAY + 90_000),
        ("in 15 min", SATURDAY + 900_000),
        ("in 15m", SATURDAY + 900_000),
        ("in 2h", SATURDAY + 7_200_000),
        ("in 3d", SATURDAY + 3 * 86_400_000),
    ],
)
def test_each_form_names_one_instant(said: str, meant: int) -> None:
    assert instant_of(said, VIENNA, SATURDAY) == meant
    assert future_instant(said, VIENNA, SATURDAY) == meant


def test_the_day_is_the_zone_s() -> None:
    """At 20:00 in Vienna it is the 29th in Auckland already."""
    assert instant_of("tomorrow 9:00", "Pacific/Auckland", SATURDAY) == at("2026-11-30T09:00", "Pacific/Auckland")
    assert instant_of("9:00", "Pacific/Auckland", SATURDAY) == at("2026-11-29T09:00", "Pacific/Auckland")


def test_a_skipped_time_comes_right_after_the_change_and_a_repeated_one_is_the_first() -> None:
    assert instant_of("tomorrow 2:30", VIENNA, at("2026-03-28T12:00")) == at("2026-03-29T03:30")
    assert instant_of("tomorrow 2:30", VIENNA, at("2026-10-24T12:00")) == at("2026-10-25T00:30", "UTC")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "soon",
        "tomorrow",
        "monday 9:00",
        "9",
        "24:00",
        "9:60",
        "\u0669:\u0660\u0660",
        "in 2",
        "in -2h",
        "in 2w",
        "2026-13-01",
        "2h",
    ],
)
def test_what_is_not_clear_is_refused_and_the_hint_shows_the_forms(said: str) -> None:
    with pytest.raises(ScheduleError, match="is not a time") as refused:
        instant_of(said, VIENNA, SATURDAY)
    assert "tomorrow 9:00" in refused.value.hint


@pytest.mark.parametrize(
    ("said", "words"),
    [("today 9:00", "past"), ("2020-01-01", "past"), ("in 0s", "past"), ("in 999999999d", "too far ahead")],
)
def test_a_message_can_only_be_sent_in_the_future(said: str, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        future_instant(said, VIENNA, SATURDAY)


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(ScheduleError, match="Mars/Olympus"):
        instant_of("9:00", "Mars/Olympus", SATURDAY)
