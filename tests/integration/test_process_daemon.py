"""The whole bus with the process runtime: a real daemon, real agents, the real command line. What messages go through.

One daemon serves all tests of this file; each has sessions of its own, and the folder is checked after each.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Make
from tests.support.agents import ECHO, command_agent, obedient
from tests.support.daemon import RealDaemon, eventually

AGENTS = ECHO + obedient() + obedient("impatient", timeout_s=0.5) + command_agent("lost", ("/no/such/program",))

PAST = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec -= 2 * 86400;
    return failed;
}
"""


@pytest.fixture(scope="module")
def bus() -> Iterator[RealDaemon]:
    daemon = RealDaemon(AGENTS)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def daemon(bus: RealDaemon, checked_after: Any) -> Iterator[RealDaemon]:
    assert bus.process is not None
    assert bus.process.poll() is None, "an earlier test ended the daemon"
    yield bus
    checked_after(bus)


def test_send_with_wait_prints_the_answer(daemon: RealDaemon) -> None:
    said = daemon.cli("send", "hello", "--agent", "echo", "--session", "first", "--wait", "60")
    assert said.envelope["command"] == "send"
    assert said.result["answer"]["text"] == "hello"
    assert said.result["answer"]["in_reply_to"] == said.result["message_id"]
    # The answer can be read a moment before its receipt is written.
    eventually("delivered", lambda: daemon.life("echo", "first", said.result["message_id"])[-1] == "delivered")


def test_a_program_answers_and_its_answer_is_delivered_once(daemon: RealDaemon) -> None:
    said = daemon.cli("send", "say hello there", "--agent", "prog", "--session", "first", "--wait", "60")
    assert said.result["answer"]["text"] == "hello there"
    replies = [one for one in daemon.entries() if one["in_reply_to"] == said.result["message_id"]]
    assert len(replies) == 1
    assert daemon.message("prog", "first", said.result["message_id"])["tries"] == 0


def test_each_session_has_a_home_of_its_own(daemon: RealDaemon) -> None:
    homes = {name: daemon.ask("look", agent="prog", session=name)["home"] for name in ("at-home", "next-door")}
    assert homes == {name: str(daemon.folder("prog", name) / "home") for name in homes}


def test_a_secret_that_is_not_there_yet_costs_no_try(make_daemon: Make, tmp_path: Path) -> None:
    """And the agent works as soon as the file is there."""
    key, variables = tmp_path / "key", tmp_path / "variables"
    daemon = make_daemon(
        f"""
[agents.keeper]
command = ["sh", "-c", 'tr a-z A-Z < "$KEY_FILE"; echo " $GREETING"']
secret_file = {{ KEY = "{key}" }}
env_file = "{variables}"
"""
    )
    variables.write_text("GREETING=hello\n", encoding="utf-8")
    daemon.start()
    message_id = daemon.post("what is the key?", agent="keeper", session="s")
    assert eventually("a failed start", lambda: daemon.events("spawn_failed"))[0]["code"] == "SECRET_FILE"
    found = daemon.cli("doctor").envelope["result"]["diagnoses"]
    assert [one["code"] for one in found if str(key) in str(one["evidence"])] == ["SPAWN_FAILING"]
    key.write_text("sk-secret", encoding="utf-8")
    assert daemon.answer(message_id, agent="keeper", session="s") == {"text": "SK-SECRET hello"}
    assert daemon.message("keeper", "s", message_id)["tries"] == 0
    assert b"sk-secret" not in b"".join(path.read_bytes() for path in daemon.data.rglob("*") if path.is_file())


def test_what_an_agent_says_while_it_works_is_shown_and_outlives_its_container(make_daemon: Make) -> None:
    script = 'echo \'{"type": "progress", "note": "asking the source"}\'; echo boom >&2; exec sleep 60'
    daemon = make_daemon(command_agent("slow", ("sh", "-c", script)), sweep_keys="max_tries = 1")
    daemon.start()
    message_id = daemon.post("go", agent="slow", session="s")

    words = daemon.folder("slow", "s") / "out" / ".words"
    eventually("its words", lambda: words.exists() and len(words.read_text(encoding="utf-8").splitlines()) == 2, 90)
    work = daemon.cli("session", "list").result["sessions"][0]["work"]
    assert work["said"] in ("boom", "asking the source")
    assert "said" in daemon.people("top", "--once")
    os.killpg(daemon.leader("slow", "s"), signal.SIGKILL)
    letter = eventually("given up", lambda: daemon.cli("dead", "list").result["letters"], 90)[0]
    assert letter["id"] == message_id
    seen = daemon.cli("dead", "show", message_id).result
    said = sorted((one["kind"], one["text"]) for one in seen["said"])
    assert said == [("progress", "asking the source"), ("stderr", "boom")]
    assert "boom" in daemon.people("dead", "show", message_id)


