"""What an agent says in the middle of a turn, with a real daemon and the real command line: sent at once, and once."""

import os
import signal
from collections.abc import Callable
from typing import Any

from tests.support.agents import obedient
from tests.support.daemon import RealDaemon, eventually

Make = Callable[..., RealDaemon]


def said(daemon: RealDaemon, message_id: str) -> list[dict[str, Any]]:
    return [one["content"] for one in daemon.entries() if one["in_reply_to"] == message_id]


def test_it_is_sent_at_once_and_only_the_final_answer_settles(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    mark = daemon.root / "mark"
    command = ("send", f"tell one two {mark}", "--agent", "prog", "--session", "s", "--wait", "60", "--id", "m1")
    sending = daemon.begin_cli(*command)
    eventually("said", lambda: len(said(daemon, "m1")) == 2)
    assert daemon.message("prog", "s", "m1")["status"] == "pending"
    mark.with_name("mark.go").touch()
    result = daemon.end_cli(sending).result
    assert [one["text"] for one in result["said"]] == ["one", "two"]
    assert result["said"][1]["content"]["edits"] == result["said"][0]["message_out_id"]
    assert result["answer"]["text"] == "done"
    assert daemon.answer("m1", agent="prog", session="s") == {"text": "done"}, "what is said before is no answer"
    daemon.at_rest = True


def test_a_turn_that_is_tried_again_says_nothing_twice(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    mark = daemon.root / "mark"
    daemon.post(f"tell one two {mark}", agent="prog", session="s", id="m1")
    eventually("said", lambda: len(said(daemon, "m1")) == 2)
    mark.unlink()
    os.killpg(daemon.leader("prog", "s"), signal.SIGKILL)
    eventually("said again", mark.exists)
    mark.with_name("mark.go").touch()
    assert daemon.answer("m1", agent="prog", session="s") == {"text": "done"}
    assert [one["text"] for one in said(daemon, "m1")] == ["one", "two", "done"]
    eventually("settled", lambda: daemon.message("prog", "s", "m1")["status"] == "completed")
    daemon.at_rest = True
