"""The provider `acp` against a real program that plays each misbehaviour of real agents."""

import contextlib
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import demo.acp_agent
from container_runner.providers.acp.agent import Times
from container_runner.providers.acp.provider import NEW_MEMORY, STATE_KEY, AcpProvider
from container_runner.providers.program import end_program, start_program
from container_runner.providers.protocol import Answer, DeclaredTimeout, ProviderContext, Turn, TurnMessage
from container_runner.shared.children import Children
from container_runner.shared.errors import TurnFailedError, TurnStoppedError
from schema.questions import Decision, Outcome, Question
from schema.rows import RunnerSettings
from tests.integration.runner.test_command import Recorder, lives
from tests.support.session_kit import eventually

pytestmark = pytest.mark.anyio

AGENT = Path(__file__).resolve().parents[2] / "support" / "scripted_acp_agent.py"
SHORT = Times(initialize_s=30, session_s=30, cancel_s=5, quiet_s=0.3, close_s=0.5)


class Asked(Recorder):
    """A recorder whose questions end as the test says."""

    decision: Decision | None = None

    async def ask(self, question: Question, key: str | None = None) -> Decision | None:
        self.told.append(("ask", question.text, *(option.id for option in question.options)))
        return self.decision


class Talk:
    """A conversation with the scripted agent: its answers, and the state that the last one committed."""

    def __init__(self, folder: Path, *options: str, times: Times = SHORT, **settings: Any) -> None:
        self.folder = folder
        self.progress = Asked()
        self.state: dict[str, str] = {}
        self.children = Children()
        given = {"provider": "acp", "command": (sys.executable, str(AGENT), *options), "timeout_s": 60.0, **settings}
        context = ProviderContext(RunnerSettings(**given), folder, os.environ, self.children, home=folder)
        self.provider = AcpProvider(context, times)

    async def turn(self, *texts: str, tries: int = 0) -> Answer:
        messages = tuple(
            TurnMessage(f"m{number}", 2 * number, "chat", "2026", json.dumps({"text": text}), tries=tries)
            for number, text in enumerate(texts, 1)
        )
        answer = await self.provider.run(Turn("a", "s", "I1", messages, state=dict(self.state)), self.progress)
        self.state.update({key: value for key, value in answer.state.items() if value is not None})
        return answer

    async def say(self, *texts: str, tries: int = 0) -> str:
        answer = await self.turn(*texts, tries=tries)
        return "|".join(str(message.content["text"]) for message in answer.messages)

    async def fails(self, text: str = "say hello") -> TurnFailedError:
        with pytest.raises(TurnFailedError) as failure:
            await self.turn(text)
        return failure.value

    @property
    def wrote(self) -> str:
        return "\n".join(told[1] for told in self.progress.told if told[0] == "wrote")

    @property
    def session(self) -> str:
        return json.loads(self.state[STATE_KEY])["session"]


