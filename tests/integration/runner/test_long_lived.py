"""A program with lifetime "container": many turns, one process, and what each misbehaviour becomes."""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from container_runner.providers import long_lived
from container_runner.providers.long_lived import LongLivedProvider
from container_runner.providers.protocol import Answer, ProviderContext, Turn, TurnMessage
from container_runner.shared import errors
from schema.rows import RunnerSettings
from tests.integration.runner.test_command import Recorder, lives
from tests.support import wreck
from tests.support.session_kit import eventually

pytestmark = pytest.mark.anyio

# Carries out the text of each message as Python.
OBEDIENT: Final = """
import json, os, signal, sys, time
def say(**line):
    print(json.dumps(line), flush=True)
def tell(text):
    say(type="message", text=text)
say(type="ready")
count = 0
for line in sys.stdin:
    turn = json.loads(line)
    if turn["type"] != "turn":
        continue
    count, error = count + 1, None
    exec(turn["messages"][0]["content"]["text"])
    say(type="end", error=error)
"""


class Agent:
    """The provider with one program, and its ways to be asked."""

    def __init__(self, folder: Path, script: str, **settings: Any) -> None:
        command = (sys.executable, "-I", "-S", "-c", script)
        options = RunnerSettings(
            **{"provider": "command", "command": command, "lifetime": "container", "timeout_s": 60.0, **settings}
        )
        self.provider = LongLivedProvider(ProviderContext(options, folder, os.environ))
        self.progress = Recorder()

    async def do(self, text: str) -> Answer:
        message = TurnMessage("m1", 2, "chat", "2026", json.dumps({"text": text}))
        return await self.provider.run(Turn("a", "s", "I1", (message,), state={"k": "v"}), self.progress)

    async def stopped(self, text: str, mark: Path) -> errors.TurnFailedError | None:
        """Do it, ask to stop once the file is there, and return how the turn ended."""
        failure: errors.TurnFailedError | None = None
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                await eventually(mark.exists)
                self.progress.stop.set()

            group.start_soon(ask)
            try:
                await self.do(text)
            except errors.TurnFailedError as error:
                failure = error
        return failure

    async def said(self, text: str) -> list[object]:
        return [one.content["text"] for one in (await self.do(text)).messages]

    async def pid(self) -> int:
        return int(str((await self.said("tell(str(os.getpid()))"))[0]))

    @property
    def words(self) -> str:
        return " ".join(" ".join(one) for one in self.progress.told if one[0] == "wrote")


@asynccontextmanager
async def agent(folder: Path, script: str = OBEDIENT, **settings: Any) -> AsyncIterator[Agent]:
    made = Agent(folder, script, **settings)
    try:
        yield made
    finally:
        await made.provider.close()


async def test_one_process_works_on_many_turns_and_ends_with_its_container(tmp_path: Path) -> None:
    async with agent(tmp_path) as one:
        pid = await one.pid()
        assert await one.said("tell(str(count)); tell(turn[`state`][`k`])".replace("`", chr(34))) == ["2", "v"]
        assert await one.pid() == pid
        state = await one.do("say(type=`state`, key=`a`, value=`b`); tell(`x`)".replace("`", chr(34)))
        assert state.state == {"a": "b"}
    await eventually(lambda: not lives(pid))


async def test_an_answer_to_a_question_comes_on_standard_input(tmp_path: Path) -> None:
    async with agent(tmp_path) as one:
        ask = "say(type=`question`, text=`Go on?`, key=`k`, options=[`yes`, `no`]); tell(json.loads(sys.stdin.readline())[`choice`])"
        assert await one.said(ask.replace("`", chr(34))) == ["yes"]
        assert await one.said("tell(str(count))") == ["2"]


