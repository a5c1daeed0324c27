"""What a list of measurements says: median, percentiles, spread, and whether the machine was too noisy to tell.

Pure arithmetic. It never drops a measurement: an outlier is part of what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Above these a run is called noisy: the floor does the same work every time, so its spread is the machine's.
DRIFT_LIMIT: Final = 1.25
QUARTILE_LIMIT: Final = 0.5
_MANY_BLOCKS: Final = 8


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated. Raises ValueError when there are none."""
    if not values:
        raise ValueError("no measurements")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return percentile(values, 0.5)


@dataclass(frozen=True, slots=True)
class Spread:
    """A sample in five numbers; the unit is the measurements'."""

    count: int
    p50: float
    p99: float
    quarter: float
    three_quarters: float

    @property
    def width(self) -> float:
        """The middle half's width as a share of the median; 0 when the median is 0."""
        return (self.three_quarters - self.quarter) / self.p50 if self.p50 else 0.0


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(
        len(values), median(values), percentile(values, 0.99), percentile(values, 0.25), percentile(values, 0.75)
    )


def noise(floor_blocks: Sequence[Sequence[float]]) -> str | None:
    """Why the run was noisy, judged by the floor's own blocks of one run; None when it was quiet.

    Two signs: the blocks' medians drift apart (of many, the middle half of them), or the floor's middle half is wide.
    """
    medians = [median(block) for block in floor_blocks if block]
    if not medians or min(medians) <= 0:
        return None
    share = 0.25 if len(medians) >= _MANY_BLOCKS else 0.0
    drift = percentile(medians, 1 - share) / percentile(medians, share)
    if drift > DRIFT_LIMIT:
        return f"the floor's own median moved by {drift:.2f}x within the run"
    width = spread([value for block in floor_blocks for value in block]).width
    if width > QUARTILE_LIMIT:
        return f"half of the floor's own measurements span {width:.0%} of its median"
    return None