def runs(pid: int) -> bool:
    """Whether a child has not ended yet, all of its threads included."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


async def test_one_process_and_one_session_over_many_turns(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    assert await talk.say("say hello") == "hello"
    first = talk.session
    pid = int(await talk.say("pid"))
    assert json.loads(await talk.say("memory")) == ["say hello", "pid"]
    assert talk.session == first
    await talk.provider.close()
    assert not lives(pid)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["resume=ok"], "the same"),
        (["resume=replay"], "the same"),
        (["load"], "the same"),
        (["resume=missing", "load"], "the same"),
        ([], "new"),
        (["resume=missing"], "new"),
        (["resume=die"], "new"),
        (["resume=lost"], "new"),
    ],
)
async def test_a_later_container_goes_on_where_the_agent_can(tmp_path: Path, options: list[str], answer: str) -> None:
    first = Talk(tmp_path, *options)
    await first.say("say hello")
    await first.provider.close()
    later = Talk(tmp_path, *options)
    later.state = first.state
    text = await later.say("memory")
    if answer == "the same":
        assert (json.loads(text), later.session) == (["say hello"], first.session)
    else:
        assert text == f"{NEW_MEMORY}\n\n[]"
        assert await later.say("say again") == "again"
    await later.provider.close()


async def test_a_session_that_hangs_its_agent_is_given_up(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "resume=hang", times=Times(session_s=3, quiet_s=0.1, close_s=0.1))
    talk.state = {STATE_KEY: json.dumps({"session": "old", "agent": ""})}
    assert (await talk.say("say hello")).startswith(NEW_MEMORY)
    await talk.provider.close()


@pytest.mark.parametrize(
    ("options", "text", "settings", "code", "words"),
    [
        (["version=2"], "say x", {}, "ACP_VERSION", "speaks version 2"),
        (["version=0"], "say x", {}, "ACP_VERSION", "speaks version 0"),
        (["garbage"], "say x", {}, "ACP_NOT_SPOKEN", "Usage: agent [--acp]"),
        (["silent"], "say x", {}, "ACP_SILENT", "did not answer initialize"),
        (["login"], "say x", {}, "ACP_LOGIN", "authentication required"),
        (["modes=a,b"], "say x", {}, "ACP_MODE", "it offers: a, b"),
        (["modes=a,b"], "say x", {"mode": "c"}, "ACP_MODE", "has no mode 'c'"),
        ([], "say x", {"mode": "c"}, "ACP_MODE", "it offers: none"),
        ([], "exit 7", {}, "ACP_DIED", "exit code 7. Its last words: my last words"),
        ([], "kill", {}, "ACP_DIED", "SIGKILL"),
        ([], "endless", {"timeout_s": 2.5}, "ACP_TIMEOUT", "2.5 s"),
        ([], "fail -32603", {}, "ACP_REFUSED", 'the model is away: {"why": "scripted"} (-32603)'),
        ([], "abort", {}, "ACP_CANCELLED", "cancelled"),
        ([], f"long {17 * 2**20}", {}, "ACP_TOO_LONG", "16777216"),
        ([], "big 20000", {"max_answer_bytes": 10_000}, "ANSWER_TOO_LARGE", "10000"),
        ([], "hang began", {"timeout_s": 2.5}, "ACP_TIMEOUT", "2.5 s"),
        ([], "deaf began", {"timeout_s": 2.5}, "ACP_TIMEOUT", "2.5 s"),
    ],
)
async def test_each_end_is_a_typed_failure_and_the_next_turn_works(
    tmp_path: Path, options: list[str], text: str, settings: dict[str, Any], code: str, words: str
) -> None:
    starts = {"silent": 0.5}.get("".join(options), 30.0)
    times = Times(initialize_s=starts, session_s=30, cancel_s=0.5, quiet_s=0.1, close_s=0.1)
    talk = Talk(tmp_path, *options, times=times, **settings)
    failure = await talk.fails(text)
    assert (failure.code, words in str(failure)) == (code, True), str(failure)
    assert failure.hint
    if not options and not settings.get("mode"):
        assert (await talk.say("say on")).endswith("on")
    await talk.provider.close()


async def test_an_agent_whose_child_keeps_its_output_open_is_seen_to_end(tmp_path: Path) -> None:
    talk, child = Talk(tmp_path), tmp_path / "child"
    failure = await talk.fails("orphan child")
    assert (failure.code, "exit code 5" in str(failure)) == ("ACP_DIED", True)
    assert lives(int(child.read_text())), "it has left the agent's group"
    os.kill(int(child.read_text()), signal.SIGKILL)
    assert (await talk.say("say on")).endswith("on")
    await talk.provider.close()


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    talk = Talk(tmp_path, command=("no-such-agent", "--acp"))
    assert (await talk.fails()).code == "COMMAND_NOT_FOUND"


@pytest.mark.parametrize(
    ("option", "kept"), [("modes=auto,safe", "<mode safe>"), ("mode_option=auto,safe", "<m safe>")]
)
async def test_the_mode_is_set_and_set_again_when_the_agent_leaves_it(tmp_path: Path, option: str, kept: str) -> None:
    talk = Talk(tmp_path, option, mode="safe")
    await talk.say("mode auto")
    assert json.loads(await talk.say("memory")) == [kept, "mode auto", kept]
    await talk.provider.close()


@pytest.mark.parametrize(
    ("text", "permissions", "outcome"),
    [
        ("ask execute", ("execute=allow",), "o-allow_once"),
        ("ask execute", ("execute=deny",), "o-reject_once"),
        ("ask execute", ("default=allow",), "o-allow_once"),
        ("ask read", (), "o-allow_once"),
        ("ask levitate", ("other=allow",), "o-allow_once"),  # a kind that nobody knows
        ("askcall fetch", ("default=deny", "fetch=allow"), "o-allow_once"),
    ],
)
async def test_a_permission_follows_the_policy(
    tmp_path: Path, text: str, permissions: tuple[str, ...], outcome: str
) -> None:
    talk = Talk(tmp_path, permissions=permissions)
    assert await talk.say(text) == outcome
    assert f"permission {'allowed' if 'allow' in outcome else 'denied'}: " in talk.wrote
    await talk.provider.close()


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [
        (Decision(Outcome.ANSWERED, "o-allow_always", by="local:me"), "o-allow_always"),
        (Decision(Outcome.ANSWERED, "o-reject_once", by="local:me"), "o-reject_once"),
        (Decision(Outcome.TIMEOUT, "o-reject_once"), "o-reject_once"),
        (Decision(Outcome.DECLINED), "o-reject_once"),
        (Decision(Outcome.CANCELLED), "o-reject_once"),
        (None, "o-reject_once"),
    ],
)
async def test_a_person_is_asked_and_no_answer_is_a_no(tmp_path: Path, decision: Decision | None, outcome: str) -> None:
    talk = Talk(tmp_path)
    talk.progress.decision = decision
    assert await talk.say("ask execute") == outcome
    (asked,) = (told for told in talk.progress.told if told[0] == "ask")
    question = 'May the agent use this tool? rm -r all (execute)\n{"command": "rm -r all"}'
    assert asked == ("ask", question, "o-allow_once", "o-reject_once", "o-allow_always")
    assert ("allowed" if "allow" in outcome else "denied") in talk.wrote
    await talk.provider.close()


async def test_a_permission_that_cannot_be_asked_is_denied(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "twins")
    assert await talk.say("ask execute") == "o-twin"
    assert "it cannot be asked, because it has two options with one id" in talk.wrote
    await talk.provider.close()


async def test_a_tool_is_declared_and_its_text_stays_in_order(tmp_path: Path) -> None:
    talk, file = Talk(tmp_path), tmp_path / "go"
    texts: list[str] = []

    async def ask() -> None:
        texts.append(await talk.say(f"tool build {file}"))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await eventually((tmp_path / "go.began").exists)
        await eventually(lambda: ("tool", "build", "1800.0") in talk.progress.told)
        assert ("tool_end",) not in talk.progress.told
        file.touch()
    assert texts == ["before\n\nafter"]
    assert talk.progress.told[-1] in {("tool_end",), ("event",)}
    assert ("tool_end",) in talk.progress.told
    await talk.provider.close()


@pytest.mark.parametrize(
    ("options", "text", "answer"),
    [
        ([], "parts", "first, the same\n\nsecond"),
        ([], "image", "(image content, which cannot be sent here) and words"),
        ([], "stop max_tokens", "so far\n\n(The agent stopped here: it reached its limit of tokens.)"),
        ([], "stop refusal", "so far\n\n(The agent refused to go on.)"),
        ([], "fs", "-32601"),
        ([], "flood 3000", "done"),
        (["noise"], "say hello", "hello"),
        (["chatty"], "say hello", "hello"),
        (["modes=a"], "say \ud83d", "\N{REPLACEMENT CHARACTER}"),
    ],
)
async def test_what_becomes_of_its_output(tmp_path: Path, options: list[str], text: str, answer: str) -> None:
    talk = Talk(tmp_path, *options, mode="a" if "modes=a" in options else "")
    assert await talk.say(text) == answer
    await talk.provider.close()


async def test_images_resources_and_links_below_home_go_with_the_answer_as_files(tmp_path: Path) -> None:
    talk = Talk(tmp_path, max_file_bytes=8)
    blocks = [
        {"type": "image", "data": "AAAA", "mimeType": "image/png"},
        {"type": "resource", "resource": {"uri": "mem:/x/IMAGE.png", "blob": "AAAB", "mimeType": "image/png"}},
        {"type": "resource_link", "name": "plot", "uri": f"file://{tmp_path}/my%20plot.svg"},
        {"type": "resource_link", "name": "elsewhere", "uri": "file:///etc/passwd"},
        {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
    ]
    answer = await talk.turn(f"files {json.dumps(blocks)}")
    (message,) = answer.messages
    assert [(one.name, one.data) for one in message.attached] == [
        ("image.png", b"\0\0\0"), ("IMAGE-2.png", b"\0\0\1")
    ]  # fmt: skip
    assert message.content["files"] == [f"{tmp_path}/my plot.svg"]
    assert message.content["text"] == "elsewhere: file:///etc/passwd(audio content, which cannot be sent here)"
    assert answer.ignored == ("audio",), "it is over the limit"
    only = await talk.turn(f"files {json.dumps(blocks[:1])}")
    assert [message.content["text"] for message in only.messages] == [""]
    await talk.provider.close()


async def test_an_empty_answer_is_noted(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    answer = await talk.turn("empty")
    assert answer.messages == ()
    assert answer.note is not None
    assert answer.note.code == "NOTHING_SENT"
    await talk.provider.close()


async def test_a_repeated_turn_says_so(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    await talk.say("say hello", tries=2)
    (told,) = json.loads(await talk.say("memory"))
    assert told.startswith("[This is try 3 of this message: the previous try was interrupted")
    assert told.endswith("say hello")
    await talk.say("one", "two")
    assert json.loads(await talk.say("memory"))[-1] == "[Message 1 of 2]\none\n\n[Message 2 of 2]\ntwo"
    await talk.provider.close()


async def test_an_agent_that_ended_between_two_turns_costs_no_message(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "resume=ok")
    pid = int(await talk.say("pid"))
    os.kill(pid, 9)
    await eventually(lambda: not runs(pid))
    assert json.loads(await talk.say("memory")) == ["pid"]
    await talk.provider.close()


async def test_a_program_that_closes_its_input_leaves_no_traceback_of_ours(tmp_path: Path) -> None:
    """The plugin that runs the tests raises what asyncio would print when it forgets the program."""

    async def speak() -> None:
        script = f"cd {tmp_path}; until test -e go; do sleep 0.01; done; exec 0<&-; touch closed; sleep 60"
        process = await start_program(("/bin/sh", "-c", script), None, dict(os.environ), Children())
        (tmp_path / "go").touch()
        while not (tmp_path / "closed").exists():
            time.sleep(0.001)  # noqa: ASYNC251 - the event loop must not see that the pipe is closed before it writes
        assert process.stdin is not None
        with contextlib.suppress(anyio.BrokenResourceError, ConnectionError):
            while True:  # the first send may still succeed; a later one fails
                await process.stdin.send(b"hello\n")
        await end_program(process)

    await speak()
    await anyio.sleep(0.01)
    gc.collect()


async def test_cancelling_ends_an_agent_that_ignores_the_end_of_its_input_and_sigterm(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "stay", "resume=ok", times=Times(close_s=0.1))
    pid = int(await talk.say("pid"))
    async with anyio.create_task_group() as group:
        group.start_soon(talk.say, f"deaf {tmp_path / 'began'}")
        await eventually((tmp_path / "began").exists)
        group.cancel_scope.cancel()
    assert not lives(pid)
    assert json.loads(await talk.say("memory")) == ["pid", f"deaf {tmp_path / 'began'}"]
    await talk.provider.close()


async def test_a_cancelled_turn_tells_the_agent_first(tmp_path: Path) -> None:
    talk = Talk(tmp_path, times=Times(close_s=5))
    async with anyio.create_task_group() as group:
        group.start_soon(talk.say, f"hang {tmp_path / 'began'}")
        await eventually((tmp_path / "began").exists)
        group.cancel_scope.cancel()
    (session,) = json.loads((tmp_path / "acp-memory.json").read_text()).values()
    assert session[-1] == "<cancelled>"


async def test_the_demo_s_agent_continues_its_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = (sys.executable, demo.acp_agent.__file__)
    first = Talk(tmp_path, command=command)
    assert await first.say("order 1") == "done: order 1 (request 1 of this conversation)"
    assert ("tool", "think", "1800.0") in first.progress.told
    await first.provider.close()
    later = Talk(tmp_path, command=command)
    later.state = first.state
    again = await later.say("order 2", tries=1)
    assert again == "done: order 2, once more after an interruption (request 2 of this conversation)"
    await later.provider.close()


def test_its_silence_is_declared(tmp_path: Path) -> None:
    assert Talk(tmp_path).provider.silence == DeclaredTimeout("agent", 300.0)


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_cancelled_message_cancels_the_prompt_and_keeps_an_agent_that_obeys(tmp_path: Path, deaf: bool) -> None:
    talk = Talk(tmp_path, times=Times(initialize_s=30, session_s=30, cancel_s=0.3 if deaf else 20, close_s=0.2))
    pid = int(await talk.say("pid"))
    failure: TurnFailedError | None = None
    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            await eventually((tmp_path / "runs").exists)
            talk.progress.stop.set()

        group.start_soon(cancel)
        try:
            await talk.turn(f"{'deaf' if deaf else 'hang'} {tmp_path / 'runs'}")
        except TurnFailedError as error:
            failure = error
    assert isinstance(failure, TurnStoppedError)
    assert (failure.usage is None) is deaf  # one that obeys still reports its tokens
    assert lives(pid) is not deaf
    talk.progress.stop = anyio.Event()
    if not deaf:
        assert "<cancelled>" in json.loads(await talk.say("memory"))
    await talk.provider.close()


async def test_a_message_cancelled_while_the_agent_starts_ends_the_start(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "silent")
    talk.progress.stop.set()
    assert isinstance(await talk.fails(), TurnStoppedError)
