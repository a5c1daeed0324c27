"""The MCP server as a client sees it: a real process, JSON-RPC by the specification's messages, and an ACP agent that uses it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from container_runner.tools.catalogue import CATALOGUE
from schema.tools import TOOLS
from tests.integration.runner.test_acp import AGENT
from tests.integration.runner.test_process import Runners
from tests.support.session_kit import SessionKit, eventually


class Client:
    """One MCP client with its server."""

    def __init__(self, kit: SessionKit, tools: tuple[str, ...] = TOOLS) -> None:
        self.ready = kit.agent / "ready"
        settings = {
            "in": str(kit.folder.inbox),
            "out": str(kit.folder.outbox),
            "agent": "a",
            "session": "s",
            "tools": list(tools),
            "ready": str(self.ready),
            "files": [str(kit.agent), 10, 1_000_000],
        }
        command = [sys.executable, "-I", "-m", "container_runner.tools", json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.number = 0

    def raw(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        answer = self.raw(json.dumps({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}))
        assert answer["id"] == self.number
        return answer

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = self.ask("tools/call", name=tool, arguments=arguments)["result"]
        told = json.loads(result["content"][0]["text"])
        assert result["isError"] is not told["ok"]
        return told


@pytest.fixture
def kit(tmp_path: Path) -> SessionKit:
    kit = SessionKit(tmp_path)
    kit.add("m1", "hello")
    with kit.runner_file() as db, db.transaction():
        db.execute("INSERT INTO processing_ack VALUES ('m1', 'processing', '2026-11-21T00:00:00.000Z', 'I1')")
    return kit


@pytest.fixture
def client(kit: SessionKit) -> Iterator[Client]:
    client = Client(kit)
    yield client
    client.process.communicate(timeout=60)  # closes its input
    assert client.process.returncode == 0, "it ends with its input"


def test_it_speaks_the_protocol(client: Client) -> None:
    assert client.ask("initialize", protocolVersion="2025-06-18")["result"]["protocolVersion"] == "2025-06-18"
    assert client.ask("initialize", protocolVersion="1999-01-01")["result"]["protocolVersion"] == "2025-11-25"
    assert client.ask("ping")["result"] == {}
    assert not client.ready.exists()
    listed = client.ask("tools/list")["result"]["tools"]
    assert tuple(tool["name"] for tool in listed) == TOOLS == tuple(CATALOGUE)
    assert all(tool["inputSchema"]["type"] == "object" and tool["description"] for tool in listed)
    assert client.ready.exists()
    assert client.ask("resources/list")["error"]["code"] == -32601
    assert client.ask("tools/call", name="rm", arguments={})["error"]["code"] == -32602
    assert client.raw("garbage")["error"]["code"] == -32700
    assert client.raw("[1]")["error"]["code"] == -32600


def test_messages_are_rows_that_answer_nothing_and_a_repeat_is_the_same_row(client: Client, kit: SessionKit) -> None:
    first = client.call("send_message", text="working", key="status")
    again = client.call("send_message", text="still working", key="status")
    assert (first["sent_before"], again["sent_before"]) == (False, True)
    assert again["id"] == first["id"]
    edited = client.call("edit_message", message=first["id"], text="done soon")
    rows = kit.out()
    assert [(row["id"], row["final"], row["in_reply_to"]) for row in rows] == [
        (first["id"], 0, "m1"),
        (edited["id"], 0, "m1"),
    ]
    assert kit.contents() == [{"text": "working"}, {"text": "done soon", "edits": first["id"]}]
    assert client.call("edit_message", message="n-none", text="x")["error"]["code"] == "UNKNOWN_MESSAGE"
    assert client.call("send_message", text="x", to="nowhere")["error"]["code"] == "UNKNOWN_DESTINATION"
    assert client.call("send_message", text="")["error"]["code"] == "BAD_ARGUMENT"
    assert client.call("list_destinations") == {"ok": True, "destinations": []}
    assert [one["text"] for one in client.call("read_history", limit=3)["messages"]] == [
        "done soon",
        "working",
        "hello",
    ]


def test_files_go_with_a_message_or_nothing_is_sent_and_the_agent_reads_why(client: Client, kit: SessionKit) -> None:
    (kit.agent / "plot.png").write_bytes(b"\x89PNG")
    (kit.agent / "link").symlink_to("/etc/passwd")
    for files, code in (
        (["plot.png", "link"], "FILE_REFUSED"),
        (["/etc/passwd"], "FILE_REFUSED"),
        ("plot.png", "BAD_ARGUMENT"),
        ([1], "BAD_ARGUMENT"),
    ):
        assert client.call("send_message", text="see", files=files)["error"]["code"] == code
    assert kit.out() == []
    sent = client.call("send_message", text="see", files=[str(kit.agent / "plot.png")], key="plot")
    assert kit.contents() == [{"text": "see", "files": ["plot.png"]}]
    copy = kit.folder.outbox / "outbox" / sent["id"] / "plot.png"
    assert copy.read_bytes() == b"\x89PNG"
    (kit.agent / "plot.png").write_bytes(b"changed")
    assert client.call("send_message", text="see", files=["plot.png"], key="plot")["sent_before"]
    assert copy.read_bytes() == b"\x89PNG", "a message that was sent keeps its files"


def test_a_question_is_asked_once_and_its_recorded_answer_is_found(client: Client, kit: SessionKit) -> None:
    asked = client.call("ask_user", question="Go on?", options=[{"label": "yes"}], key="k", wait=False)
    assert asked["status"] == "open"
    kit.change(
        "INSERT INTO questions(id, text, options, free_text, notify, asked_at, deadline, outcome, choice, answer, answered_by,"
        " decided_at) VALUES (?, 'Go on?', '[]', 1, 0, 1, 2, 'answered', 'yes', 'yes', 'me', 2)",
        (asked["question"],),
    )
    found = client.call("ask_user", question="Go on?", options=[{"label": "yes"}], key="k")
    assert (found["question"], found["status"], found["choice"], found["by"]) == (
        asked["question"],
        "answered",
        "yes",
        "me",
    )
    assert len(kit.out()) == 1
    assert client.call("ask_user", question="")["error"]["code"] == "BAD_QUESTION"


def test_only_what_is_allowed_is_there(kit: SessionKit) -> None:
    client = Client(kit, ("read_history",))
    assert [tool["name"] for tool in client.ask("tools/list")["result"]["tools"]] == ["read_history"]
    assert client.ask("tools/call", name="send_message", arguments={"text": "x"})["error"]["code"] == -32602
    client.process.kill()
    client.process.communicate()


@pytest.mark.anyio
async def test_an_acp_agent_gets_the_server_and_uses_it_in_its_turn(tmp_path: Path) -> None:
    kit = SessionKit(tmp_path)
    runners = Runners(kit)
    try:
        command = [sys.executable, str(AGENT)]
        runners.start("I1", provider="acp", command=command, tools=["send_message"])
        kit.add("m1", 'mcp send_message {"text": "on it"}')
        await eventually(lambda: kit.acks().get("m1") == "completed")
        early, answer = kit.contents()
        assert early == {"text": "on it"}
        assert json.loads(answer["text"])["ok"] is True
        assert [row["final"] for row in kit.out()] == [0, 1]
    finally:
        runners.close()


def test_the_same_words_to_two_places_are_two_messages(client: Client, kit: SessionKit) -> None:
    for name in ("one", "two"):
        kit.change(
            "INSERT INTO destinations(name, type, channel_type, platform_id) VALUES (?, 'channel', 'local', ?)",
            (name, name),
        )
    sent = [client.call("send_message", text="hello", to=name) for name in ("one", "two")]
    assert [one["sent_before"] for one in sent] == [False, False]
    assert [row["platform_id"] for row in kit.out()] == ["one", "two"]


def test_another_agent_is_written_to_by_its_destination_s_name(client: Client, kit: SessionKit) -> None:
    kit.destination("reviewer", None, None, "rev")
    (listed,) = client.call("list_destinations")["destinations"]
    assert (listed["name"], listed["type"], listed["reachable"]) == ("reviewer", "agent", True)
    client.call("send_message", text="please look", to="reviewer")
    (row,) = kit.out()
    assert (row["channel_type"], row["platform_id"], row["in_reply_to"]) == ("agent", "rev", "m1")


def test_a_reaction_is_a_row_that_names_its_message(client: Client, kit: SessionKit) -> None:
    sent = client.call("send_message", text="hello")
    client.call("react", emoji="👍")
    client.call("react", emoji="👎", message=sent["id"])
    client.call("react", emoji="👍", remove=True)
    assert kit.contents()[1:] == [
        {"text": "👍", "reaction_to": "m1"},
        {"text": "👎", "reaction_to": sent["id"]},
        {"text": "👍", "reaction_to": "m1", "removed": True},
    ]
    assert client.call("react", emoji="yes")["error"]["code"] == "BAD_ARGUMENT"
    assert client.call("react", emoji="👍", message="nothing")["error"]["code"] == "UNKNOWN_MESSAGE"


def test_a_request_for_a_change_is_asked_once(client: Client, kit: SessionKit) -> None:
    wanted = {"kind": "packages", "what": "ripgrep", "reason": "to search"}
    first, again = (client.call("request_change", **wanted) for _ in range(2))
    assert (first["status"], first["question"]) == ("open", again["question"])
    (asked,) = kit.contents()
    assert (asked["asks_for"], asked["notify"]) == ("packages", True)
    assert asked["text"].splitlines() == [
        "The agent asks an admin for a change (packages): ripgrep",
        "Reason: to search",
    ]
    assert client.call("request_change", **{**wanted, "kind": "root"})["error"]["code"] == "BAD_REQUEST"
    assert client.call("request_change", **{**wanted, "what": "x" * 2000})["error"]["code"] == "BAD_REQUEST"


def test_a_later_try_in_the_same_container_says_nothing_twice(client: Client, kit: SessionKit) -> None:
    def said() -> list[dict[str, Any]]:
        return [client.call("send_message", text="working"), client.call("send_message", text="working")]

    first = said()
    with kit.runner_file() as db, db.transaction():  # the turn failed, and this one works on the same message
        db.execute("UPDATE processing_ack SET status_changed = '2026-11-21T00:00:01.000Z'")
    again = said()
    assert [one["id"] for one in again] == [one["id"] for one in first]
    assert [one["sent_before"] for one in (*first, *again)] == [False, False, True, True]


def test_half_a_character_in_any_argument_is_answered_at_once(client: Client) -> None:
    half = "n-\ud83d"
    assert client.call("edit_message", message=half, text="x")["error"]["code"] == "UNKNOWN_MESSAGE"
    assert client.call("react", message=half, emoji="\N{THUMBS UP SIGN}")["error"]["code"] == "UNKNOWN_MESSAGE"
    assert client.call("send_message", text="x", to=half)["error"]["code"] == "UNKNOWN_DESTINATION"
