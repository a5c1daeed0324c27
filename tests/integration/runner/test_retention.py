"""Pruning in the runner's loop: only when nothing is due, and between two of its steps whatever came is worked on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast

import pytest

from container_runner.loop import Runner
from container_runner.retention import Pruned, Retention
from container_runner.shared.errors import InboundUnreadableError
from schema.errors import StorageError
from tests.integration.runner.test_loop import Scripted, answer_ok, build, running
from tests.support.session_kit import SessionKit, eventually

pytestmark = pytest.mark.anyio


class EndlessRetention:
    """Always one more step; `story` is shared with the provider. It may fail first."""

    def __init__(self, story: list[str], *failures: Exception) -> None:
        self.story = story
        self.failures = list(failures)
        self.steps = itertools.count(1)
        self.postponed: list[float] = []
        self.due = True

    def step(self) -> Pruned:
        if self.failures:
            raise self.failures.pop(0)
        self.story.append(f"step {next(self.steps)}")
        return Pruned(more=True)

    def postpone(self, seconds: float) -> None:
        self.postponed.append(seconds)


def with_retention(runner: Runner, retention: EndlessRetention) -> Runner:
    runner._retention = cast("Retention", retention)
    return runner


async def test_a_message_waits_for_no_more_than_a_step(tmp_path: Path) -> None:
    kit, story = SessionKit(tmp_path), list[str]()

    async def work(turn: Any, progress: Any) -> Any:
        story.append("turn")
        return await answer_ok(turn, progress)

    kit.add("m1")
    async with running(with_retention(build(kit, Scripted(work)), EndlessRetention(story))):
        await eventually(lambda: len(story) > 3)
        assert story[0] == "turn", "what is due comes first"
        kit.add("m2")
        await eventually(lambda: kit.acks().get("m2") == "completed")
    assert story.count("turn") == 2


async def test_a_file_that_cannot_be_used_ends_nothing(tmp_path: Path) -> None:
    kit, story, events = SessionKit(tmp_path), list[str](), list[dict[str, Any]]()
    retention = EndlessRetention(story, InboundUnreadableError("in mid-commit"), StorageError("the disk is full"))
    async with running(with_retention(build(kit, Scripted(answer_ok), events), retention)):
        await eventually(lambda: len(story) > 1)
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert len(retention.postponed) == 2
    levels = [(event["event"], event["code"]) for event in events if event["event"] == "prune_failed"]
    assert levels == [("prune_failed", "INBOUND_UNREADABLE"), ("prune_failed", "STORAGE")]


async def test_a_real_pass_in_the_loop_tells_what_it_took(tmp_path: Path) -> None:
    kit, events = SessionKit(tmp_path), list[dict[str, Any]]()
    old = "2020-01-01T00:00:00.000Z"
    with kit.runner_file() as db, db.transaction():
        for number in range(3):
            db.execute(
                "INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES (?, ?, ?, 'chat', '{}')",
                (f"a{number}", 2 * number + 1, old),
            )
    kit.change("INSERT INTO delivery_cursor(id, seq, file_id) VALUES (1, 5, 'x')")
    for number in range(3):
        kit.change("INSERT INTO delivered VALUES (?, NULL, 'delivered', ?)", (f"a{number}", old))
    runner = build(kit, Scripted(answer_ok), events)
    runner._retention = Retention(
        kit.folder.inbox, kit.folder.outbox, keep_ms=86_400_000, batch=2, now_ms=runner._now_ms
    )
    async with running(runner):
        await eventually(lambda: any(event["event"] == "outbound_pruned" for event in events))
        await eventually(lambda: [row["id"] for row in kit.out()] == ["a2"])
    (told,) = [event for event in events if event["event"] == "outbound_pruned"]
    assert (told["answers"], told["acks"]) == (2, 0)