def test_twenty_messages_to_five_sessions_are_each_answered_once(daemon: RealDaemon) -> None:
    sent = [
        (daemon.post(f"text {n}", agent="echo", session=f"s{n % 5}", mailbox="many"), f"s{n % 5}") for n in range(20)
    ]
    for message_id, session in sent:
        daemon.answer(message_id, agent="echo", session=session)
    answered: list[str] = []
    for entry in daemon.entries("many"):
        answered += entry["content"].get("answers", [entry["in_reply_to"]])
    assert sorted(answered) == sorted(message_id for message_id, _ in sent)
    assert eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)


def test_the_same_id_twice_is_one_message_and_other_content_is_refused(daemon: RealDaemon) -> None:
    command = ("send", "hello", "--agent", "echo", "--session", "twice", "--id", "once:1", "--wait", "60")
    first, second = daemon.cli(*command), daemon.cli(*command)
    assert (first.result["duplicate"], second.result["duplicate"]) == (False, True)
    assert second.result["answer"]["cursor"] == first.result["answer"]["cursor"]
    other = daemon.cli("send", "other", "--agent", "echo", "--session", "twice", "--id", "once:1")
    assert other.error == "ID_CONFLICT"
    assert len(daemon.show("echo", "twice")["messages"]) == 1


@pytest.mark.parametrize(
    ("agent", "text", "words"),
    [
        ("prog", "exit 3", "exit code 3. Its last words: it is over"),
        ("prog", "garbage", "not UTF-8"),
        ("prog", "broken", "Line 2"),
        ("impatient", "hang {mark}", "did not end within 0.5 s"),
        ("lost", "anything", "/no/such/program"),
    ],
    ids=["exit", "garbage", "broken-line", "time-out", "not-found"],
)
def test_a_program_that_fails_is_a_typed_error_answer_and_the_loop_lives(
    daemon: RealDaemon, agent: str, text: str, words: str
) -> None:
    session = f"fails-{text.split(maxsplit=1)[0]}"
    text = text.format(mark=daemon.root / "impatient")
    said = daemon.cli("send", text, "--agent", agent, "--session", session, "--wait", "60")
    assert said.error == "AGENT_FAILED"
    assert words in said.envelope["error"]["message"], "the operator, who typed this, reads why"
    message_id = said.envelope["result"]["message_id"]
    sent = said.envelope["result"]["answer"]["content"]
    assert words not in json.dumps(sent), "what is sent to whoever wrote has no word of it"
    assert sent["error"]["reference"] == message_id
    row = eventually(
        "failed", lambda: (found := daemon.message(agent, session, message_id))["status"] == "failed" and found
    )
    assert row["last_event"]["event"] == "failed"
    assert daemon.show(agent, session)["state"] == "resting", "the runner outlives the failure"
    incarnation = daemon.container(agent, session)["incarnation"]
    if agent == "prog":
        assert daemon.ask("say on", agent=agent, session=session) == {"text": "on"}
    else:
        assert "error" in daemon.ask("again", agent=agent, session=session) or agent == "impatient"
    assert daemon.container(agent, session)["incarnation"] == incarnation


def test_a_message_for_later_waits_for_its_time(daemon: RealDaemon) -> None:
    due = int(time.time() * 1000) + 1500
    message_id = daemon.post("for later", agent="echo", session="later", process_after=due)
    assert daemon.running("echo", "later") is None, "nothing is due, so nothing is started"
    assert daemon.show("echo", "later")["messages"][0]["process_after"] == due
    with daemon.client() as client:
        entry = client.wait_reply("echo", "later", message_id, 20)
    assert entry is not None
    assert json.loads(entry.content)["text"] == "for later"
    assert entry.delivered_at >= due


