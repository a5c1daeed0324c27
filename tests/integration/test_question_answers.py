"""Who answers, when and how often, over the webhook of a real daemon with a real receiver."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from tests.support.daemon import RealDaemon, eventually
from tests.support.webhooks import Receiver, free_port, post, receiving

Make = Callable[..., RealDaemon]
SECRET: Final = "inbound-secret"
# Asks what its message says to ask, and answers with what became of it.
ASKS: Final = """
import json, sys
turn = json.load(sys.stdin)
with open(turn["answers"]) as answers:
    asked = {"type": "question", "text": "Delete?", "options": ["yes", "no"], "free_text": False}
    print(json.dumps({**asked, **turn["messages"][-1]["content"]["body"].get("ask", {})}), flush=True)
    said = json.loads(answers.readline())
print(json.dumps({"type": "message", "text": f"{said['status']} {said['choice']} {said['by']}"}))
"""
TABLES: Final = """
[agents.asks]
command = {command}
timeout_s = 60
{more}

[[routes]]
name = "rooms"
channel = "webhook"
place = "*"
agent = "asks"
senders = "anyone"

[channels.webhook]
listen = "127.0.0.1:{port}"

[channels.webhook.hooks.room]
secret = "{secret}"
place = "{{body.room}}"
sender = "{{body.who}}"
reply_url = "{url}"
reply_secret = "outbound-secret"
"""


@dataclass(slots=True)
class Room:
    """One room of the hook, with a question that Ann's message caused."""

    daemon: RealDaemon
    receiver: Receiver
    url: str
    sent: list[str] = field(default_factory=list)

    def say(self, who: str, number: str, **body: Any) -> tuple[int, dict[str, Any]]:
        response = post(self.url, SECRET, {"room": "r", "who": who, **body}, message_id=number)
        return response.status_code, response.json()

    def ask(self, **fields: Any) -> str:
        assert self.say("ann", "m1", ask=fields)[0] == 202
        posts = eventually("asked", lambda: self.receiver.posts)
        return str(posts[0].json["content"]["question"])

    def answer(self, who: str, number: str, question: str, text: str = "yes") -> tuple[int, str]:
        status, body = self.say(who, number, answer_to=question, text=text)
        return status, body["error"]["code"] if "error" in body else str(body.get("duplicate"))

    def outcome(self) -> str:
        posts = eventually("answered", lambda: self.receiver.posts if len(self.receiver.posts) > 1 else None)
        return str(posts[-1].json["content"]["text"])


def room(make_daemon: Make, receiver: Receiver, more: str = "", hook: str = "") -> Room:
    port = free_port()
    command = json.dumps([sys.executable, "-I", "-S", "-c", ASKS])
    tables = TABLES.format(command=command, more=more, port=port, secret=SECRET, url=receiver.url)
    daemon = make_daemon(f"{tables}{hook}\n")
    daemon.start()
    return Room(daemon, receiver, f"http://127.0.0.1:{port}/hooks/room")


def test_only_the_asker_answers_and_once(make_daemon: Make) -> None:
    with receiving() as receiver:
        here = room(make_daemon, receiver)
        question = here.ask()
        assert here.answer("bob", "a1", question) == (403, "ANSWER_FORBIDDEN")
        here.daemon.kill()  # the question, and who may answer it, outlive a crash
        here.daemon.start()
        assert here.answer("bob", "a2", question) == (403, "ANSWER_FORBIDDEN")
        assert here.answer("ann", "a3", question, "perhaps") == (400, "ANSWER_REFUSED")
        assert here.answer("ann", "a4", question)[0] == 202
        assert here.outcome() == "answered yes ann at webhook:room:r"
        assert here.answer("ann", "a4", question)[0] == 202, "the same request again is the same answer"
        assert here.answer("ann", "a5", question, "no") == (409, "QUESTION_CLOSED")
        assert len(receiver.posts) == 2


@pytest.mark.parametrize(("more", "status"), [('answers_from = "anyone"', 202), ('answers_from = "admin"', 403)])
def test_the_configuration_says_who_else_may(make_daemon: Make, more: str, status: int) -> None:
    with receiving() as receiver:
        here = room(make_daemon, receiver, more)
        question = here.ask()
        assert here.answer("bob", "a1", question)[0] == status
        if status == 403:
            assert here.answer("ann", "a2", question)[0] == 403
            here.daemon.cli("question", "answer", question, "no").result  # noqa: B018 - asserts that it worked
            assert here.outcome().startswith("answered no")


def test_a_plain_yes_of_the_asker_is_an_answer_and_nobody_elses(make_daemon: Make) -> None:
    with receiving() as receiver:
        here = room(make_daemon, receiver)
        question = here.ask(options=["yes", "no"])
        assert here.say("bob", "a1", text="yes")[0] == 202
        assert here.say("ann", "a2", text="which one?")[0] == 202
        assert here.daemon.cli("question", "show", question).result["state"] == "open"
        here.daemon.kill()
        here.daemon.start()
        assert here.say("ann", "a3", text="yes")[1]["messages"][0]["duplicate"] is False
        shown = here.daemon.cli("question", "show", question).result
        assert (shown["choice"], shown["by"]) == ("yes", "ann at webhook:room:r")
        assert here.say("ann", "a3", text="yes")[1]["messages"][0]["duplicate"] is True, (
            "the same request again is the same answer"
        )
        (session,) = here.daemon.cli("session", "list").result["sessions"]
        here.daemon.stop()  # its commits would be in the way of a read
        stored = here.daemon.rows("asks", session["session"], "SELECT content FROM messages_in ORDER BY seq")
        assert [json.loads(one["content"])["body"].get("text") for one in stored] == [None, "yes", "which one?"]


def test_a_message_that_is_handed_in_again_answers_no_question_of_its_own(make_daemon: Make) -> None:
    with receiving() as receiver:
        here = room(make_daemon, receiver)
        words: dict[str, Any] = {"text": "yes", "ask": {"options": ["yes", "no"]}}
        assert here.say("ann", "m1", **words)[0] == 202
        question = str(eventually("asked", lambda: receiver.posts)[0].json["content"]["question"])
        assert here.say("ann", "m1", **words)[1]["messages"][0]["duplicate"] is True
        assert here.daemon.cli("question", "show", question).result["state"] == "open"


def test_an_answer_after_the_deadline_comes_too_late(make_daemon: Make) -> None:
    with receiving() as receiver:
        here = room(make_daemon, receiver)
        question = here.ask(timeout_s=1, default="no")
        assert here.outcome() == "timeout no None"
        assert here.answer("ann", "a1", question) == (409, "QUESTION_CLOSED")


def test_the_receiver_is_shown_that_the_agent_works(make_daemon: Make) -> None:
    with receiving() as receiver:
        here = room(make_daemon, receiver, "", "typing = true")
        assert here.say("ann", "m1", ask={"timeout_s": 1})[0] == 202
        eventually("done", lambda: [one for one in receiver.posts if one.json.get("on") is False])
        eventually("answered", lambda: len([one for one in receiver.posts if "content" in one.json]) == 2)
        signs = [one.json for one in receiver.posts if one.json.get("type") == "typing"]
        assert all(one["on"] for one in signs[:-1])
        assert (signs[0]["place"], signs[0]["agent"]) == ("room:r", "asks")
        answers = [one.json for one in receiver.posts if "content" in one.json]
        assert [one["in_reply_to"] for one in answers] == [signs[0]["about"]] * 2
        assert all("x-clawbus-signature" in one.headers for one in receiver.posts)
