"""The provider `acp` in the runner's own process: what is committed together, and what a kill in mid-turn leaves."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from container_runner.providers.acp.provider import STATE_KEY
from daemon.store.turn_usage import used, with_usage
from schema.handles import Reader
from schema.outbound_file import open_outbound_reader
from schema.plain_file import ReadLimits
from schema.rows import Ack, AckStatus, TurnUsage
from tests.integration.runner.test_acp import AGENT
from tests.integration.runner.test_command import lives
from tests.integration.runner.test_process import Runners
from tests.support.session_kit import SessionKit, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def kit(tmp_path: Path) -> SessionKit:
    return SessionKit(tmp_path)


@pytest.fixture
def runners(kit: SessionKit) -> Iterator[Runners]:
    made = Runners(kit)
    yield made
    made.close()
    kit.check()


def hostile(folder: Path) -> Reader:
    """Open outbound.db as the host does."""
    reader = open_outbound_reader(folder, ReadLimits())
    assert reader is not None
    return reader


def start(runners: Runners, incarnation: str, **settings: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(AGENT), "resume=ok"]
    return runners.start(incarnation, provider="acp", command=command, **settings)


async def answer(kit: SessionKit, message_id: str, text: str) -> str:
    before = len(kit.out())
    kit.add(message_id, text)
    await eventually(lambda: kit.acks().get(message_id) == "completed")
    (content,) = kit.contents()[before:]
    return str(content["text"])


async def test_a_session_outlives_its_container_and_its_agent_does_not(kit: SessionKit, runners: Runners) -> None:
    first = start(runners, "I1")
    pid = int(await answer(kit, "m1", "pid"))
    session = json.loads(kit.state()[STATE_KEY])["session"]
    first.terminate()
    assert first.wait(60) == 0
    assert not lives(pid)
    start(runners, "I2")
    assert json.loads(await answer(kit, "m2", "memory")) == ["pid"]
    assert json.loads(kit.state()[STATE_KEY])["session"] == session


async def test_a_kill_in_mid_turn_loses_neither_the_message_nor_the_memory(kit: SessionKit, runners: Runners) -> None:
    first = start(runners, "I1")
    await answer(kit, "m1", "say hello")
    kit.add("m2", "tool build go")
    await eventually((kit.agent / "go.began").exists, 30)
    await eventually(lambda: kit.tool()["current_tool"] == "build")
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    assert kit.acks() == {"m1": "completed", "m2": "processing"}
    kit.change("UPDATE messages_in SET tries = 1 WHERE id = 'm2'")  # as the host does for the claim that is gone
    (kit.agent / "go").touch()
    start(runners, "I2")
    await eventually(lambda: kit.acks().get("m2") == "completed")
    assert kit.contents()[-1] == {"text": "before\n\nafter"}
    told = json.loads(await answer(kit, "m3", "memory"))
    assert told[:2] == ["say hello", "tool build go"]
    assert told[2].startswith("[This is try 2 of this message")


async def test_a_stop_in_mid_turn_cancels_and_gives_the_message_back(kit: SessionKit, runners: Runners) -> None:
    first = start(runners, "I1")
    pid = int(await answer(kit, "m1", "pid"))
    kit.add("m2", "hang began")
    await eventually((kit.agent / "began").exists, 30)
    first.terminate()
    assert first.wait(60) == 0
    assert kit.acks() == {"m1": "completed"}
    assert not lives(pid)


async def test_what_a_turn_used_is_committed_with_it(kit: SessionKit, runners: Runners) -> None:
    first = start(runners, "I1")
    await answer(kit, "m1", "say hello")
    await answer(kit, "m2", "say again")
    first.terminate()
    first.wait(60)
    start(runners, "I2")
    await answer(kit, "m3", "say later")
    with hostile(kit.folder.outbox) as db:
        acks = {name: Ack(name, AckStatus.COMPLETED, None, who) for name, who in kit.claimants().items()}
        each = TurnUsage(20, 10, 5, 0.25, "USD")
        assert [ack.usage for ack in with_usage(db, acks).values()] == [each, each, each]
        assert used(db) == TurnUsage(60, 30, 15, 0.75, "USD")


async def test_the_agent_is_no_leftover_of_a_turn(kit: SessionKit, runners: Runners) -> None:
    start(runners, "I1")
    pid = int(await answer(kit, "m1", "pid"))
    await answer(kit, "m2", "leave child")
    assert int(await answer(kit, "m3", "pid")) == pid


async def test_a_failed_turn_is_explained_to_the_operator_alone(kit: SessionKit, runners: Runners) -> None:
    start(runners, "I1")
    kit.add("m1", "exit 7")
    await eventually(lambda: kit.acks().get("m1") == "failed")
    assert kit.contents()[0]["error"]["code"] == "ACP_DIED"
    assert "my last words" not in json.dumps(kit.contents())
    (note,) = kit.notes()
    assert "Its last words: my last words" in note["message"]
    await answer(kit, "m2", "say on")