def test_context_starts_nothing_and_rides_along(daemon: RealDaemon) -> None:
    said = daemon.cli("send", "by the way", "--agent", "prog", "--session", "context", "--context")
    context_id = said.result["message_id"]
    message_id = daemon.post("context", agent="prog", session="context")
    seen = daemon.answer(message_id, agent="prog", session="context")["messages"]
    assert [(one["id"], one["trigger"]) for one in seen] == [(context_id, False), (message_id, True)]
    assert len(daemon.show("prog", "context")["incarnations"]) == 1
    eventually("settled", lambda: daemon.message("prog", "context", context_id)["status"] == "completed")


def test_a_first_poll_row_waits_for_the_next_container(daemon: RealDaemon) -> None:
    daemon.ask("say up", agent="prog", session="waking")
    waking = daemon.post("good morning", agent="prog", session="waking", on_wake=True, trigger=False)
    seen = daemon.ask("context", agent="prog", session="waking")["messages"]
    assert waking not in [one["id"] for one in seen], "this container's first poll is over"
    daemon.cli("session", "stop", "prog", "waking")
    eventually("stopped", lambda: daemon.running("prog", "waking") is None)
    seen = daemon.ask("context", agent="prog", session="waking")["messages"]
    assert seen[0]["id"] == waking


def test_a_rich_answer_may_be_delivered_later(daemon: RealDaemon) -> None:
    daemon.ask("say up", agent="prog", session="rich")  # a container's start is not what is timed here
    due = int(time.time() * 1000) + 2500
    message_id = daemon.post(f"later {due} the rest", agent="prog", session="rich", mailbox="rich")
    with daemon.client() as client:
        first = client.read_mailbox("rich", 0, 10, 20)
        rest = client.read_mailbox("rich", first[-1].cursor, 10, 20)
    assert [json.loads(one.content)["text"] for one in (*first, *rest)] == ["at once", "the rest"]
    assert first[0].delivered_at < due <= rest[0].delivered_at
    assert rest[0].in_reply_to == message_id


def test_a_client_that_comes_back_later_misses_nothing(daemon: RealDaemon) -> None:
    daemon.ask("one", agent="echo", session="absent", mailbox="absent")
    first = daemon.cli("mailbox", "absent").result
    for text in ("two", "three"):
        daemon.ask(text, agent="echo", session="absent", mailbox="absent")
    later = daemon.cli("mailbox", "absent", "--after", str(first["next_after"])).result
    assert [one["text"] for one in first["entries"]] == ["one"]
    assert [one["text"] for one in later["entries"]] == ["two", "three"]
    assert daemon.cli("mailbox", "absent", "--after", str(later["next_after"])).result["entries"] == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--agent", "nobody", "--session", "s"), "UNKNOWN_AGENT"),
        (("--agent", "echo", "--session", "../../etc"), "INVALID_NAME"),
        (("--agent", "../echo", "--session", "s"), "INVALID_NAME"),
        (("--agent", "echo", "--session", "s", "--id", "a/../b"), "INVALID_NAME"),
        (("--agent", "echo", "--session", "never-made", "--no-create"), "UNKNOWN_SESSION"),
        (("--agent", "echo", "--session", "s", "--json-content"), "CONTENT_INVALID"),
    ],
    ids=["agent", "session-path", "agent-path", "id-path", "session", "not-json"],
)
def test_bad_input_is_refused_and_stores_nothing(daemon: RealDaemon, arguments: tuple[str, ...], code: str) -> None:
    before = daemon.status()["sessions"]["total"]
    assert daemon.cli("send", "no {json", *arguments).error == code
    assert daemon.status()["sessions"]["total"] == before


def test_content_over_the_limit_is_refused(daemon: RealDaemon) -> None:
    daemon.ask("small", agent="echo", session="big")
    said = daemon.cli("send", "-", "--agent", "echo", "--session", "big", text="x" * (1024 * 1024))
    assert said.error == "CONTENT_INVALID"
    assert len(daemon.show("echo", "big")["messages"]) == 1


