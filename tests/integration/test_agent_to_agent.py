"""Agents that write to each other: the answer returns to the session that asked, and a circle ends and explains itself."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.integration.conftest import Make
from tests.support.agents import obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.wreck import found, healthy

NAMES: Final = ("a", "b", "c")


def tables(*pairs: str) -> str:
    """Agents a, b and c; `ab`: a may write to b."""
    links = "".join(f'[agents.{one[0]}.destinations.{one[1]}]\nagent = "{one[1]}"\n' for one in pairs)
    return "".join(obedient(name) for name in NAMES) + links


@pytest.fixture
def daemon(make_daemon: Make) -> RealDaemon:
    made = make_daemon(tables("ab", "bc", "ca") + "[agent_messages]\nmax_hops = 4\n", runtime="process")
    made.start()
    return made


def texts(daemon: RealDaemon, place: str = "cli") -> list[str]:
    return [entry["content"]["text"] for entry in daemon.entries(place)]


def letters(daemon: RealDaemon) -> list[dict[str, Any]]:
    return daemon.cli("dead", "list").result["letters"]


def test_the_answer_of_an_agent_returns_to_the_session_and_the_place_that_asked(daemon: RealDaemon) -> None:
    daemon.post("say first", agent="a", session="s", mailbox="elsewhere")
    daemon.post("to b say hi", agent="a", session="s")
    eventually("b's answer, through a", lambda: sorted(texts(daemon)) == ["hi", "sent"])
    (asked,) = daemon.rows("b", "agent:a:s", "SELECT * FROM messages_in")
    assert (asked["channel_type"], asked["platform_id"], asked["thread_id"]) == ("agent", "a", "s")
    (answered,) = daemon.rows("a", "s", "SELECT * FROM messages_in WHERE relay IS NOT NULL")
    assert (answered["channel_type"], answered["platform_id"]) == ("local", "cli"), "a's own answer goes to who asked a"
    assert letters(daemon) == []


def test_a_chain_s_session_has_a_name_to_read_and_an_older_one_is_kept(daemon: RealDaemon) -> None:
    older = "agent:b:agent%3Aa%3As"  # as sessions of a chain were named before
    daemon.ask("say here", agent="c", session=older)
    for session, third in (("s", older), ("s2", "agent:b:agent:a:s2")):
        daemon.post("to b to c say hi", agent="a", session=session)
        eventually("c's session is there", (daemon.folder("c", third) / "in" / "inbound.db").exists)
        asked = "SELECT 1 FROM messages_in WHERE relay IS NOT NULL"
        eventually("c is asked", lambda: daemon.rows("c", third, asked))  # noqa: B023
    assert not daemon.folder("c", "agent:b:agent:a:s").exists()
    eventually("all is said", lambda: texts(daemon).count("hi") == 2)


def test_an_agent_that_is_no_destination_is_not_written_to(daemon: RealDaemon) -> None:
    assert daemon.ask("to c hello", agent="a", session="s")["text"] == "sent"
    assert not daemon.folder("c", "agent:a:s").exists()


def test_a_circle_of_three_ends_with_a_notice_and_a_dead_letter_that_explains_itself(daemon: RealDaemon) -> None:
    asked = daemon.post("to b to c to a to b to c hello", agent="a", session="s")

    def told() -> list[dict[str, Any]]:
        return [one for one in daemon.entries() if one["content"].get("error", {}).get("code") == "AGENT_HOP_LIMIT"]

    (notice,) = eventually("the person is told", told)
    assert notice["in_reply_to"] == asked
    (letter,) = eventually("the dead letter", lambda: letters(daemon))
    assert (letter["agent"], letter["code"]) == ("b", "AGENT_HOP_LIMIT")
    assert "a -> b -> c -> a -> b -> c" in letter["reason"], letter
    assert "max_hops" in daemon.cli("dead", "show", letter["id"]).result["next_step"]
    finding = found(daemon, "DEAD_LETTERS")
    assert "AGENT_HOP_LIMIT" in str(finding)
    assert daemon.cli("dead", "drop", letter["id"], "--session", f"b/{letter['session']}").ok
    healthy(daemon)
    assert len(told()) == 1


def test_a_thread_that_an_agent_makes_up_reaches_no_session(daemon: RealDaemon) -> None:
    """Only the host's own record says which session asked."""
    daemon.post("say here", agent="b", session="private")
    with daemon.client() as client:
        client.accept({"agent": "a", "session": "s", "content": {"text": "thread b private secret"},
                       "address": {"channel_type": "local", "platform_id": "cli"}})  # fmt: skip
    eventually("b is asked", lambda: daemon.folder("b", "agent:a:s").exists())
    assert [row["content"] for row in daemon.rows("b", "private", "SELECT content FROM messages_in")] == [
        '{"text": "say here"}'
    ]


