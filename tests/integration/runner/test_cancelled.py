"""The loop when the host cancels a message: the turn stops, nothing of it is sent, and what shared it is tried again."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from container_runner.providers.protocol import Answer, Progress, Turn
from container_runner.shared.errors import TurnStoppedError
from schema.rows import TurnUsage
from tests.integration.runner.test_loop import Scripted, build, running, say
from tests.support.session_kit import SessionKit, eventually

pytestmark = pytest.mark.anyio

CANCEL = "UPDATE messages_in SET status = 'cancelled' WHERE id = '{}'"


@pytest.fixture
def kit(tmp_path: Path) -> SessionKit:
    return SessionKit(tmp_path)


async def stops(turn: Turn, progress: Progress) -> Answer:
    """Work until it is asked to stop; answer anything but m1 at once."""
    if "m1" not in [message.id for message in turn.messages]:
        return say("ok")
    await progress.stop_asked()
    raise TurnStoppedError("The message was cancelled.")


async def test_a_cancelled_turn_is_stopped_and_the_next_message_is_worked_on(kit: SessionKit) -> None:
    provider = Scripted(stops)
    async with running(build(kit, provider)):
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "processing"})
        kit.change(CANCEL.format("m1"))
        await eventually(lambda: kit.acks() == {})
        kit.add("m2")
        await eventually(lambda: kit.acks() == {"m2": "completed"})
    assert kit.contents() == [{"text": "ok"}]
    assert provider.turns == [["m1"], ["m2"]]


async def test_what_a_cancelled_turn_used_is_kept_with_the_release_of_its_claim(kit: SessionKit) -> None:
    async def spends(turn: Turn, progress: Progress) -> Answer:
        await progress.stop_asked()
        failure = TurnStoppedError("The message was cancelled.")
        failure.usage = TurnUsage(input_tokens=20, output_tokens=10)
        raise failure

    async with running(build(kit, Scripted(spends))):
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "processing"})
        kit.change(CANCEL.format("m1"))
        await eventually(lambda: kit.acks() == {})
    (row,) = kit.usage()
    assert (row["message_id"], row["input_tokens"], row["output_tokens"], row["cost"]) == ("m1", 20, 10, None)


async def test_what_shared_the_turn_is_tried_again(kit: SessionKit) -> None:
    kit.add("m1")
    kit.add("m2")
    provider = Scripted(stops)
    async with running(build(kit, provider)):
        await eventually(lambda: len(kit.acks()) == 2)
        kit.change(CANCEL.format("m1"))
        await eventually(lambda: kit.acks() == {"m2": "completed"})
    assert provider.turns == [["m1", "m2"], ["m2"]]


async def test_an_answer_that_comes_after_the_cancel_is_not_sent(kit: SessionKit) -> None:
    answers = anyio.Event()

    async def deaf(turn: Turn, progress: Progress) -> Answer:
        await answers.wait()
        return say("too late")

    async with running(build(kit, Scripted(deaf))):
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "processing"})
        kit.change(CANCEL.format("m1"))
        answers.set()
        await eventually(lambda: kit.acks() == {})
    assert kit.contents() == []


async def test_an_answer_to_several_is_sent_for_those_that_still_wait(kit: SessionKit) -> None:
    answers = anyio.Event()

    async def deaf(turn: Turn, progress: Progress) -> Answer:
        await answers.wait()
        return say("for both")

    kit.add("m1")
    kit.add("m2")
    async with running(build(kit, Scripted(deaf))):
        await eventually(lambda: len(kit.acks()) == 2)
        kit.change(CANCEL.format("m1"))
        answers.set()
        await eventually(lambda: kit.acks().get("m2") == "completed")
    assert kit.contents()[0]["text"] == "for both"
