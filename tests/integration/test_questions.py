"""Questions of a running agent, with a real daemon, real programs and the real command line: asked once, answered once."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.agents import command_agent, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.wreck import found, repair

Make = Callable[..., RealDaemon]
OPTIONS = {"text": "Delete the file?", "options": ["yes", "no"], "free_text": False}


def ask(daemon: RealDaemon, session: str, **fields: Any) -> tuple[str, str]:
    """Have the agent ask. Return the message's and the question's id, once it is delivered."""
    message_id = daemon.post(f"ask {json.dumps({**OPTIONS, **fields})}", agent="prog", session=session)
    entry = eventually(
        "asked", lambda: next((one for one in daemon.entries() if one["in_reply_to"] == message_id), None)
    )
    assert entry["content"]["type"] == "question"
    assert entry["content"]["text"] == "Delete the file?"
    return message_id, entry["content"]["question"]


def text_of(daemon: RealDaemon, message_id: str, session: str) -> str:
    return daemon.answer(message_id, agent="prog", session=session)["text"]


def reply(daemon: RealDaemon, session: str, question: str, text: str, **fields: Any) -> dict[str, Any]:
    """Answer as somebody in the chat does: with a message that names the question."""
    content = {"answer_to": question, "text": text}
    with daemon.client() as client:
        return client.accept(
            {
                "agent": "prog",
                "session": session,
                "content": content,
                "address": {"channel_type": "local", "platform_id": "cli"},
                **fields,
            }
        )


def test_a_question_is_answered_by_command_by_reply_and_by_its_deadline(make_daemon: Make) -> None:
    daemon = make_daemon(obedient(timeout_s=8.0), sweep_keys="claim_stuck_s = 3.0")
    daemon.start()
    message_id, question = ask(daemon, "command")
    replied, other = ask(daemon, "reply")
    listed = daemon.cli("question", "list").result
    assert {one["id"] for one in listed["questions"]} == {question, other}
    assert "Delete the file?" in daemon.people("question", "list")
    shown = daemon.cli("question", "show", question).result
    assert (shown["state"], shown["message_id"], shown["where"]) == ("open", message_id, "local:cli")

    refused = daemon.cli("question", "answer", question, "perhaps")
    assert refused.error == "ANSWER_REFUSED"
    assert daemon.cli("question", "answer", question, "1").result["choice"] == "yes"
    assert text_of(daemon, message_id, "command") == "answered yes yes"
    assert daemon.cli("question", "answer", question, "no").error == "QUESTION_CLOSED"
    assert daemon.life("prog", "command", message_id).count("question_decided") == 1

    first = reply(daemon, "reply", other, "No", id="r1")
    again = reply(daemon, "reply", other, "No", id="r1")
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert text_of(daemon, replied, "reply") == "answered no no"
    assert daemon.cli("question", "show", other).result["by"] == "local:cli"

    late, unanswered = ask(daemon, "late", timeout_s=6, default="no")
    assert text_of(daemon, late, "late") == "timeout no None"
    assert daemon.cli("question", "show", unanswered).result["state"] == "timeout"
    for session, message in (("command", message_id), ("reply", replied), ("late", late)):
        assert daemon.message("prog", session, message)["tries"] == 0, "its silence was declared: nothing was killed"
    daemon.at_rest = True


def test_an_open_question_survives_the_death_of_daemon_and_agent_and_is_asked_once(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message_id, question = ask(daemon, "s")
    daemon.kill()
    os.killpg(daemon.leader("prog", "s"), signal.SIGKILL)
    # With its session: the daemon may have died in the middle of a commit, which only a writer finishes.
    said = daemon.cli("question", "answer", question, "yes", "--session", "prog/s", "--reason", "it was down")
    assert said.result["outcome"] == "answered"
    daemon.start()
    assert text_of(daemon, message_id, "s") == "answered yes yes"
    asked = [one for one in daemon.entries() if one["content"].get("type") == "question"]
    assert [one["content"]["question"] for one in asked] == [question], "the second try found the recorded answer"
    eventually("settled", lambda: daemon.message("prog", "s", message_id)["status"] == "completed")
    daemon.at_rest = True


@pytest.mark.parametrize("outcome", ["answered yes yes", "timeout no None"])
def test_a_turn_that_froze_while_it_waited_is_ended_soon_after_its_question(make_daemon: Make, outcome: str) -> None:
    """While it waits it may be silent for as long as the question is open, and not for as long again."""
    daemon = make_daemon(obedient(timeout_s=8.0), sweep_keys="claim_stuck_s = 3.0")
    daemon.start()
    # Its deadline is far longer than this test waits, or near.
    message_id, question = ask(daemon, "s", timeout_s=3600 if outcome.startswith("answered") else 12, default="no")
    os.killpg(daemon.leader("prog", "s"), signal.SIGSTOP)
    if outcome.startswith("answered"):
        reply(daemon, "s", question, "yes")
    assert text_of(daemon, message_id, "s") == outcome
    assert [one["reason"] for one in daemon.events("container_stuck")] == ["claim_stuck"]
    assert daemon.message("prog", "s", message_id)["tries"] == 1
    daemon.at_rest = True


def test_a_question_whose_message_ends_without_it_is_cancelled(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message_id, question = ask(daemon, "s")
    daemon.cli("message", "cancel", message_id, "--kill").result  # noqa: B018 - asserts that it worked
    state = eventually(
        "cancelled", lambda: (found := daemon.cli("question", "show", question).result["state"]) != "open" and found
    )
    assert state == "cancelled"


def test_a_question_that_nobody_could_answer_is_refused_and_the_agent_goes_on(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message = daemon.post('ask {"text": "x", "options": [], "free_text": false}', agent="prog", session="s")
    assert "error" in daemon.answer(message, agent="prog", session="s")


def test_doctor_names_an_open_question_and_its_repair_ends_it(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message_id, _ = ask(daemon, "s")
    one = found(daemon, "QUESTION_OPEN")
    assert any("Delete the file?" in line for line in one["evidence"])
    (listed,) = daemon.cli("session", "list").result["sessions"]
    assert "waits for a person" in listed["explanation"]
    assert [choice["when"] for choice in one["choices"]] == [
        'to answer "yes"', 'to answer "no"', "to go on without an answer",
    ]  # fmt: skip
    shown = repair(daemon, one["command"])  # in a script, which has nobody to ask
    assert shown is not None
    assert (shown.result["text"], shown.result["state"]) == ("Delete the file?", "open")
    asking = asked_for(one["choices"][0]["command"])[:-1]
    assert daemon.cli(*asking, text="").error == "CONTENT_INVALID"
    assert daemon.cli(*asking, text="2\n").result["choice"] == "no"
    assert text_of(daemon, message_id, "s") == "answered no no"
    for number, said in enumerate(("answered yes yes", "answered no no", "declined None None")):
        message_id, _ = ask(daemon, f"s{number}")
        repair(daemon, found(daemon, "QUESTION_OPEN")["choices"][number]["command"])
        assert text_of(daemon, message_id, f"s{number}") == said
    assert daemon.cli("doctor").result["findings"] == []


ASKS_ALWAYS = """
import json, sys
for number in range(3):
    fields = {"text": f"Still there? {number}", "options": ["yes", "no"], "notify": True, "timeout_s": 1}
    print(json.dumps({"type": "question", **fields}), flush=True)
