"""What a sample says, and when a run is called noisy."""

import pytest

from bench.spread import noise, percentile, spread


def test_percentiles_lie_between_the_measurements() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0.0) == 1.0
    assert percentile(values, 0.5) == 2.5
    assert percentile(values, 1.0) == 4.0
    assert percentile([7.0], 0.99) == 7.0


def test_the_99th_of_a_hundred_is_not_the_largest() -> None:
    assert percentile([float(n) for n in range(101)], 0.99) == 99.0


def test_nothing_measured_is_no_number() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        percentile([], 0.5)


def test_a_spread_has_count_median_tail_and_middle_half() -> None:
    found = spread([float(n) for n in range(1, 102)])
    assert (found.count, found.p50, found.p99, found.quarter, found.three_quarters) == (101, 51.0, 100.0, 26.0, 76.0)
    assert found.width == 50 / 51


@pytest.mark.parametrize(
    ("blocks", "sign"),
    [
        ([[1.0, 1.0, 1.0], [1.1, 1.1, 1.1]], None),
        ([[1.0, 1.0, 1.0], [1.5, 1.5, 1.5]], "moved by 1.50x"),
        ([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]], "span 60% of its median"),
        ([], None),
    ],
)
def test_a_floor_that_moves_or_is_wide_makes_a_run_noisy(blocks: list[list[float]], sign: str | None) -> None:
    found = noise(blocks)
    assert (found is None) == (sign is None)
    assert sign is None or sign in (found or "")


def test_one_bad_block_of_many_does_not_make_a_run_noisy() -> None:
    """Seven are judged by their extremes, eight and more by their middle half."""
    assert noise([[1.0]] * 6 + [[2.0]]) is not None
    assert noise([[1.0]] * 9 + [[2.0]]) is None
