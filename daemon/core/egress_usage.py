"""Adds up what agents used at the gate, by day and route, and compares it with their budgets. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from schema.frozen import frozen

EVERY_AGENT = "*"
KEPT_DAYS = 92

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@frozen
class Usage:
    """One answer's tokens. `estimated`: the service did not say, so they follow from sizes."""

    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False


@frozen
class UsageRow:
    """An agent's day on one route. `day` is YYYY-MM-DD; `route` is a route or a table of hosts, empty for what nothing allowed.

    `requests` were passed on, `refused` were not, `failed` are those of `requests` without a whole answer; `estimated` answers
    have estimated tokens.
    """

    day: str
    agent: str
    route: str
    requests: int = 0
    refused: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def with_usage(self, usage: Usage) -> UsageRow:
        """Return the row with one answer's tokens added."""
        return replace(
            self,
            tokens_in=self.tokens_in + usage.tokens_in,
            tokens_out=self.tokens_out + usage.tokens_out,
            estimated=self.estimated + usage.estimated,
        )


@frozen
class Budget:
    """What an agent may use in a day; None means no limit."""

    requests: int | None = None
    tokens: int | None = None

    def exceeded(self, rows: Iterable[UsageRow]) -> str | None:
        """Return which limit is used up, such as `1000 of 1000 requests`; None while neither is.

        `rows` are the agent's of one day.
        """
        requests = tokens = 0
        for row in rows:
            requests += row.requests
            tokens += row.tokens_in + row.tokens_out
        for used, limit, what in ((requests, self.requests, "requests"), (tokens, self.tokens, "tokens")):
            if limit is not None and used >= limit:
                return f"{used} of {limit} {what}"
        return None


def day_of(now_ms: int, zone: tzinfo) -> str:
    """Return the day of an instant (epoch milliseconds) in a time zone."""
    return _instant(now_ms, zone).date().isoformat()


def seconds_left(now_ms: int, zone: tzinfo) -> int:
    """Return the whole seconds until the day ends in a time zone, at least 1. A day with a clock change is 23 or 25 h."""
    now = _instant(now_ms, zone)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return max(1, int(midnight.astimezone(UTC).timestamp() - now_ms / 1000) + 1)


def _instant(now_ms: int, zone: tzinfo) -> datetime:
    return (_EPOCH + timedelta(milliseconds=now_ms)).astimezone(zone)


def days_before(day: str, count: int) -> str:
    """Return the day that many days earlier."""
    return (datetime.fromisoformat(day) - timedelta(days=count)).date().isoformat()
