"""A turn that asks waits for what the host records, and gives up by itself only for a question that the host never saw."""

from pathlib import Path
from typing import cast

import anyio
import pytest

from container_runner import asking
from container_runner.asking import Asking
from container_runner.providers.protocol import TurnMessage
from container_runner.shared.outbox import Outbox
from container_runner.watch import InboundWatch
from schema import questions
from schema.questions import Decision, Outcome, Question
from tests.support.session_kit import SessionKit

pytestmark = pytest.mark.anyio

HOST_ASKS = "INSERT INTO questions(id, text, options, free_text, notify, asked_at, deadline) VALUES (?, 'Go on?', '[]', 1, 0, 1, 2)"


class Watch:
    """Nothing ever rings: each wait lasts as long as it may."""

    pokes = 0

    async def after(self, _: int, seconds: float) -> None:
        await anyio.sleep(seconds)


class Looked(Outbox):
    """Counts how often it was asked whether the host has seen a question."""

    looks = 0

    def is_asked(self, question_id: str) -> bool:
        self.looks += 1
        return super().is_asked(question_id)


@pytest.fixture
def kit(tmp_path: Path) -> SessionKit:
    return SessionKit(tmp_path)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_GRACE_S", 0.01)
    monkeypatch.setattr(questions, "MIN_TIMEOUT_S", 0.0)


def asker(kit: SessionKit, outbox: Outbox) -> Asking:
    about = TurnMessage("m1", 2, "chat", "2026", "{}")
    return Asking(outbox, cast("InboundWatch", Watch()), ("a", "s"), (about,), None, lambda *_: None)


def outbox(kit: SessionKit) -> Looked:
    return Looked(kit.folder.inbox, kit.folder.outbox, lambda: 1_800_000_000_000)


async def test_what_the_host_never_saw_ends_at_its_deadline(kit: SessionKit) -> None:
    answer = await asker(kit, outbox(kit)).ask(Question("Go on?", timeout_s=0.01), "k")
    assert answer == Decision(Outcome.TIMEOUT)


async def test_a_question_that_an_earlier_try_asked_with_a_later_deadline_ends_when_the_host_says(
    kit: SessionKit,
) -> None:
    mine = outbox(kit)
    assert await asker(kit, mine).ask(Question("Go on?", timeout_s=0.01), "k") == Decision(Outcome.TIMEOUT)
    [asked] = [row["id"] for row in kit.out()]
    kit.change(HOST_ASKS, (asked,))
    found: list[Decision | None] = []

    async def again() -> None:
        found.append(await asker(kit, mine).ask(Question("Go on?", timeout_s=0.02), "k"))

    before = mine.looks
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(again)
            while mine.looks < before + 3:  # noqa: ASYNC110 - its own deadline has passed three times
                await anyio.sleep(0.005)
            assert found == []
            kit.change(
                "UPDATE questions SET outcome = 'answered', choice = 'yes', decided_at = 3 WHERE id = ?", (asked,)
            )
    assert [one.choice for one in found if one is not None] == ["yes"]
