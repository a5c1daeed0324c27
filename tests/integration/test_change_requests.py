"""An agent asks for a change of its surroundings, over the webhook of a real daemon: an admin decides, once, and the agent learns it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Final

from tests.integration.test_question_answers import SECRET, TABLES, Room
from tests.support.daemon import RealDaemon, eventually
from tests.support.webhooks import free_port, receiving

Make = Callable[..., RealDaemon]
# Asks an admin for a package; says what was decided when it is told.
REQUESTS: Final = """
import json, sys
turn = json.load(sys.stdin)
last = turn["messages"][-1]
if last["kind"] == "system":
    text = f"told {last['content']['status']} {last['content']['choice']}"
else:
    fields = {"text": "May I have ripgrep?", "asks_for": "packages", "options": ["now"], "free_text": True, "timeout_s": 1}
    print(json.dumps({"type": "question", **fields}), flush=True)
    text = "asked"
print(json.dumps({"type": "message", "text": text}))
"""


def test_only_an_admin_decides_whatever_the_configuration_lets_others_answer(make_daemon: Make) -> None:
    with receiving() as receiver:
        port = free_port()
        command = json.dumps([sys.executable, "-I", "-S", "-c", REQUESTS])
        more = 'answers_from = "anyone"'
        daemon = make_daemon(TABLES.format(command=command, more=more, port=port, secret=SECRET, url=receiver.url))
        daemon.start()
        for words in (("add", "eve"), ("bind", "eve", "webhook", "eve"), ("role", "eve", "admin", "--agent", "asks")):
            daemon.cli("user", *words).result  # noqa: B018 - asserts that it worked
        here = Room(daemon, receiver, f"http://127.0.0.1:{port}/hooks/room")

        def posts(of: str) -> list[dict[str, Any]]:
            return [one.json["content"] for one in receiver.posts if of in one.json["content"]["text"]]

        assert here.say("ann", "m1")[0] == 202
        asked = eventually("asked", lambda: posts("ripgrep"))[0]
        assert (asked["asks_for"], asked["free_text"]) == ("packages", False), "the host asks it as what it is"
        assert [one["id"] for one in asked["options"]] == ["approve", "refuse"]
        question = str(asked["question"])
        assert here.answer("ann", "a1", question, "approve") == (403, "ANSWER_FORBIDDEN")
        assert here.answer("bob", "a2", question, "approve") == (403, "ANSWER_FORBIDDEN")
        daemon.kill()  # the request outlives a crash, and so does who may decide
        daemon.start()
        shown = daemon.cli("question", "show", question).result
        assert (shown["state"], shown["asks_for"]) == ("open", "packages")
        assert here.answer("eve", "a3", question, "approve")[0] == 202
        assert eventually("told", lambda: posts("told"))[0]["text"] == "told answered approve"
        assert here.answer("eve", "a4", question, "refuse") == (409, "QUESTION_CLOSED")
        assert len(posts("ripgrep")) == 1


def test_an_operator_decides_too_and_reads_that_nothing_changes_by_itself(make_daemon: Make) -> None:
    command = json.dumps([sys.executable, "-I", "-S", "-c", REQUESTS])
    daemon = make_daemon(f"[agents.asks]\ncommand = {command}\n")
    daemon.start()
    daemon.post("please", agent="asks", session="s", id="m1")
    (question,) = eventually("asked", lambda: daemon.cli("question", "list").result["questions"])
    said = daemon.people("question", "answer", question["id"], "approve")
    assert "make the change yourself" in said
    eventually("told", lambda: [one for one in daemon.entries() if one["content"]["text"] == "told answered approve"])
    daemon.at_rest = True
