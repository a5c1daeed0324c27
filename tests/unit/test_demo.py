"""The parts of the demo: its count, its story, its receiver, its agent, and what it ends of its own."""

import io
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console

from daemon.config.loading import load_config
from daemon.runtimes.process_table import boot_id, read_stat
from demo import agent
from demo.ledger import Ledger, answered_ids
from demo.leftovers import end_processes, leader_of
from demo.receiver import Receiver, sign
from demo.setting import Setting
from demo.stage import DemoFailed, Stage, poll
from demo.story import check_story, rows_of, table_of
from schema.instants import to_text

AGENT: Final = Path(agent.__file__)


def test_the_ledger_counts_what_was_promised() -> None:
    ledger = Ledger()
    for message_id, channel in (("a", "local"), ("b", "webhook"), ("c", "local")):
        ledger.accept(message_id, channel)
    assert ledger.answer(["a", "stranger"]) == ["a"]
    assert ledger.answer(["a"]) == []
    assert (ledger.missing(), ledger.missing("local"), ledger.repeated()) == (["b", "c"], ["c"], ["a"])
    assert ledger.verdict() == "demo: 3 accepted, 1 answered, 2 lost"


@pytest.mark.parametrize(
    ("in_reply_to", "content", "ids"),
    [
        ("a", {"text": "x"}, {"a"}),
        ("b", {"text": "x", "answers": ["a", "b"]}, {"a", "b"}),
        (None, {"answers": "a"}, set[str]()),
        ("a", [], {"a"}),
    ],
)
def test_an_answer_names_what_it_answers(in_reply_to: str | None, content: object, ids: set[str]) -> None:
    assert answered_ids(in_reply_to, content) == ids


LIFE: Final[list[dict[str, Any]]] = [
    {"at": 1000, "event": "accepted", "detail": {"from": "local:demo"}},
    {"at": 1300, "event": "claimed", "detail": {"incarnation": "FIRST-000001"}},
    {"at": 1700, "event": "retry_scheduled", "detail": {"incarnation": "FIRST-000001", "tries": 1}},
    {"at": 1700, "event": "attempt_orphaned", "detail": {"incarnation": "FIRST-000001"}},
    {"at": 2900, "event": "claimed", "detail": {"incarnation": "SECOND-00002"}},
    {"at": 5000, "event": "answered", "detail": {"text": "done"}},
    {"at": 5010, "event": "delivered", "detail": {}},
]
INCARNATIONS: Final[list[dict[str, Any]]] = [
    {"id": "SECOND-00002", "created_at": 2700, "ended_at": None, "exit_code": None, "end_reason": None},
    {"id": "FIRST-000001", "created_at": 1010, "ended_at": 1700, "exit_code": 137, "end_reason": "exited"},
    {"id": "EARLIER-0000", "created_at": 10, "ended_at": 90, "exit_code": 0, "end_reason": "idle"},
]


def test_the_story_is_told_in_its_order() -> None:
    rows = rows_of(LIFE, INCARNATIONS, 1600, "FIRST-000001")
    assert [row.event for row in rows] == [
        "accepted", "spawned", "claimed", "killed (SIGKILL)", "exit confirmed", "reset, next try",
        "respawned", "claimed", "answered", "delivered",
    ]  # fmt: skip
    assert rows[4].detail == "container ..000001, code 137 (exited)"
    assert check_story(rows) == []


def test_a_story_with_a_gap_is_seen() -> None:
    rows = rows_of(LIFE[:4], INCARNATIONS[1:], 1600, "FIRST-000001")
    assert check_story(rows) == ["respawned", "answered", "delivered", "claimed again"]


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - the loopback
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_receiver_takes_what_is_signed_and_each_answer_once() -> None:
    with Receiver("a secret") as receiver:
        body = b'{"in_reply_to": "m"}'
        headers = {
            "X-Clawbus-Timestamp": "5",
            "X-Clawbus-Signature": sign("a secret", "5.", body),
            "Idempotency-Key": "k",
        }
        assert post(receiver.url, body, headers) == 200
        assert post(receiver.url, body, headers) == 200
        assert post(receiver.url, body, {**headers, "X-Clawbus-Signature": sign("another", "5.", body)}) == 401
        assert post(receiver.url, body, {**headers, "Idempotency-Key": ""}) == 400
        assert receiver.wait_new(0, 10) == [{"in_reply_to": "m"}]
        assert receiver.wait_new(1, 0) == []
        assert receiver.refused == ["wrong signature", "no Idempotency-Key"]


