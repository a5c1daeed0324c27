"""A message decides about itself alone, in order and in time: real daemon, real runner, a program that dies, fails or says later."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.agents import command_agent
from tests.support.daemon import RealDaemon, eventually

Make = Callable[..., RealDaemon]

PROGRAM: Final = """
import json, os, pathlib, signal, sys, time
turn = json.load(sys.stdin)
texts = [message["content"]["text"] for message in turn["messages"] if message["trigger"]]
here = pathlib.Path(sys.argv[1])
if "hold" in texts:
    (here / "holding").touch()
    while not (here / "go").exists():
        time.sleep(0.01)
with (here / "turns").open("a") as turns:
    turns.write(json.dumps(texts) + "\\n")
if "kill" in texts:
    os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
    time.sleep(60)
if "fail" in texts:
    print("cannot", file=sys.stderr)
    sys.exit(1)
if "busy" in texts and not (here / "ready").exists():
    print("429 Too Many Requests", file=sys.stderr)
    sys.exit(75)
if "wait" in texts and not (here / "ready").exists():
    print(json.dumps({"type": "message", "text": "half of it"}))
    print(json.dumps({"type": "later", "after_s": 1, "reason": "the model is away"}))
    sys.exit(0)
print("ok", *texts)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    return tmp_path


def started(
    make_daemon: Make, folder: Path, more: str = "", *, backoff_s: float = 0.1, max_tries: int = 5
) -> RealDaemon:
    command = (sys.executable, "-I", "-S", str(folder / "program.py"), str(folder))
    daemon = make_daemon(command_agent("a", command) + more)
    text = daemon.config.read_text(encoding="utf-8")
    sweep = f"backoff_base_s = {backoff_s:g}\nmax_tries = {max_tries}"
    daemon.config.write_text(text.replace("backoff_base_s = 0.2", sweep), encoding="utf-8")
    daemon.start()
    return daemon


def turns(folder: Path) -> list[list[str]]:

    path = folder / "turns"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def busy_with_nine(daemon: RealDaemon, folder: Path, bad: str) -> dict[str, str]:
    """One message keeps the agent busy; meanwhile nine people write, and the fifth message is bad. Text -> id."""
    daemon.post("hold", agent="a", session="s")
    eventually("it works", (folder / "holding").exists)
    texts = [bad if number == 5 else f"small {number}" for number in range(1, 10)]
    ids = {text: daemon.post(text, agent="a", session="s") for text in texts}
    (folder / "go").touch()
    return ids


def statuses(daemon: RealDaemon, ids: dict[str, str]) -> dict[str, str]:
    return {text: daemon.message("a", "s", message_id)["status"] for text, message_id in ids.items()}


@pytest.mark.parametrize("bad", ["kill", "fail"])
def test_one_bad_message_takes_no_innocent_one_with_it(make_daemon: Make, folder: Path, bad: str) -> None:
    """It ends its container each time, as the memory limit does; or its turn fails, the container alive."""
    daemon = started(make_daemon, folder, max_tries=3)
    ids = busy_with_nine(daemon, folder, bad)
    expected = {text: "failed" if text == bad else "completed" for text in ids}
    eventually("all are over", lambda: "pending" not in statuses(daemon, ids).values(), 90)
    assert statuses(daemon, ids) == expected
    assert turns(folder)[1] == list(ids), "they were one turn"
    done = [texts[0] for texts in turns(folder)[2:] if texts != [bad]]
    assert done == [text for text in ids if text != bad], "each alone, in the order of arrival"
    assert [one["id"] for one in daemon.cli("dead", "list").result["letters"]] == [ids[bad]]

    # What an operator requeues has a turn of its own, also beside others.
    (folder / "go").unlink()
    (folder / "holding").unlink()
    before = len(turns(folder))
    daemon.post("hold", agent="a", session="s")
    eventually("it works", (folder / "holding").exists)
    daemon.post("innocent", agent="a", session="s")
    requeued = daemon.cli("dead", "requeue", "--all", "--session", "a/s").result["done"][0]["requeued_as"]
    last = daemon.post("last", agent="a", session="s")
    (folder / "go").touch()
    eventually("the last is over", lambda: daemon.message("a", "s", last)["status"] == "completed", 60)
    assert daemon.message("a", "s", requeued)["status"] == "failed"
    following = turns(folder)[before:]
    assert ["innocent"] in following
    assert ["last"] in following


