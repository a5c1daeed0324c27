"""The one sentence: right in number, and nothing is missing from it when nothing is recorded."""

from typing import Any

import pytest

from daemon.inspect.explain import UNCLAIMED_MS, explain, held_up
from daemon.inspect.session_reading import Queues

REGISTRY = {"agent": "a", "session": "s", "quarantined_at": None, "spawn_failures": 0}
LIVE = {"container_id": "c", "started_at": 1000, "created_at": 900}


def failed(tries: int, **detail: Any) -> Queues:
    return Queues(failed=1, failed_example={"id": "m", "tries": tries, "last_event": {"detail": detail}})


def dead(destination: str, attempts: int) -> Queues:
    example = {"message_out_id": "o", "destination": destination, "attempts": attempts, "last_error": "gone"}
    return Queues(dead=1, dead_example=example)


@pytest.mark.parametrize(
    ("queues", "sentence"),
    [
        (failed(1, reason="x"), "Message m was given up after 1 try: x."),
        (failed(5, reason="x"), "Message m was given up after 5 tries: x."),
        (failed(5, reason="gave up after 5 tries: x"), "Message m was given up after 5 tries: x."),
        (
            failed(0, code="AGENT_FAILED", reason="x"),
            "The agent failed at message m: x.",
        ),
        (dead("", 0), "Answer o could not be delivered: gone."),
        (dead("local/x", 1), "Answer o could not be delivered to local/x in 1 attempt: gone."),
        (dead("local/x", 2), "Answer o could not be delivered to local/x in 2 attempts: gone."),
    ],
)
def test_the_sentence(queues: Queues, sentence: str) -> None:
    assert explain(REGISTRY, None, queues, 0) == sentence
    assert held_up(REGISTRY, None, queues, 0) is None, "it keeps no other message waiting"


def test_a_container_that_takes_nothing_explains_itself() -> None:
    due = Queues(pending=2, due=2, oldest_due_at=500)
    later = 1000 + UNCLAIMED_MS
    assert explain(REGISTRY, LIVE, due, later - 1) is None
    sentence = explain(REGISTRY, LIVE, due, later)
    assert sentence is not None
    assert sentence.startswith("2 messages due for 60 s and not claimed")
    assert "clawbus session stop a s" in sentence


@pytest.mark.parametrize(
    ("live", "queues"),
    [
        (None, Queues(due=1, oldest_due_at=0)),
        ({**LIVE, "container_id": None}, Queues(due=1, oldest_due_at=0)),
        (LIVE, Queues(due=1, oldest_due_at=0, claimed=True)),
        (LIVE, Queues()),
    ],
)
def test_one_that_works_or_has_nothing_to_do_needs_no_words(live: dict[str, Any] | None, queues: Queues) -> None:
    assert explain(REGISTRY, live, queues, 10 * UNCLAIMED_MS) is None


@pytest.mark.parametrize("live", [None, {**LIVE, "container_id": None}])
def test_a_start_that_is_only_being_tried_again_is_no_news(live: dict[str, Any] | None) -> None:
    registry = {**REGISTRY, "spawn_failures": 2, "last_spawn_error": "no image"}
    assert explain(registry, live, Queues(), 0) == "Its container could not be started (2 times in a row): no image."
    assert explain(registry, LIVE, Queues(), 0) is None
