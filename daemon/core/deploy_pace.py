"""Decides whether a release is slow: the 95th percentiles of acceptance and round trip, against the prior release's. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from schema.frozen import frozen

ACCEPTANCE: Final = "acceptance"  # the time from a message's arrival to its commit
ROUND_TRIP: Final = "round_trip"  # the time from a message's acceptance (or due time) to its answer's first receipt
WINDOW_MS: Final = 3_600_000  # how far back the prior release's pace counts
_LEAST: Final = 50  # with fewer samples, a percentile says nothing
_TIMES: Final = 2  # a release is slow from this multiple of the prior release's percentile on


@frozen
class Pace:
    """How long one kind of work took: the number of samples, and their 95th percentile in milliseconds."""

    samples: int
    p95_ms: int


def pace_of(took_ms: Collection[int]) -> Pace:
    """Return the pace of samples (milliseconds)."""
    if not took_ms:
        return Pace(0, 0)
    ordered = sorted(took_ms)
    return Pace(len(ordered), ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)])


def pace_limits(prior: Mapping[str, Pace], slow_s: float) -> dict[str, int]:
    """Return {kind: milliseconds}: what the next release's percentiles may be. Kinds with too few samples have no limit."""
    floor = int(slow_s * 1000)
    return {kind: max(floor, _TIMES * one.p95_ms) for kind, one in prior.items() if one.samples >= _LEAST}


def judge_pace(limits: Mapping[str, object], now: Mapping[str, Pace]) -> str | None:
    """Return why the release is slow, or None. `limits` are as `pace_limits` made them, perhaps in another release."""
    for kind, one in now.items():
        limit = limits.get(kind)
        if isinstance(limit, int) and one.samples >= _LEAST and one.p95_ms > limit:
            return (
                f"slow: 95 of 100 have a {kind.replace('_', ' ')} of up to {one.p95_ms} ms, and {limit} ms is the limit"
            )
    return None


def pace_json(paces: Mapping[str, Pace]) -> dict[str, dict[str, int]]:
    """Return the release's pace as a gate shows it."""
    return {kind: {"samples": one.samples, "p95_ms": one.p95_ms} for kind, one in paces.items()}
