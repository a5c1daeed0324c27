"""The runner as the process that a container runs: started, signalled and killed from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.session_kit import SessionKit, eventually

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[3]


class Runners:
    """Starts runners on one session folder and ends what a test leaves running."""

    def __init__(self, kit: SessionKit) -> None:
        self.kit = kit
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, incarnation: str = "I1", **settings: Any) -> subprocess.Popen[bytes]:
        with (self.kit.folder.root / f"{incarnation}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "container_runner"],
                env=self.kit.environment(incarnation, **{"grace_s": 0.2, "poll_s": 0.1, **settings}),
                stderr=log,
            )
        self._started.append(process)
        return process

    def command(self, script: str, incarnation: str = "I1", **settings: Any) -> subprocess.Popen[bytes]:
        return self.start(incarnation, provider="command", command=["sh", "-c", script], **settings)

    def log(self, incarnation: str = "I1") -> list[dict[str, Any]]:
        lines = (self.kit.folder.root / f"{incarnation}.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(60)


@pytest.fixture
def kit(tmp_path: Path) -> SessionKit:
    return SessionKit(tmp_path)


@pytest.fixture
def runners(kit: SessionKit) -> Iterator[Runners]:
    made = Runners(kit)
    yield made
    made.close()
    kit.check()


async def test_it_answers_and_leaves_cleanly(kit: SessionKit, runners: Runners) -> None:
    kit.add("m1", "hello")
    process = runners.start(provider="echo")
    await eventually(lambda: kit.acks() == {"m1": "completed"})
    kit.add("m2", "again")
    await eventually(lambda: kit.acks().get("m2") == "completed")
    process.terminate()
    assert process.wait(60) == 0
    assert kit.contents() == [{"text": "hello"}, {"text": "again"}]
    assert sorted(path.name for path in kit.folder.outbox.iterdir()) == [".bell", ".heartbeat", "outbound.db"]
    assert {line["incarnation"] for line in runners.log()} == {"I1"}
    assert runners.log()[-1]["event"] == "runner_stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_in_mid_turn_releases_the_claim(
    kit: SessionKit, runners: Runners, number: signal.Signals
) -> None:
    kit.add("m1")
    process = runners.command("echo $$ > pid; exec sleep 300")
    await eventually(lambda: (kit.agent / "pid").exists() and (kit.agent / "pid").read_text() != "")
    assert kit.tool()["current_tool"] == "command"
    process.send_signal(number)
    assert process.wait(60) == 0
    assert kit.acks() == {}
    assert kit.tool()["current_tool"] is None
    assert not Path(f"/proc/{(kit.agent / 'pid').read_text().strip()}").exists()


async def test_a_signal_lets_the_turn_finish(kit: SessionKit, runners: Runners) -> None:
    kit.add("m1")
    process = runners.command("touch began; while [ ! -e go ]; do sleep 0.01; done; echo done", grace_s=20)
    await eventually((kit.agent / "began").exists)
    process.terminate()
    await eventually(lambda: any(line["event"] == "signal_received" for line in runners.log()))
    kit.add("m2")
    (kit.agent / "go").touch()
    assert process.wait(60) == 0
    assert kit.acks() == {"m1": "completed"}
    assert kit.contents() == [{"text": "done"}]


async def test_a_turn_that_fails_after_the_signal_is_given_back(kit: SessionKit, runners: Runners) -> None:
    kit.add("m1")
    process = runners.command("touch began; while [ ! -e go ]; do sleep 0.01; done; exit 3", grace_s=20)
    await eventually((kit.agent / "began").exists)
    process.terminate()
    await eventually(lambda: any(line["event"] == "signal_received" for line in runners.log()))
    (kit.agent / "go").touch()
    assert process.wait(60) == 0
    assert kit.acks() == {}
    assert kit.out() == []
    assert [line["code"] for line in runners.log() if line["event"] == "turn_cut"] == ["COMMAND_EXIT"]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, None], ids=["ended", "thawed"])
async def test_a_freeze_is_none_of_the_turns_time(
    kit: SessionKit, runners: Runners, number: signal.Signals | None
) -> None:
    kit.add("m1")
    process = runners.command(
        "touch began; while [ ! -e go ]; do sleep 0.01; done; echo hi", timeout_s=6.0, grace_s=1.0
    )
    await eventually((kit.agent / "began").exists)
    process.send_signal(signal.SIGSTOP)
    frozen_at = time.monotonic()
    await eventually(lambda: time.monotonic() - frozen_at > 7.0)
    if number is not None:
        process.send_signal(number)  # pending until the thaw, as with a container that is ended while it is paused
    process.send_signal(signal.SIGCONT)
    if number is None:
        (kit.agent / "go").touch()
        await eventually(lambda: kit.acks() == {"m1": "completed"})
        return
    assert process.wait(60) == 0
    assert kit.acks() == {}, "given back: neither completed nor failed"


@pytest.mark.faults
async def test_a_kill_in_mid_turn_leaves_the_claim_and_the_next_one_drops_it(kit: SessionKit, runners: Runners) -> None:
    kit.add("m1")
    killed = runners.command("echo $$ > pid; exec sleep 300", "I1")
    await eventually(lambda: (kit.agent / "pid").exists() and (kit.agent / "pid").read_text() != "")
    killed.kill()
    killed.wait(60)
    os.kill(int((kit.agent / "pid").read_text()), signal.SIGKILL)  # in a container it dies with the runner
    assert kit.acks() == {"m1": "processing"}
    assert kit.claimants() == {"m1": "I1"}
    runners.start("I2", provider="echo")
    await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert kit.claimants() == {"m1": "I2"}
    assert len(kit.out()) == 1
    assert kit.tool()["current_tool"] is None


@pytest.mark.parametrize(
    ("script", "settings", "code"),
    [
        ("exec sleep 300", {"timeout_s": 0.2}, "COMMAND_TIMEOUT"),
        ("yes", {"max_answer_bytes": 1000}, "ANSWER_TOO_LARGE"),
        ("exit 7", {}, "COMMAND_EXIT"),
    ],
)
async def test_a_program_that_fails_is_answered_and_the_next_message_too(
    kit: SessionKit, runners: Runners, script: str, settings: dict[str, Any], code: str
) -> None:
    runners.command(script, **settings)
    for name in ("m1", "m2"):
        kit.add(name)
        await eventually(lambda name=name: kit.acks().get(name) == "failed")
    assert [content["error"]["code"] for content in kit.contents()] == [code, code]


async def test_a_rich_answer(kit: SessionKit, runners: Runners) -> None:
    kit.destination("ops", "webhook", "ops-hook")
    kit.add("m1")
    runners.command(
        """echo '{"type":"progress","note":"on it"}
{"type":"state","key":"seen","value":"1"}
{"type":"message","text":"for ops","to":"ops"}
{"type":"message","content":{"text":"done","card":7},"deliver_after":"2026-11-21 00:00:00"}'"""
    )
    await eventually(lambda: kit.acks() == {"m1": "completed"})
    first, second = kit.out()
    assert (first["channel_type"], first["platform_id"], first["in_reply_to"]) == ("webhook", "ops-hook", None)
    assert (second["channel_type"], second["platform_id"], second["in_reply_to"]) == ("local", "me", "m1")
    assert second["deliver_after"] == "2026-11-21T00:00:00.000Z"
    assert json.loads(second["content"]) == {"text": "done", "card": 7}
    assert kit.state() == {"seen": "1"}