def test_a_message_that_waits_for_its_retry_is_not_overtaken(make_daemon: Make, folder: Path) -> None:
    daemon = started(make_daemon, folder, backoff_s=1.0, max_tries=2)
    first = daemon.post("kill", agent="a", session="s")
    eventually("it waits", lambda: daemon.message("a", "s", first)["tries"] == 1)
    second = daemon.post("small", agent="a", session="s")
    other = daemon.ask("small", agent="a", session="other")
    assert other == {"text": "ok small"}, "it holds back its own session alone"
    eventually("the second is done", lambda: daemon.message("a", "s", second)["status"] == "completed", 90)
    assert daemon.message("a", "s", first)["status"] == "failed"
    assert turns(folder)[-1] == ["small"]


def test_a_message_that_waits_is_explained_and_a_cancel_frees_the_others(make_daemon: Make, folder: Path) -> None:
    daemon = started(make_daemon, folder, backoff_s=600.0)
    first = daemon.post("kill", agent="a", session="s")
    eventually("it waits", lambda: daemon.message("a", "s", first)["tries"] == 1)
    second = daemon.post("small", agent="a", session="s")
    shown = daemon.show("a", "s")
    assert f"1 message waits for an earlier one: message {first} is tried again at" in shown["held_up"]
    assert daemon.message("a", "s", second)["status"] == "pending"
    assert daemon.cli("message", "cancel", first, "--session", "a/s").ok
    assert daemon.answer(second, agent="a", session="s") == {"text": "ok small"}


def test_with_the_order_ready_later_messages_pass(make_daemon: Make, folder: Path) -> None:
    daemon = started(make_daemon, folder, 'order = "ready"\n', backoff_s=600.0)
    first = daemon.post("kill", agent="a", session="s")
    eventually("it waits", lambda: daemon.message("a", "s", first)["tries"] == 1)
    assert daemon.ask("small", agent="a", session="s") == {"text": "ok small"}


@pytest.mark.parametrize("word", ["busy", "wait"])
def test_an_agent_says_later_and_the_message_is_tried_again(make_daemon: Make, folder: Path, word: str) -> None:
    daemon = started(make_daemon, folder)
    message_id = daemon.post(word, agent="a", session="s")
    eventually("it has said so twice", lambda: daemon.life("a", "s", message_id).count("deferred") >= 2, 90)
    row = daemon.message("a", "s", message_id)
    assert (row["status"], row["tries"]) == ("pending", 0)
    assert row["deferrals"] >= 2
    assert not daemon.cli("dead", "list").result["letters"]
    (folder / "ready").touch()
    assert daemon.answer(message_id, agent="a", session="s") == {"text": f"ok {word}"}
    assert len([one for one in daemon.entries() if one["in_reply_to"] == message_id]) == 1, "no half answer"
    assert len(daemon.show("a", "s")["incarnations"]) == 1, "one container, alive all the time"


def test_an_agent_that_says_later_for_too_long_makes_a_dead_letter(make_daemon: Make, folder: Path) -> None:
    daemon = started(make_daemon, folder, "later_for_s = 1\n")
    message_id = daemon.post("busy", agent="a", session="s")
    answer = daemon.answer(message_id, agent="a", session="s")
    assert answer["error"]["code"] == "DEFERRED_TOO_LONG"
    assert "429" not in str(answer), "what the agent says is for the operator"
    (letter,) = daemon.cli("dead", "list").result["letters"]
    assert (letter["id"], letter["code"]) == (message_id, "DEFERRED_TOO_LONG")