def test_stop_and_kill_of_a_session(daemon: RealDaemon) -> None:
    daemon.ask("say up", agent="prog", session="levers")
    first = daemon.container("prog", "levers")["incarnation"]
    assert daemon.cli("session", "stop", "prog", "levers").result == {
        "agent": "prog", "session": "levers", "stopping": True, "incarnation": first,
    }  # fmt: skip
    eventually("stopped", lambda: daemon.running("prog", "levers") is None)
    ended = daemon.show("prog", "levers")["incarnations"][0]
    assert (ended["id"], ended["exit_code"], ended["end_reason"]) == (first, 0, "operator_stop")

    mark = daemon.root / "levers"
    message_id = daemon.post(f"hang {mark}", agent="prog", session="levers")
    eventually("in mid-turn", mark.exists)
    killed = daemon.cli("session", "kill", "prog/levers", "--reason", "a test").result
    assert (killed["killed"], killed["exit_code"]) == (True, 137)
    mark.with_name("levers.go").touch()
    assert daemon.answer(message_id, agent="prog", session="levers") == {"text": "done"}
    assert daemon.message("prog", "levers", message_id)["tries"] == 1
    assert daemon.cli("session", "kill", "prog", "nobody").error == "UNKNOWN_SESSION"


def test_status_for_people_tells_what_is_alive(daemon: RealDaemon) -> None:
    daemon.ask("hello", agent="echo", session="shown")
    said = daemon.people("status")
    assert "process: available" in said
    assert "running, 0 waiting" in said


def test_a_reload_takes_a_new_agent_over_and_a_broken_file_changes_nothing(daemon: RealDaemon) -> None:
    assert daemon.cli("send", "x", "--agent", "added", "--session", "s").error == "UNKNOWN_AGENT"
    right = daemon.config.read_text(encoding="utf-8")
    daemon.config.write_text(right + ECHO.replace("echo]", "added]"), encoding="utf-8")
    daemon.reload()
    eventually("reloaded", lambda: daemon.events("config_reloaded"))
    daemon.config.write_text("[runtme]\n", encoding="utf-8")
    daemon.reload()
    eventually("refused", lambda: daemon.events("reload_refused"))
    assert daemon.ask("hello", agent="added", session="s") == {"text": "hello"}
    daemon.config.write_text(right, encoding="utf-8")


def test_the_reload_command_says_whether_all_is_in_force(daemon: RealDaemon) -> None:
    right = daemon.config.read_text(encoding="utf-8")
    daemon.config.write_text(right + ECHO.replace("echo]", "added]"), encoding="utf-8")
    said = daemon.cli("reload")
    assert said.ok
    assert "added" in said.envelope["result"]["agents"]
    assert daemon.ask("hello", agent="added", session="s") == {"text": "hello"}
    daemon.config.write_text(right + "\n[telemetry]\ntrace_sample_ratio = 0.5\n", encoding="utf-8")
    said = daemon.cli("reload")
    assert said.error == "RESTART_NEEDED"
    assert "Ctrl-C" in said.envelope["fix"], "no unit runs this daemon"
    assert said.envelope["result"]["restart_needed_for"] == ["telemetry"]
    assert said.envelope["error"]["message"].startswith("telemetry changed too, and takes effect only at a restart")
    daemon.config.write_text(
        right + "\n[telemetry]\ntrace_sample_ratio = 0.5\n[agent_messages]\nmax_hops = 7\n", encoding="utf-8"
    )
    both = daemon.cli("reload").envelope["error"]["message"]
    assert both.startswith("agent_messages, telemetry changed too, and take effect only at a restart")
    assert "added" not in said.envelope["result"]["agents"], "what can be done at once is done"
    daemon.config.write_text(right + "\n[agents.bad]\nprovider = 'claude'\n", encoding="utf-8")
    refused = daemon.cli("reload")
    assert refused.error == "CONFIG_INVALID"
    assert "agents.bad.provider" in refused.envelope["error"]["message"]
    assert daemon.ask("hello", agent="echo", session="s") == {"text": "hello"}
    daemon.config.write_text(right, encoding="utf-8")  # the daemon is shared by these tests
    assert daemon.cli("reload").ok


def test_an_agent_with_a_library_of_its_own_does_not_cost_its_runner_anything(
    make_daemon: Make, tmp_path: Path
) -> None:
    """The library gives who loads it a clock of two days ago, as for tests of an agent: its claims looked stuck."""
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(PAST, encoding="ascii")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True, timeout=60)
    program = command_agent("past", ("/bin/sh", "-c", "cat >/dev/null; echo $LD_PRELOAD; sleep 4"))
    daemon = make_daemon(program + f'env = {{LD_PRELOAD = "{library}"}}\n', sweep_keys="claim_stuck_s = 3.0")
    daemon.start()
    assert daemon.ask("hello", agent="past", session="s") == {"text": str(library)}
    assert daemon.events("container_stuck") == []
