"""When a poll may leave inbound.db closed: never at the price of a change, and never for long."""

from math import inf

import pytest

from container_runner.rest import Rest

OLD, NEW = (1, 10), (2, 10)
POLL_S = 1.0
LONGEST_S = 10.0


def rested(quiet_s: float = inf) -> Rest:
    """Polls of an unchanged file at 0, 1, 2 and 3 s, each of which found nothing to do."""
    rest = Rest(POLL_S)
    for now in (100.0, 101.0, 102.0, 103.0):
        assert not rest.covers(OLD, now)
        rest.end(rest.begin(OLD, now), quiet_s)
    return rest


def test_an_unchanged_file_is_not_read_again_until_its_limit() -> None:
    rest = rested()
    assert rest.covers(OLD, 103.0)
    assert rest.covers(OLD, 103.0 + LONGEST_S - 0.1)
    assert not rest.covers(OLD, 103.0 + LONGEST_S)


def test_a_poll_that_found_nothing_again_starts_another_rest() -> None:
    rest = rested()
    rest.end(rest.begin(OLD, 113.0), inf)
    assert rest.covers(OLD, 122.0)


@pytest.mark.parametrize("changed", [NEW, None])
def test_a_changed_or_missing_file_is_read(changed: tuple[int, int] | None) -> None:
    rest = rested()
    assert not rest.covers(changed, 104.0)
    assert not rest.covers(OLD, 104.5), "the same mark again may be another file"


def test_a_young_mark_proves_nothing_because_a_second_change_may_not_show() -> None:
    rest = Rest(POLL_S)
    rest.end(rest.begin(OLD, 100.0), inf)
    assert not rest.covers(OLD, 100.5)
    rest.end(rest.begin(OLD, 102.5), inf)
    assert not rest.covers(OLD, 103.5)


def test_a_change_while_the_file_was_read_is_not_rested_on() -> None:
    rest = rested()
    poll = rest.begin(OLD, 113.0)
    assert not rest.covers(NEW, 113.1)
    rest.end(poll, inf)
    assert not rest.covers(NEW, 113.2)
    assert not rest.covers(OLD, 113.2)


def test_a_poll_without_an_end_failed_and_is_repeated() -> None:
    rest = rested()
    rest.begin(OLD, 113.0)
    assert not rest.covers(OLD, 113.1)


def test_what_becomes_due_by_time_ends_the_rest() -> None:
    rest = rested(quiet_s=4.0)
    assert rest.covers(OLD, 106.9)
    assert not rest.covers(OLD, 107.0)
    assert not rested(quiet_s=0.0).covers(OLD, 103.0)


def test_a_missing_file_is_looked_for_at_every_poll() -> None:
    rest = Rest(POLL_S)
    for now in (100.0, 104.0, 108.0):
        rest.end(rest.begin(None, now), inf)
        assert not rest.covers(None, now + 0.5)
