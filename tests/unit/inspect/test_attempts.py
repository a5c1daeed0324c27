"""How often a dead letter was worked on."""

import pytest

from daemon.inspect.dead_reading import attempts_of


@pytest.mark.parametrize(
    ("tries", "code", "attempts"),
    [(0, "AGENT_FAILED", 1), (2, "AGENT_FAILED", 3), (5, "TRIES_EXHAUSTED", 5), (0, "EXPIRED", 0)],
)
def test_a_turn_that_failed_was_an_attempt(tries: int, code: str, attempts: int) -> None:
    assert attempts_of(tries, code) == attempts