def run_once(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", "container_runner"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_wrong_settings_exit_64(kit: SessionKit) -> None:
    ended = run_once(kit.environment("I1", provider="nobody"))
    assert ended.returncode == 64
    assert ended.stderr.startswith("RUNNER_SETTINGS: CLAWBUS_RUNNER: unknown provider 'nobody'.")
    assert not kit.folder.outbound_db.exists()


def test_a_newer_file_exits_65(kit: SessionKit) -> None:
    with kit.runner_file() as db:
        db.execute("PRAGMA user_version=999")
    ended = run_once(kit.environment("I1"))
    assert ended.returncode == 65
    assert json.loads(ended.stderr.splitlines()[-1])["code"] == "SCHEMA_TOO_NEW"


def test_it_needs_nothing_of_the_daemons() -> None:
    """With everything but its own three dependencies (and theirs) refused, it still imports."""
    code = """
import sys
ALLOWED = {"anyio", "idna", "sniffio", "exceptiongroup", "structlog", "typing_extensions", "watchfiles",
           "container_runner", "schema"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in ALLOWED and root not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)
sys.meta_path.insert(0, Refuse())
import container_runner.__main__
assert not {"daemon", "pydantic", "docker", "typer", "httpx"} & set(sys.modules)
print("imported")
"""
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout == "imported\n", ended.stderr
