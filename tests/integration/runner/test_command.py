"""The command provider against real programs: what each end of a program becomes, and that nothing is left behind."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from container_runner.providers.command import CommandProvider
from container_runner.providers.program import program_environment
from container_runner.providers.protocol import Answer, DeclaredTimeout, OutMessage, ProviderContext, Turn, TurnMessage
from container_runner.shared import errors
from schema.questions import Decision, Outcome, Question
from schema.rows import RunnerSettings
from tests.support.session_kit import eventually


class Recorder:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.stop = anyio.Event()

    async def stop_asked(self) -> None:
        await self.stop.wait()

    def event(self) -> None:
        self.told.append(("event",))

    def note(self, text: str) -> None:
        self.told.append(("note", text))

    def wrote(self, line: str) -> None:
        self.told.append(("wrote", line))

    def tool_calls(self, calls: Mapping[str, str]) -> None:
        """See Progress. A program names no calls."""

    async def tool_started(self, name: str, timeout_s: float | None = None) -> None:
        self.told.append(("tool", name, str(timeout_s)))

    async def tool_ended(self) -> None:
        self.told.append(("tool_end",))

    async def say(self, message: OutMessage, key: str | None = None) -> str:
        self.told.append(("say", str(message.content["text"]), str(key)))
        return "n-1"

    async def ask(self, question: Question, key: str | None = None) -> Decision | None:
        self.told.append(("ask", question.text, str(key)))
        return Decision(Outcome.ANSWERED, "yes", "blue", "me")

    async def follow_ups(self) -> tuple[TurnMessage, ...]:
        await anyio.sleep_forever()
        return ()


TURN = Turn("a", "s", "I1", (TurnMessage("m1", 2, "chat", "2026", '{"text": "hello"}'),), state={"k": "v"})


async def run(folder: Path, script: str | list[str], progress: Recorder | None = None, **settings: Any) -> Answer:
    command = ("sh", "-c", script) if isinstance(script, str) else tuple(script)
    options = RunnerSettings(**{"provider": "command", "command": command, "timeout_s": 60.0, **settings})
    context = ProviderContext(settings=options, agent_folder=folder, environ=os.environ)
    return await CommandProvider(context).run(TURN, progress or Recorder())


def lives(pid: int) -> bool:
    """Whether a process runs, or is a zombie that we failed to reap (an orphan's zombie is init's affair)."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except FileNotFoundError:
        return False
    return state != "Z" or int(parent) == os.getpid()


@pytest.mark.anyio
async def test_the_program_gets_the_turn_and_its_output_is_the_answer(tmp_path: Path) -> None:
    answer = await run(tmp_path, "cat")
    told = json.loads(str(answer.messages[0].content["text"]))
    assert told["contract"] == 1
    assert told["messages"][0]["content"] == {"text": "hello"}
    assert told["state"] == {"k": "v"}


@pytest.mark.anyio
async def test_it_runs_in_the_agents_folder(tmp_path: Path) -> None:
    answer = await run(tmp_path, "pwd")
    assert answer.messages[0].content == {"text": str(tmp_path)}


@pytest.mark.anyio
async def test_a_program_need_not_read_its_turn(tmp_path: Path) -> None:
    answer = await run(tmp_path, "exec <&-; echo done")
    assert answer.messages[0].content == {"text": "done"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "settings", "error", "said"),
    [
        ("echo broken >&2; exit 3", {}, errors.CommandExitError, "exit code 3. Its last words: broken"),
        ("kill -KILL $$", {}, errors.CommandSignalError, "SIGKILL"),
        ("sleep 30", {"timeout_s": 0.2}, errors.CommandTimeoutError, "0.2 s"),
        (
            "echo asking the source >&2; exec sleep 30",
            {"timeout_s": 3.0},
            errors.CommandTimeoutError,
            "Its last words: asking the source",
        ),
        ("echo my heap is gone >&2; kill -SEGV $$", {}, errors.CommandSignalError, "Its last words: my heap is gone"),
        ("trap '' TERM; sleep 30", {"timeout_s": 0.2}, errors.CommandTimeoutError, "0.2 s"),
        ("printf 'caf\\351'", {}, errors.AnswerNotTextError, "UTF-8"),
        ("yes", {"max_answer_bytes": 1000}, errors.AnswerTooLargeError, "1000"),
        (["/no/such/program"], {}, errors.CommandNotFoundError, "/no/such/program"),
        (["no-such-program"], {}, errors.CommandNotFoundError, "no-such-program"),
        (["/etc/hostname"], {}, errors.CommandNotExecutableError, "/etc/hostname"),
        ('echo \'{"type":"message","text":"x"}\'; echo oops', {}, errors.AnswerInvalidError, "Line 2"),
        ("echo oops", {"output": "lines"}, errors.AnswerInvalidError, "Line 1"),
    ],
)
async def test_each_end_is_a_typed_failure(
    tmp_path: Path, script: str | list[str], settings: dict[str, Any], error: type[errors.TurnFailedError], said: str
) -> None:
    with pytest.raises(error) as caught:
        await run(tmp_path, script, **settings)
    assert said in str(caught.value)


