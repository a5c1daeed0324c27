"""A turn's usage out of what an agent reports: totals that grow, start again, change or cannot be true."""

from typing import Any

import pytest

from container_runner.providers.acp.usage import Meter
from schema.rows import TurnUsage


def cost(amount: object, currency: object = "USD") -> dict[str, Any]:
    return {"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": {"amount": amount, "currency": currency}}


@pytest.mark.parametrize(
    ("before", "updates", "turn"),
    [
        (0.0, [cost(0.5), cost(0.75)], 0.75),
        (2.0, [cost(2.5)], 0.5),  # a total that goes on in a later process
        (2.0, [cost(0.5), cost(0.75)], 0.75),  # one that counts from 0 again
        (2.0, [], 0.0),
        (
            2.0,
            [cost(float("nan")), cost(-1), cost(True), cost("3"), cost(10**13), cost(3, "dollars"), cost(3, None)],
            0.0,
        ),
        (2.0, [{"sessionUpdate": "usage_update", "used": 3}, {"cost": {"amount": 9, "currency": "USD"}}], 0.0),
    ],
)
def test_a_turn_costs_the_difference(before: float, updates: list[dict[str, Any]], turn: float) -> None:
    meter = Meter(before, "USD")
    for update in updates:
        meter.update(update)
    assert meter.turn({}) == TurnUsage(cost=turn, currency="USD")
    assert meter.turn({}) == TurnUsage(cost=0.0, currency="USD")


def test_another_currency_is_another_count() -> None:
    meter = Meter(2.0, "USD")
    meter.update(cost(3.0, "EUR"))
    assert meter.turn({}) == TurnUsage(cost=3.0, currency="EUR")


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"inputTokens": 3, "outputTokens": 4}, TurnUsage(3, 4)),
        ({"inputTokens": 3, "cachedReadTokens": 1, "cachedWriteTokens": 2}, TurnUsage(3, None, 3)),
        ({"inputTokens": -1, "outputTokens": 10**13, "cachedReadTokens": True}, None),
        ("many", None),
    ],
)
def test_tokens_are_the_turn_s(usage: object, tokens: TurnUsage | None) -> None:
    assert Meter().turn({"usage": usage}) == tokens