async def test_tools_and_progress_count_at_once_and_cost_no_answer(tmp_path: Path) -> None:
    async with agent(tmp_path, max_answer_bytes=1000) as one:
        quoted = "[say(type=`progress`, note=`x` * 100) for _ in range(100)]; say(type=`tool`, name=`t`, timeout_s=5)"
        text = quoted.replace("`", chr(34)) + "; say(type=`tool_end`); tell(`done`)".replace("`", chr(34))
        assert await one.said(text) == ["done"]
    assert one.progress.told.count(("note", "x" * 100)) == 100
    assert ("tool", "t", "5.0") in one.progress.told


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("os._exit(3)", errors.CommandExitError, "exit code 3"),
        ("sys.exit(0)", errors.CommandEndedError, "before its line `end`"),
        ("os.kill(os.getpid(), signal.SIGKILL)", errors.CommandSignalError, "SIGKILL"),
        ("print(1, file=sys.stderr, flush=True); os._exit(1)", errors.CommandExitError, "Its last words: 1"),
        ("print(1)", errors.AnswerInvalidError, "Line 1"),
        ("tell(str(9) * 5000)", errors.AnswerTooLargeError, "2000"),
        ("print(str(9) * 5000, end=str()); sys.stdout.flush(); time.sleep(60)", errors.AnswerTooLargeError, "2000"),
        ("os.close(1); time.sleep(60)", errors.CommandEndedError, "closed its standard output"),
        ("time.sleep(60)", errors.CommandTimeoutError, "within 2 s"),
        ("os._exit(75)", errors.TurnDeferredError, ""),
        (
            "import subprocess; subprocess.Popen(['sleep', '20'], start_new_session=True); os._exit(7)",
            errors.CommandExitError,
            "exit code 7",  # although a child keeps its output open
        ),
    ],
)
async def test_a_turn_that_fails_ends_its_program_and_the_next_turn_starts_it_again(
    tmp_path: Path, text: str, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_runner.providers.long_lived._CANCEL_WAIT_S", 0.2)
    timeout_s = 2.0 if error is errors.CommandTimeoutError else 60.0
    async with agent(tmp_path, timeout_s=timeout_s, max_answer_bytes=2000) as one:
        pid = await one.pid()
        with pytest.raises(error) as caught:
            await one.do(text)
        assert said in str(caught.value)
        await eventually(lambda: not lives(pid))
        assert await one.said("tell(str(count))") == ["1"]


async def test_a_program_that_reports_a_failure_or_asks_for_later_is_kept(tmp_path: Path) -> None:
    async with agent(tmp_path) as one:
        pid = await one.pid()
        with pytest.raises(errors.CommandReportedError, match="no model"):
            await one.do("error = `no model`".replace("`", chr(34)))
        with pytest.raises(errors.TurnDeferredError, match="busy") as caught:
            await one.do("say(type=`later`, after_s=9, reason=`busy`)".replace("`", chr(34)))
        assert caught.value.after_s == 9
        assert await one.pid() == pid


async def test_a_turn_that_takes_too_long_is_cancelled_and_a_program_that_obeys_is_kept(tmp_path: Path) -> None:
    patient = OBEDIENT.replace("exec(", "json.loads(sys.stdin.readline()) if count == 1 else exec(")
    async with agent(tmp_path, patient, timeout_s=3.0) as one:
        with pytest.raises(errors.CommandTimeoutError):
            await one.do("")
        assert await one.said("tell(str(count))") == ["2"]


@pytest.mark.parametrize(
    ("script", "timeout_s", "said"),
    [
        ("print(1, flush=True); input()", 20.0, "first line"),
        ("import time; time.sleep(60)", 1.0, "no line `ready` within 1 s"),
    ],
)
async def test_a_program_that_is_never_ready(tmp_path: Path, script: str, timeout_s: float, said: str) -> None:
    async with agent(tmp_path, script, timeout_s=timeout_s) as one:
        with pytest.raises(errors.CommandNotReadyError, match=said):
            await one.do("")


async def test_a_death_between_two_turns_is_no_turns_failure(tmp_path: Path) -> None:
    async with agent(tmp_path) as one:
        pid = await one.pid()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not lives(pid))
        assert await one.said("tell(str(count))") == ["1"]
        assert "it is started again" in one.words


async def test_a_death_the_event_loop_has_not_seen_is_no_turns_failure(tmp_path: Path) -> None:
    async with agent(tmp_path) as one:
        pid = await one.pid()
        os.kill(pid, signal.SIGKILL)
        while wreck.lives(pid):  # without an await: the event loop cannot notice
            time.sleep(0.001)  # noqa: ASYNC251 -- it must stand
        assert await one.said("tell(str(count))") == ["1"]
        assert "it is started again" in one.words


async def test_output_the_event_loop_has_not_read_belongs_to_no_turn(tmp_path: Path) -> None:
    late = OBEDIENT.replace(
        '    say(type="end", error=error)',
        '    say(type="end")\n    while not os.path.exists("go"): time.sleep(0.001)\n'
        '    tell("late")\n    open("mark", "w").close()',
    )
    async with agent(tmp_path, late) as one:
        assert await one.said("tell(str(count))") == ["1"]
        (tmp_path / "go").touch()
        while not (tmp_path / "mark").exists():  # without an await: the event loop cannot read
            time.sleep(0.001)  # noqa: ASYNC251 -- it must stand
        assert await one.said("tell(str(count))") == ["2"]


async def test_output_between_two_turns_belongs_to_none(tmp_path: Path) -> None:
    late = OBEDIENT.replace(
        '    say(type="end", error=error)', '    say(type="end")\n    tell("late")\n    open("mark", "w").close()'
    )
    async with agent(tmp_path, late) as one:
        assert await one.said("tell(str(count))") == ["1"]
        await eventually((tmp_path / "mark").exists)
        assert await one.said("tell(str(count))") == ["2"]


async def test_a_cancelled_turn_leaves_no_program(tmp_path: Path) -> None:
    async with agent(tmp_path) as one:
        pid = await one.pid()
        with anyio.move_on_after(0.2):
            await one.do("time.sleep(60)")
        assert not lives(pid)


async def test_a_cancelled_message_stops_the_turn_and_keeps_the_program(tmp_path: Path) -> None:
    async with agent(tmp_path) as one:
        pid = await one.pid()
        ends_when_told = "open(`runs`, `w`).close(); tell(json.loads(sys.stdin.readline())[`type`])".replace(
            "`", chr(34)
        )
        assert isinstance(await one.stopped(ends_when_told, tmp_path / "runs"), errors.TurnStoppedError)
        one.progress.stop = anyio.Event()
        assert await one.pid() == pid


async def test_a_program_that_ignores_the_cancel_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_lived, "_CANCEL_WAIT_S", 0.2)
    async with agent(tmp_path) as one:
        pid = await one.pid()
        deaf = "open(`runs`, `w`).close(); time.sleep(60)".replace("`", chr(34))
        assert isinstance(await one.stopped(deaf, tmp_path / "runs"), errors.TurnStoppedError)
        assert not lives(pid)
