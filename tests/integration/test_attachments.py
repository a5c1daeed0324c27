"""A file that came with a message, from the real command line to an agent program's hands."""

import base64
import os
import signal
import sys
import time
from collections.abc import Callable

import httpx

from tests.support.agents import command_agent
from tests.support.daemon import RealDaemon, eventually
from tests.support.webhooks import free_port, receiving, request_signature

READER = """
import json, sys
turn = json.load(sys.stdin)
[file] = turn["messages"][0]["content"]["attachments"]
with open(f"{turn['in_folder']}/{file['localPath']}", "rb") as opened:
    print(file["name"], file["mimeType"], file["size"] == len(opened.read()))
"""


def test_the_agent_reads_the_file_where_its_turn_says(make_daemon: Callable[..., RealDaemon]) -> None:
    daemon = make_daemon(command_agent("prog", (sys.executable, "-I", "-c", READER)))
    daemon.start()
    path = daemon.root / "a report.pdf"
    path.write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 4000)
    sent = daemon.cli("send", "look", "--agent", "prog", "--session", "s", "--file", str(path), "--wait", "60")
    assert sent.result["answer"]["text"] == "a report.pdf application/pdf True"
    daemon.at_rest = True


PLACE = """
[[routes]]
name = "{name}"
channel = "local"
place = "team"
agent = "{name}"
senders = "anyone"
session = "team"
"""


def test_a_file_that_is_sent_to_a_place_goes_to_every_agent_that_the_routes_name(
    make_daemon: Callable[..., RealDaemon],
) -> None:
    names = ("one", "two")
    tables = "".join(command_agent(name, (sys.executable, "-I", "-c", READER)) for name in names)
    daemon = make_daemon(tables + "".join(PLACE.format(name=name) for name in names))
    daemon.start()
    path = daemon.root / "a report.pdf"
    path.write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 4000)
    sent = ("send", "look", "--place", "team", "--id", "e1", "--file", str(path))
    assert [one["duplicate"] for one in daemon.cli(*sent).result["messages"]] == [False, False]
    assert [one["duplicate"] for one in daemon.cli(*sent).result["messages"]] == [True, True]
    answers = eventually("both answer", lambda: daemon.entries("team")[1:] and daemon.entries("team"))
    assert [one["content"]["text"] for one in answers] == ["a report.pdf application/pdf True"] * 2
    nowhere = daemon.cli("send", "look", "--place", "hall", "--file", str(path))
    assert nowhere.error == "NOBODY_REACHED"
    path.write_bytes(b"other")
    assert daemon.cli(*sent).error == "ID_CONFLICT", "the same event with another file is another event"
    eventually(
        "settled", lambda: all("delivered" in daemon.life(one, "team", answers[0]["in_reply_to"]) for one in names)
    )
    daemon.at_rest = True


SENDER = """
import json, os, sys
home = os.environ["HOME"]
turn = json.load(sys.stdin)
with open(os.path.join(home, "report.pdf"), "wb") as made:
    made.write(b"%PDF-1.7 made by the agent")
os.symlink("/etc/passwd", os.path.join(home, "link.txt"))
os.mkfifo(os.path.join(home, "pipe.txt"))
os.link(os.path.join(home, "report.pdf"), os.path.join(home, "second.pdf"))
os.remove(os.path.join(home, "second.pdf"))
files = [
    "report.pdf", "link.txt", "pipe.txt", "missing.txt", "../out/outbound.db", "/etc/passwd", ".hidden", "a\\u202eb.txt",
    os.path.join(home, "report.pdf"),
]
print(json.dumps({"type": "message", "text": "see it", "files": files}))
"""


def test_the_sender_gets_the_file_that_the_agent_made_and_reads_why_others_did_not_come(
    make_daemon: Callable[..., RealDaemon],
) -> None:
    daemon = make_daemon(command_agent("prog", (sys.executable, "-I", "-c", SENDER)))
    daemon.start()
    target = daemon.root / "saved"
    sent = daemon.cli("send", "x", "-s", "prog/s", "--wait", "60", "--save", str(target))
    answer = sent.result["answer"]
    [file] = answer["files"]
    assert (file["name"], file["mimeType"], file["saved"]) == (
        "report.pdf",
        "application/pdf",
        str(target / "report.pdf"),
    )
    assert (target / "report.pdf").read_bytes() == b"%PDF-1.7 made by the agent"
    assert {one["name"]: one["reason"] for one in answer["files_refused"]} == {
        "link.txt": "is a link",
        "pipe.txt": "is a fifo, a socket or a device",
        "missing.txt": "is not there; paths are relative to HOME, or absolute and below it",
        "outbound.db": "is not below HOME, the session's own folder",
        "passwd": "is not below HOME, the session's own folder",
        ".hidden": "is empty, begins with . or -, or begins or ends with a blank",
        "a\u202eb.txt": "holds a character that cannot be seen",
        "report.pdf": "has the name of another file of this message, or looks the same",
    }
    run = daemon.people("run", "show", sent.result["message_id"])
    assert f"missing.txt is not there; paths are relative to HOME, or absolute and below it (looked for {daemon.folder('prog', 's')}/home/missing.txt)" in run  # fmt: skip
    again = daemon.cli("mailbox", "cli", "--save", str(target))
    assert again.result["entries"][0]["files"][0]["saved"] == str(target / "report.pdf"), "not saved a second time"
    assert [path.name for path in target.iterdir()] == ["report.pdf"]
    daemon.at_rest = True