@pytest.mark.anyio
async def test_a_long_stream_of_progress_is_no_part_of_the_answer(tmp_path: Path) -> None:
    script = 'for n in $(seq 200); do echo \'{"type":"progress","note":"still at work"}\'; done; echo done'
    answer = await run(tmp_path, script, max_answer_bytes=1000)
    assert answer.messages[0].content == {"text": "done"}


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
async def test_an_answer_may_have_exactly_the_limit(tmp_path: Path, size: int, fits: bool) -> None:
    script = f"head -c {size} /dev/zero | tr '\\0' x; echo"
    if fits:
        answer = await run(tmp_path, script, max_answer_bytes=1000)
        assert answer.messages[0].content == {"text": "x" * size}
    else:
        with pytest.raises(errors.AnswerTooLargeError):
            await run(tmp_path, script, max_answer_bytes=1000)


@pytest.mark.anyio
async def test_a_file_without_a_format_is_not_executable(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x00\x01")
    program.chmod(0o755)
    with pytest.raises(errors.CommandNotExecutableError):
        await run(tmp_path, [str(program)])


@pytest.mark.anyio
async def test_the_stderr_tail_is_kept_and_bounded(tmp_path: Path) -> None:
    with pytest.raises(errors.CommandExitError) as caught:
        await run(tmp_path, "yes line | head -c 300000 >&2; echo last >&2; exit 1")
    assert caught.value.detail.endswith("line\nlast\n")
    assert len(caught.value.detail) == 8192


@pytest.mark.anyio
@pytest.mark.parametrize(("end", "timeout_s"), [("wait", 3.0), ("yes", 60.0)])
async def test_nothing_of_the_group_outlives_a_failure(tmp_path: Path, end: str, timeout_s: float) -> None:
    with pytest.raises(errors.TurnFailedError):
        await run(tmp_path, f"sleep 300 & echo $! > pid; {end}", timeout_s=timeout_s, max_answer_bytes=100)
    pid = int((tmp_path / "pid").read_text())
    await eventually(lambda: not lives(pid))


@pytest.mark.anyio
async def test_what_a_program_leaves_running_does_not_hold_its_answer_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_runner.providers.command._DRAIN_S", 3600.0)
    with anyio.fail_after(60):  # what was left running holds its output open for 300 s, and the drain waits for an hour
        answer = await run(tmp_path, "sleep 300 & echo $! > pid; echo answer")
    assert answer.messages[0].content == {"text": "answer"}
    pid = int((tmp_path / "pid").read_text())
    await eventually(lambda: not lives(pid))


@pytest.mark.anyio
async def test_not_even_one_that_left_the_group(tmp_path: Path) -> None:
    answer = await run(
        tmp_path, "setsid sh -c 'echo $$ > pid; exec sleep 300' & while [ ! -s pid ]; do :; done; echo hi"
    )
    assert answer.messages[0].content == {"text": "hi"}
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.anyio
async def test_cancelling_ends_the_program_and_leaves_no_zombie(tmp_path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(
                run, tmp_path, "trap 'echo bye > bye; exit' TERM; echo $$ > pid; while :; do sleep 0.01; done"
            )
            await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip() != "")
            scope.cancel()
    assert (tmp_path / "bye").exists(), "SIGTERM comes first"
    assert not lives(int((tmp_path / "pid").read_text()))


@pytest.mark.anyio
async def test_a_cancellation_while_the_program_starts_ends_it_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = anyio.open_process
    scope = anyio.CancelScope()

    async def cancelled_halfway(*arguments: Any, **options: Any) -> Any:
        process = await real_open(*arguments, **options)
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip() != "")
        scope.cancel()
        await anyio.lowlevel.checkpoint()  # without a shield, the start ends here and nobody knows the program
        return process

    monkeypatch.setattr(anyio, "open_process", cancelled_halfway)
    with scope:
        await run(tmp_path, "trap 'echo bye > bye; exit' TERM; echo $$ > pid; while :; do sleep 0.01; done")
    assert scope.cancelled_caught
    assert (tmp_path / "bye").exists(), "SIGTERM comes first"
    assert not lives(int((tmp_path / "pid").read_text()))


