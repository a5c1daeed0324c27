"""The one sentence is the doctor's own finding; nothing is missing from it when nothing is recorded."""

from typing import Any

import pytest

from daemon.core.diagnoses import diagnose_session
from daemon.core.facts import HostFacts
from daemon.core.run_state import Life
from daemon.core.session_container_rules import UNCLAIMED_MS
from daemon.inspect.agents_now import UNKNOWN, AgentsNow
from daemon.inspect.explain import explain, held_up
from daemon.inspect.queues import Holder, Queues
from daemon.inspect.session_facts import live_record, recorded_facts

REGISTRY = {"agent": "a", "session": "s", "quarantined_at": None, "spawn_failures": 0}
LIVE = {"id": "I1", "container_id": "c", "started_at": 1000, "created_at": 900}
STARTING = {**LIVE, "container_id": None}
NOW = 10 * UNCLAIMED_MS
WORST = {"id": "o", "to": "webhook/x", "attempts": 3, "holds_back": 1, "error": "answered 500", "code": "X", "since": 0,
         "next_attempt_at": None}  # fmt: skip
HELD = Queues(held=2, oldest_held_at=NOW - 400_000, holder=Holder("m", 2, NOW + 9, "its agent asked for that, once"))
FAILED = Queues(failed=1, failed_example={"id": "m", "tries": 5, "last_event": {"detail": {"reason": "x"}}})
DEAD = Queues(dead=1, dead_example={"message_out_id": "o", "destination": "local/x", "last_error": "gone"})
DUE = Queues(pending=2, due=2, oldest_due_at=500)


@pytest.mark.parametrize(
    ("registry", "live", "queues"),
    [
        ({"quarantined_at": 5, "quarantine_reason": "a fifo."}, None, Queues()),
        ({"quarantined_at": 5}, None, Queues()),
        ({}, None, Queues(error="STORAGE: it is gone.")),
        ({"spawn_failures": 2, "last_spawn_error": "no image"}, None, DUE),
        ({}, LIVE, DUE),
        ({}, None, HELD),
        ({}, None, Queues(retrying=1, retrying_example=WORST)),
        ({}, None, FAILED),
        ({}, None, DEAD),
    ],
)
def test_the_sentence_is_a_finding_of_the_doctor(
    registry: dict[str, Any], live: dict[str, Any] | None, queues: Queues
) -> None:
    row = {**REGISTRY, **registry}
    facts = recorded_facts(("a", "s"), row, live_record(live, Life.ALIVE), queues)
    findings = {one.sentence for one in diagnose_session(HostFacts(NOW, "/data"), facts)}
    assert explain(row, live, queues, NOW, shown=row["quarantined_at"] is not None) in findings


@pytest.mark.parametrize("queues", [DUE, Queues(pending=1, scheduled=1)])
def test_work_for_an_agent_that_is_gone_says_so_and_names_ways_out(queues: Queues) -> None:
    row = {**REGISTRY, "next_due_at": None}  # the daemon was stopped before it had noted the time
    gone, there = AgentsNow(configured=frozenset({"b"})), AgentsNow(configured=frozenset({"a"}))
    for sentence in (explain(row, None, queues, NOW, gone), held_up(row, None, queues, NOW, gone)):
        assert sentence is not None
        assert "not configured any more" in sentence
    shown = explain(row, None, queues, NOW, gone, shown=True)
    assert shown is not None
    assert "clawbus session delete a s --force" in shown
    for agents in (there, UNKNOWN):
        assert "not configured" not in (explain(row, None, queues, NOW, agents) or "")


@pytest.mark.parametrize("queues", [FAILED, DEAD, Queues(retrying=1, retrying_example=WORST)])
def test_what_failed_keeps_no_other_message_waiting(queues: Queues) -> None:
    assert explain(REGISTRY, None, queues, NOW) is not None
    assert held_up(REGISTRY, None, queues, NOW) is None


def test_what_blocks_the_session_comes_before_its_dead_letters() -> None:
    registry = {**REGISTRY, "quarantined_at": 5, "quarantine_reason": "a fifo"}
    sentence = explain(registry, None, DEAD, NOW)
    assert sentence is not None
    assert "a fifo" in sentence
    assert "`clawbus session show a s`" in sentence, "a list does not know whether a release would last"
    shown = explain(registry, None, DEAD, NOW, shown=True)
    assert shown == held_up(registry, None, DEAD, NOW)
    assert "`clawbus session release a s`" in (shown or "")


def test_a_container_that_takes_nothing_explains_itself() -> None:
    later = 1000 + UNCLAIMED_MS
    assert explain(REGISTRY, LIVE, DUE, later - 1) is None
    sentence = explain(REGISTRY, LIVE, DUE, later)
    assert sentence is not None
    assert "2 due for 60 s" in sentence
    assert "clawbus session stop a s" in sentence


def test_a_message_that_is_held_back_says_so_at_once() -> None:
    young = Queues(held=1, oldest_held_at=NOW - 1, holder=HELD.holder)
    sentence = held_up(REGISTRY, None, young, NOW)
    assert sentence is not None
    assert "1 message waits for an earlier one: message m is tried again at" in sentence


@pytest.mark.parametrize(
    ("live", "queues"),
    [
        (None, Queues(due=1, oldest_due_at=0)),
        (STARTING, Queues(due=1, oldest_due_at=0)),
        (LIVE, Queues(due=1, oldest_due_at=0, claimed=True)),
        (LIVE, Queues()),
    ],
)
def test_one_that_works_or_has_nothing_to_do_needs_no_words(live: dict[str, Any] | None, queues: Queues) -> None:
    assert explain(REGISTRY, live, queues, NOW) is None


@pytest.mark.parametrize("live", [None, STARTING])
def test_a_start_that_is_only_being_tried_again_is_no_news(live: dict[str, Any] | None) -> None:
    registry = {**REGISTRY, "spawn_failures": 2, "last_spawn_error": "no image"}
    sentence = explain(registry, live, DUE, NOW)
    assert sentence is not None
    assert sentence.startswith("Its container cannot be started. 2 failed starts in a row, the last: no image")
    assert explain(registry, live, Queues(), NOW) is None, "nothing waits for it"
    assert explain(registry, {**LIVE, "started_at": NOW}, DUE, NOW) is None