SEVERAL = """
import json, os
for number in (1, 2):
    with open(f"{os.environ['HOME']}/{number}.txt", "w") as made:
        made.write(str(number))
    print(json.dumps({"type": "message", "text": f"part {number}", "files": [f"{number}.txt"]}))
"""


def test_an_answer_of_several_messages_comes_whole_with_the_files_of_each(
    make_daemon: Callable[..., RealDaemon],
) -> None:
    daemon = make_daemon(command_agent("prog", (sys.executable, "-I", "-c", SEVERAL)))
    daemon.start()
    target = daemon.root / "saved"
    result = daemon.cli("send", "x", "-s", "prog/s", "--wait", "60", "--save", str(target)).result
    assert [one["text"] for one in (result["answer"], *result["more"])] == ["part 1", "part 2"]
    assert sorted(path.name for path in target.iterdir()) == ["1.txt", "2.txt"]
    daemon.at_rest = True


COPIER = """
import json, os, shutil, sys
turn = json.load(sys.stdin)
[file] = turn["messages"][0]["content"]["attachments"]
home = os.environ["HOME"]
shutil.copy(os.path.join(turn["in_folder"], file["localPath"]), os.path.join(home, "copy.pdf"))
print(json.dumps({"type": "message", "text": file["mimeType"], "files": ["copy.pdf"]}))
"""
HOOK = """
[channels.webhook]
listen = "127.0.0.1:{port}"
[channels.webhook.hooks.work]
agent = "prog"
session = "s"
secret = "inbound-secret"
reply_url = "{url}"
reply_secret = "outbound-secret"
"""


def test_a_form_s_file_reaches_the_agent_and_comes_back_to_the_receiver(make_daemon: Callable[..., RealDaemon]) -> None:
    with receiving() as receiver:
        port = free_port()
        program = command_agent("prog", (sys.executable, "-I", "-c", COPIER))
        daemon = make_daemon(program + HOOK.format(port=port, url=receiver.url))
        daemon.start()
        data = b"%PDF-1.7" + bytes(range(256))
        files = {"f": ("C:\\x\\my \u202ereport.png", data, "image/png")}
        request = httpx.Request("POST", f"http://127.0.0.1:{port}/hooks/work", data={"text": "look"}, files=files)
        body, stamp = request.read(), str(int(time.time()))
        signed = {
            "x-clawbus-timestamp": stamp,
            "x-clawbus-id": "m1",
            "x-clawbus-signature": request_signature("inbound-secret", stamp, "/hooks/work", "m1", body),
        }
        request.headers.update(signed)
        with httpx.Client(timeout=30.0, trust_env=False) as client:
            assert client.send(request).status_code == 202
        reply = eventually("posted", lambda: receiver.posts)[0]
        assert reply.json["content"]["text"] == "application/pdf"
        [file] = reply.json["files"]
        assert (file["name"], base64.b64decode(file["data"])) == ("copy.pdf", data)
        stored = daemon.data / "sessions" / "prog" / "s" / "in" / "inbox" / "m1"
        assert [path.name for path in stored.iterdir()] == ["my report.png"]
        eventually("recorded", lambda: "delivered" in daemon.life("prog", "s", "m1"))
        daemon.at_rest = True


EARLY = """
import json, os, sys, time
turn = json.load(sys.stdin)
path = os.path.join(os.environ["HOME"], "plot.txt")
again = os.path.exists(path)
with open(path, "w") as made:
    made.write("second try" if again else "first try")
print(json.dumps({"type": "message", "text": "a plot", "files": ["plot.txt"], "now": True, "key": "plot"}), flush=True)
if not again:
    time.sleep(60)
print(json.dumps({"type": "message", "text": "done"}))
"""


def test_a_file_said_in_mid_turn_comes_once_although_the_turn_dies(make_daemon: Callable[..., RealDaemon]) -> None:
    daemon = make_daemon(command_agent("prog", (sys.executable, "-I", "-c", EARLY)))
    daemon.start()
    daemon.post("plot it", agent="prog", session="s", id="m1")
    eventually("said", daemon.entries)
    os.killpg(daemon.leader("prog", "s"), signal.SIGKILL)
    assert daemon.answer("m1", agent="prog", session="s") == {"text": "done"}
    target = daemon.root / "saved"
    entries = daemon.cli("mailbox", "cli", "--save", str(target)).result["entries"]
    assert [one["text"] for one in entries] == ["a plot", "done"]
    assert (target / "plot.txt").read_text() == "first try"
    eventually("settled", lambda: daemon.message("prog", "s", "m1")["status"] == "completed")
    daemon.at_rest = True