def test_the_agent_answers_every_message_of_its_turn() -> None:
    messages = [{"content": {"text": "one"}}, {"content": {"body": {"text": "two"}}}, {"content": "three"}]
    turn = json.dumps({"messages": messages})
    command = [sys.executable, "-I", str(AGENT)]
    done = subprocess.run(command, input=turn, capture_output=True, text=True, timeout=120, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["tool", "tool_end"] * 3 + ["message"]
    assert lines[-1]["content"] == {"text": "done: one, two, three"}


def test_the_agent_needs_nothing_but_the_standard_library() -> None:
    command = [sys.executable, "-I", "-S", str(AGENT)]
    done = subprocess.run(command, input='{"messages": []}', capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("runtime", "python"), [("process", sys.executable), ("docker", "python3")])
def test_the_configuration_is_one(runtime: str, python: str) -> None:
    stage = Stage(runtime, keep=False)
    with stage:
        Setting(port=8080, reply_url="http://127.0.0.1:1/x").write(stage, image="i:latest", reply_secret="hush" * 4)
        config = load_config(stage.config)
        assert config.data_dir == stage.data
        assert config.runtime.kind == runtime
        assert config.agents["worker"].command == (python, "agent.py")
        assert config.channels["webhook"]["listen"] == "127.0.0.1:8080"
        assert (stage.data / "agents" / "worker" / "agent.py").read_text() == AGENT.read_text()
        assert "secret" not in repr(Setting(port=1, reply_url="x"))
    assert not stage.root.exists()


@pytest.mark.parametrize(
    ("runtime", "keep", "commands"),
    [
        ("process", False, ["make clean"]),
        ("docker", False, ["docker image rm clawbus-runner:latest", "make clean"]),
        ("process", True, ["rm -r {root}", "make clean"]),
    ],
)
def test_it_says_how_to_clean_up(runtime: str, keep: bool, commands: list[str]) -> None:
    stage = Stage(runtime, keep=keep)
    with stage:
        assert stage.clean_up().split(" && ") == [one.format(root=stage.root) for one in commands]
    assert stage.root.exists() is keep
    shutil.rmtree(stage.root, ignore_errors=True)


def test_the_story_fits_into_80_columns() -> None:
    late: dict[str, Any] = {
        "at": 1700,
        "event": "retry_scheduled",
        "detail": {"incarnation": "FIRST-000001", "tries": 1},
    }
    late["detail"]["process_after"] = to_text(2200)
    rows = rows_of([*LIFE, late], INCARNATIONS, 1600, "FIRST-000001")
    assert any(row.detail == "try 1 used, the next after 0.5 s" for row in rows)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table_of('The life of "slow report" (01M8GQ2WPKR996YY6759X8K0H2)', rows))
    assert max(len(line.rstrip()) for line in console.export_text().splitlines()) <= 80


def test_polling_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    answers = iter([None, None, "there"])
    assert poll("it", lambda: next(answers), 60) == "there"
    with pytest.raises(DemoFailed, match="waited 0 s for it"):
        poll("it", lambda: None, 0)


def record_of(process: subprocess.Popen[bytes], folder: Path, **changed: object) -> None:
    stat = read_stat(process.pid)
    assert stat is not None
    values = {
        "pid": process.pid,
        "start_ticks": stat.start_ticks,
        "boot_id": boot_id(),
        "incarnation": f"demo-{process.pid}",
    }
    (folder / f"{process.pid}.json").write_text(json.dumps(values | changed))


def test_only_the_recorded_processes_are_ended(tmp_path: Path) -> None:
    ours, other = (subprocess.Popen(["sleep", "300"], start_new_session=True) for _ in range(2))
    try:
        record_of(ours, tmp_path)
        record_of(other, tmp_path, start_ticks=1)  # the number was given to another process since
        (tmp_path / "broken.json").write_text("{")
        assert leader_of(tmp_path / "broken.json") is None
        assert end_processes(tmp_path) == 1
        assert ours.wait(60) == -9
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()