print(json.dumps({"type": "message", "text": "asked"}))
"""


def test_an_agent_cannot_wake_itself_more_often_by_questions_than_by_schedules(make_daemon: Make) -> None:
    """Each question that nobody answers wakes it, and it asks again: within minutes there were hundreds of messages."""
    agent = command_agent("asks", (sys.executable, "-I", "-S", "-c", ASKS_ALWAYS))
    daemon = make_daemon(f"{agent}min_schedule_s = 1800\n")
    daemon.start()
    assert daemon.ask("go", agent="asks", session="s")["text"] == "asked"
    listed = daemon.cli("question", "list").result["questions"]
    assert len(listed) == 3
    lasts = [one["deadline"] - daemon.status()["at"] for one in listed]
    assert all(1_700_000 < milliseconds <= 1_800_000 for milliseconds in lasts), lasts
    daemon.cli("question", "answer", listed[0]["id"], "yes").result  # noqa: B018 - asserts that it worked
    eventually("told at once", lambda: [one["content"].get("text") for one in daemon.entries()].count("asked") == 2)
    daemon.at_rest = True


def test_a_question_may_stay_open_for_longer_than_an_agent_may_ask_for(make_daemon: Make) -> None:
    """Its own record was refused at each reading: the sweep failed, and so did status, doctor and every list."""
    agent = command_agent("asks", (sys.executable, "-I", "-S", "-c", ASKS_ALWAYS))
    daemon = make_daemon(f"{agent}min_schedule_s = {30 * 86_400}\n")
    daemon.start()
    assert daemon.ask("go", agent="asks", session="s")["text"] == "asked"
    listed = daemon.cli("question", "list").result["questions"]
    assert [one["deadline"] - daemon.status()["at"] > 29 * 86_400_000 for one in listed] == [True, True, True]
    assert daemon.show("asks", "s")["state"]
    assert not daemon.events("sweep_failed")
    daemon.cli("question", "answer", listed[0]["id"], "yes").result  # noqa: B018 - asserts that it worked
    eventually("told at once", lambda: [one["content"].get("text") for one in daemon.entries()].count("asked") == 2)
    daemon.at_rest = True


def asked_for(command: str) -> list[str]:
    """The words of a printed command, without the program and its --config, which the daemon of the test adds."""
    words = shlex.split(command)
    return words[words.index("question") :]