@pytest.mark.anyio
async def test_progress_is_told_while_the_program_runs(tmp_path: Path) -> None:
    progress = Recorder()
    script = """echo '{"type":"tool","name":"Bash","timeout_s":9}'
        while [ ! -e go ]; do sleep 0.01; done
        echo '{"type":"tool_end"}'; printf '{"type":"message","text":"ok"}'"""
    answers: list[Answer] = []

    async def work() -> None:
        answers.append(await run(tmp_path, script, progress))

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await eventually(lambda: progress.told == [("tool", "Bash", "9.0")])
        (tmp_path / "go").touch()
    assert progress.told[1:] == [("tool_end",), ("event",)]
    assert answers[0].messages[0].content == {"text": "ok"}


def test_the_whole_turn_is_declared() -> None:
    settings = RunnerSettings(provider="command", command=("x",), timeout_s=60.0)
    silence = CommandProvider(ProviderContext(settings, Path("/none"), {})).silence
    assert silence == DeclaredTimeout("command", 61.0)


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({"CLAWBUS_RUNNER": "x", "CLAWBUS_INCARNATION": "x", "HOME": "/h"}, {"HOME": "/h"}),
        ({"VIRTUAL_ENV": "/v", "VIRTUAL_ENV_PROMPT": "v", "PYTHONPATH": "x", "PYTHONHOME": "x"}, {}),
        ({"PATH": "/opt/v/bin:/usr/bin:/opt/v2/bin"}, {"PATH": "/usr/bin:/opt/v2/bin"}),
        ({"PATH": "/opt/v/bin"}, {"PATH": os.defpath}),
        ({"TOKEN": "kept"}, {"TOKEN": "kept"}),
    ],
)
def test_the_programs_environment(environ: dict[str, str], kept: dict[str, str]) -> None:
    assert program_environment(environ, "/opt/v") == kept


@pytest.mark.anyio
async def test_the_program_finds_nothing_of_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("CLAWBUS_RUNNER", "{}")
    answer = await run(tmp_path, "env")
    text = str(answer.messages[0].content["text"])
    assert "CLAWBUS_" not in text
    assert sys.prefix not in text.partition("PATH=")[2].partition("\n")[0]


@pytest.mark.anyio
async def test_what_a_program_writes_to_stderr_is_logged_while_it_works(tmp_path: Path) -> None:
    progress = Recorder()
    go_on = tmp_path / "go on"
    script = f"echo one >&2; printf 'two, without an end' >&2; until [ -e '{go_on}' ]; do sleep 0.05; done; echo done"
    async with anyio.create_task_group() as group:
        group.start_soon(run, tmp_path, script, progress)
        await eventually(lambda: ("wrote", "two, without an end") in progress.told)
        assert ("wrote", "one") in progress.told
        go_on.touch()


@pytest.mark.anyio
async def test_a_flood_on_stderr_does_not_fill_the_log(tmp_path: Path) -> None:
    progress = Recorder()
    await run(tmp_path, "yes 'the same again and again' | head -n 200000 >&2; echo done", progress)
    logged = sum(len(words) for name, words in progress.told if name == "wrote")
    assert 30_000 < logged < 1_000_000, "5.6 MB were written"


@pytest.mark.anyio
async def test_what_is_asked_and_said_now_is_no_part_of_the_answer(tmp_path: Path) -> None:
    script = """
answers=$(sed 's/.*"answers": "\\([^"]*\\)".*/\\1/')
echo '{"type": "message", "text": "at once", "now": true, "key": "status"}'
echo '{"type": "question", "text": "Which colour?", "key": "colour"}'
read -r reply < "$answers"
echo "{\\"type\\": \\"message\\", \\"content\\": $reply}"
"""
    recorder = Recorder()
    answer = await run(tmp_path, script.replace("\\\\", "\\"), recorder)
    assert [entry for entry in recorder.told if entry[0] in ("say", "ask")] == [
        ("say", "at once", "status"),
        ("ask", "Which colour?", "colour"),
    ]
    assert [message.content for message in answer.messages] == [
        {"type": "answer", "key": "colour", "status": "answered", "choice": "yes", "text": "blue", "by": "me"}
    ]


@pytest.mark.anyio
async def test_a_turn_whose_message_was_cancelled_ends_its_program_with_sigterm(tmp_path: Path) -> None:
    progress = Recorder()
    stopped: errors.TurnFailedError | None = None
    script = "trap 'touch asked; exit 0' TERM; touch runs; while :; do sleep 0.05; done"
    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            await eventually((tmp_path / "runs").exists)
            progress.stop.set()

        group.start_soon(cancel)
        try:
            await run(tmp_path, script, progress)
        except errors.TurnFailedError as error:
            stopped = error
    assert isinstance(stopped, errors.TurnStoppedError)
    assert (tmp_path / "asked").exists()