def test_a_message_that_expires_behind_another_one_is_never_begun(make_daemon: Make, folder: Path) -> None:
    daemon = started(make_daemon, folder)
    daemon.post("hold", agent="a", session="s")
    eventually("it works", (folder / "holding").exists)
    said = daemon.cli("send", "stale", "--agent", "a", "--session", "s", "--expires-in", "1s", "--wait", "60")
    assert said.error == "AGENT_FAILED"
    message_id = said.envelope["result"]["message_id"]
    assert said.envelope["result"]["answer"]["content"]["error"]["code"] == "EXPIRED"
    assert daemon.message("a", "s", message_id)["status"] == "cancelled"
    (folder / "go").touch()
    assert daemon.ask("small", agent="a", session="s") == {"text": "ok small"}
    assert ["stale"] not in turns(folder)
    assert all("stale" not in texts for texts in turns(folder))


def test_an_id_that_failed_is_worked_on_again_when_it_is_sent_again(make_daemon: Make, folder: Path) -> None:
    daemon = started(make_daemon, folder)
    send = ("send", "busy", "--agent", "a", "--session", "s", "--id", "m1", "--wait", "60")
    (folder / "ready").touch()
    daemon.cli("send", "fail", "--agent", "a", "--session", "s", "--id", "f1", "--wait", "60")
    again = daemon.cli("send", "fail", "--agent", "a", "--session", "s", "--id", "f1", "--wait", "60")
    result = again.envelope["result"]
    assert (result["duplicate"], result["previous"], result["requeued_as"]) == (True, "failed", "f1+r1")
    assert turns(folder) == [["fail"], ["fail"]]
    assert daemon.cli(*send).result["answer"]["text"] == "ok busy"
    repeated = daemon.cli(*send).result
    assert (repeated["duplicate"], repeated["state"], repeated["previous"]) == (True, "completed", None)
    assert turns(folder)[-1] == ["busy"]
    assert len(turns(folder)) == 3


def far_ahead(make_daemon: Make, *, now: bool, then: str = "") -> RealDaemon:
    """An agent whose one message is for a time that an offset leads out of the calendar."""
    line = {"type": "message", "text": "late", "deliver_after": "9999-12-31T23:59:59-12:00", "now": now}
    daemon = make_daemon(command_agent("a", ("sh", "-c", f"cat > /dev/null; echo '{json.dumps(line)}'{then}")))
    daemon.start()
    return daemon


def dead_codes(daemon: RealDaemon) -> list[str]:
    return [one["code"] for one in daemon.cli("dead", "list").result["letters"]]


def test_an_answer_for_a_time_outside_the_calendar_is_refused_once(make_daemon: Make) -> None:
    """No text can hold that instant: its runner died of it again and again, until the message had no tries left."""
    daemon = far_ahead(make_daemon, now=False)
    asked = daemon.post("remind me", agent="a", session="s")
    assert daemon.answer(asked, agent="a", session="s")["error"]["code"] == "TOO_FAR_AHEAD"
    eventually("settled", lambda: daemon.message("a", "s", asked)["status"] == "completed")
    assert dead_codes(daemon) == ["TOO_FAR_AHEAD"]


def test_a_mid_turn_message_that_cannot_be_sent_is_not_told_as_the_answer(make_daemon: Make, tmp_path: Path) -> None:
    """Who waits for the answer took the notice for it, while the agent still worked."""
    go, answer = tmp_path / "go", json.dumps({"type": "message", "text": "done"})
    daemon = far_ahead(make_daemon, now=True, then=f"; until [ -e {go} ]; do sleep 0.05; done; echo '{answer}'")
    asked = daemon.post("remind me", agent="a", session="s")
    eventually("refused", lambda: dead_codes(daemon) == ["TOO_FAR_AHEAD"])
    go.touch()
    assert daemon.answer(asked, agent="a", session="s") == {"text": "done"}
    eventually("settled", lambda: daemon.message("a", "s", asked)["status"] == "completed")
    assert [one["content"] for one in daemon.entries()] == [{"text": "done"}]
