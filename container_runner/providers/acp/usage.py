"""Computes what a turn used, from what its agent reports. Pure.

Tokens come with a prompt's response and are the turn's. The cost comes with `usage_update` and is the session's so far, so
a turn's cost is the difference to the last one. An agent that restarts may count from 0 again or go on: a smaller total
than before is a count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, cast

from schema.rows import TurnUsage

_MAX: Final = 10**12
_CURRENCY: Final = 3


@dataclass(slots=True)
class Meter:
    """One session's total cost. `total` is what was reported before, in an earlier process too."""

    total: float = 0.0
    currency: str | None = None
    _before: float = 0.0

    def __post_init__(self) -> None:
        """Count from what was reported before."""
        self._before = self.total

    def reset(self) -> None:
        """Count from 0: the session is a new one."""
        self.total, self._before, self.currency = 0.0, 0.0, None

    def update(self, update: Mapping[str, object]) -> None:
        """Take a `usage_update`; ignore any other update, and a cost that is not valid."""
        if update.get("sessionUpdate") != "usage_update":
            return
        cost = _mapping(update.get("cost"))
        amount, currency = cost.get("amount"), cost.get("currency")
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not math.isfinite(amount):
            return
        if not isinstance(currency, str) or len(currency) != _CURRENCY or not 0 <= amount <= _MAX:
            return
        if amount < self.total or currency != self.currency:
            self._before = 0.0
        self.total, self.currency = float(amount), currency

    def turn(self, response: Mapping[str, object]) -> TurnUsage | None:
        """Return what was used since the last call, or None when the agent reported nothing.

        So the cost of a turn that failed counts for the next one.
        """
        cost = self.total - self._before
        found = replace(
            tokens_of(response) or TurnUsage(),
            cost=round(cost, 9) if self.currency is not None else None,
            currency=self.currency,
        )
        self._before = self.total
        return None if found == TurnUsage() else found


def tokens_of(response: Mapping[str, object]) -> TurnUsage | None:
    """Return only the tokens that a prompt's response reports, or None. For a failed turn nothing else counts."""
    usage = _mapping(response.get("usage"))
    cached = [_count(usage.get(name)) for name in ("cachedReadTokens", "cachedWriteTokens")]
    known = [count for count in cached if count is not None]
    found = TurnUsage(
        input_tokens=_count(usage.get("inputTokens")),
        output_tokens=_count(usage.get("outputTokens")),
        cached_tokens=sum(known) if known else None,
    )
    return None if found == TurnUsage() else found


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX else None


def _mapping(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