def test_an_answer_to_a_deleted_session_is_not_given_to_a_new_one_of_its_name(daemon: RealDaemon) -> None:
    """The new one is another conversation, perhaps of another person."""
    mark = daemon.root / "asked"
    daemon.post(f"to b hang {mark}", agent="a", session="s")
    eventually("b works on it", lambda: mark.exists() and mark.read_text())
    eventually("a has ended its turn", lambda: texts(daemon) == ["sent"])
    assert daemon.cli("session", "delete", "a", "s").result["lost"] == []
    daemon.ask("say fresh", agent="a", session="s", mailbox="somebody")
    mark.with_name("asked.go").touch()
    (letter,) = eventually("it explains itself", lambda: letters(daemon))
    assert (letter["agent"], letter["session"]) == ("b", "agent:a:s")
    assert "session a/s" in letter["reason"]
    assert "was deleted" in letter["reason"]
    assert daemon.rows("a", "s", "SELECT 1 FROM messages_in WHERE relay IS NOT NULL") == []
    assert texts(daemon, "somebody") == ["fresh"]
    assert daemon.cli("dead", "drop", letter["id"], "--session", "b/agent:a:s").ok


def test_files_are_passed_on(make_daemon: Make) -> None:
    script = (
        """echo hello > "$HOME/note.txt"; echo '{"type":"message","to":"b","text":"say read","files":["note.txt"]}'"""
    )
    table = f'{obedient("b")}[agents.a]\ncommand = {json.dumps(["sh", "-c", script])}\n[agents.a.destinations.b]\nagent = "b"\n'
    daemon = make_daemon(table, runtime="process")
    daemon.start()
    daemon.post("ask", agent="a", session="s")
    inbox = daemon.folder("b", "agent:a:s") / "in" / "inbox"
    (copy,) = eventually("the file is there", lambda: list(inbox.glob("ag-*/note.txt")))
    assert copy.read_text(encoding="utf-8") == "hello\n"
    (asked,) = eventually("b is asked", lambda: daemon.rows("b", "agent:a:s", "SELECT content FROM messages_in"))
    assert [one["name"] for one in json.loads(asked["content"])["attachments"]] == ["note.txt"]


def test_who_is_too_fast_waits(make_daemon: Make) -> None:
    lines = "\n".join(
        json.dumps({"type": "message", "to": "b", "text": f"say {word}"}) for word in ("one", "two", "three")
    )
    table = (
        f'{obedient("b")}[agents.a]\ncommand = {json.dumps(["echo", lines])}\n[agents.a.destinations.b]\nagent = "b"\n'
    )
    daemon = make_daemon(f"{table}[agent_messages]\nburst = 1\nper_minute = 120\n", runtime="process")
    daemon.start()
    daemon.post("ask", agent="a", session="s")
    asked = "SELECT 1 FROM messages_in WHERE json_extract(content, '$.text') IN ('say one', 'say two', 'say three')"
    eventually("b is there", (daemon.folder("b", "agent:a:s") / "in" / "inbound.db").exists)
    eventually("all of them arrive", lambda: len(daemon.rows("b", "agent:a:s", asked)) == 3)
    waited = daemon.rows("a", "s", "SELECT detail FROM message_history WHERE detail LIKE '%agent_messages.per_minute%'")
    assert waited
    assert letters(daemon) == []
