"""docs/contract.md and docs/write-an-agent.md are true: their programs run and answer, and their tables name what the code has."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from container_runner import __main__ as program
from container_runner.providers import PROVIDERS
from container_runner.providers.lines import TYPES, OutputParser
from container_runner.providers.protocol import Destination, ProviderContext, Turn, TurnMessage
from daemon.config.loading import load_config
from schema import layout
from schema.rows import Address, RunnerSettings
from tests.integration.runner.test_command import Recorder
from tests.support.session_kit import SessionKit, eventually

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
RUNNER: Final = (DOCS / "contract.md").read_text(encoding="utf-8")
AGENT: Final = (DOCS / "write-an-agent.md").read_text(encoding="utf-8")
AGENTS: Final = (DOCS / "agents.md").read_text(encoding="utf-8")


def block(page: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return found


def first_cells(page: str, heading: str) -> list[str]:
    """Return the first column of the table whose head's first cell is `heading`."""
    lines = page.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = lines[start + 2 :]
    end = next(number for number, line in enumerate(rows) if not line.startswith("|"))
    return [row.split(" | ")[0].removeprefix("| ") for row in rows[:end]]


@contextmanager
def started(script: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-I", str(script)], env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.anyio
async def test_its_runner_answers_a_message(tmp_path: Path) -> None:
    kit = SessionKit(tmp_path / "session")
    script = DOCS.parent / "examples" / "runner" / "runner.py"
    kit.add("m1", "hello", on_wake=1)
    with kit.runner_file() as db, db.transaction():
        db.execute("INSERT INTO processing_ack VALUES ('m1', 'processing', '2026-11-21T00:00:00.000Z', 'I0')")
    with started(script, kit.environment("I1")) as process:
        await eventually(lambda: kit.acks() == {"m1": "completed"})
        kit.add("context", trigger=0)
        kit.add("late", on_wake=1)
        kit.add("m2", "again")
        await eventually(lambda: kit.acks().get("m2") == "completed")
        process.terminate()
        assert process.wait(60) == 0
    assert kit.contents() == [{"text": "HELLO"}, {"text": "AGAIN"}]
    assert kit.acks().keys() == {"m1", "m2"}
    assert kit.claimants() == {"m1": "I1", "m2": "I1"}
    assert kit.heartbeat.exists()
    kit.check()


def test_its_settings_are_the_settings() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `?([^|`]+)`? \|", RUNNER[RUNNER.index("| key of `CLAWBUS_RUNNER`") :], re.MULTILINE
    )
    told = dict(rows[: len(dataclasses.fields(RunnerSettings))])
    defaults = {
        field.name: list(default) if isinstance(default := field.default, tuple) else default
        for field in dataclasses.fields(RunnerSettings)
    }
    assert {name: json.loads(value) for name, value in told.items()} == defaults


def test_its_variables_are_the_variables() -> None:
    named = set(re.findall(r"`(CLAWBUS_[A-Z_]*[A-Z])`", RUNNER))
    assert named == {value for name, value in vars(layout).items() if name.startswith("ENV_")}


def test_its_turn_is_the_turn() -> None:
    message = TurnMessage("m1", 2, "chat", "2026-11-21T02:20:32.123Z", '{"text": "hello"}', True, "local", "me")
    turn = Turn(
        agent="helper",
        session="main",
        incarnation="01M7Y0W6S8V2K519G1E8JM07EX",
        messages=(message,),
        routing=Address("local", "me"),
        destinations=(Destination("ops", "channel", "Ops", "webhook", "ops-hook"),),
        state={"thread": "42"},
    )
    assert json.loads(block(AGENT, "json")) == turn.to_json()


def test_its_agent_counts_the_messages_of_its_session() -> None:
    message = TurnMessage("m1", 2, "chat", "2026-11-21T02:20:32.123Z", '{"text": "hello"}', True, "local", "me")
    turn = Turn("helper", "first", "I1", (message,), Address("local", "me"), (), {"count": "2"})
    command = [sys.executable, "-I", "-c", block(AGENT, "python")]
    done = subprocess.run(
        command, input=json.dumps(turn.to_json()).encode(), capture_output=True, timeout=120, check=True
    )
    parser = OutputParser()
    for line in done.stdout.splitlines():
        parser.feed(line)
    answer = parser.answer()
    assert [one.content for one in answer.messages] == [{"text": "message 3: hello"}]
    assert answer.state == {"count": "3"}


@pytest.mark.anyio
async def test_its_long_lived_agent_remembers_as_long_as_it_lives(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(block(AGENT, "python3"), encoding="utf-8")
    settings = RunnerSettings(provider="command", command=(sys.executable, "helper.py"), lifetime="container")
    provider = PROVIDERS["command"](ProviderContext(settings, tmp_path, os.environ))
    said: list[object] = []
    for text in ("hello", "again"):
        message = TurnMessage(text, 2, "chat", "2026-11-21T02:20:32.123Z", json.dumps({"text": text}))
        answer = await provider.run(Turn("helper", "first", "I1", (message,)), Recorder())
        said += [one.content["text"] for one in answer.messages]
    await provider.close()
    assert said == ["I have heard 1: hello", "I have heard 2: hello, again"]


def test_its_agent_s_configuration_is_valid(tmp_path: Path) -> None:
    (tmp_path / "clawbus.toml").write_text(block(AGENT, "toml"), encoding="utf-8")
    assert load_config(tmp_path / "clawbus.toml").agents["helper"].command == ("python3", "helper.py")


def test_its_lines_are_the_lines() -> None:
    lines = [cell.strip("`") for cell in first_cells(AGENT, "line")]
    assert {json.loads(line)["type"] for line in lines} == TYPES
    parser = OutputParser()
    for line in lines:
        parser.feed(line.encode())
    assert [message.content for message in parser.answer().messages] == [{"text": "..."}]


def test_its_exit_codes_are_the_exit_codes() -> None:
    told = {int(cell) for cell in first_cells(RUNNER, "exit code")}
    assert told == {0} | {value for name, value in vars(program).items() if name.startswith("EXIT_")}
