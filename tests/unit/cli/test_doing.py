"""Who works on what, since when and with which tool: in every list and screen that shows sessions."""

from pathlib import Path

import pytest

from daemon.cli.doing import doing
from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from schema.connect import open_owner
from schema.instants import to_text
from schema.migrate import Role
from tests.support.command_line import CommandLine
from tests.support.session_world import NOW, SessionWorld

MESSAGE = "01M8FHSNAY52PJVXWFNW2C10N7"


@pytest.fixture(autouse=True)
def busy(home: Path) -> None:
    """`echo/busy` works, `echo/later` has a message for a far day."""
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    for name in ("busy", "later"):
        registry.activate(SessionKey("echo", name), 1)
    later = SessionWorld(home / "data" / "sessions" / "echo" / "later")
    later.accept("m1", process_after=4_000_000_000_000)
    session = SessionWorld(home / "data" / "sessions" / "echo" / "busy")
    session.accept(MESSAGE, content='{"text": "do the research"}')
    session.change("INSERT INTO attempts VALUES (?, 'i1', ?, NULL, NULL)", (MESSAGE, NOW))
    with open_owner(home / "data" / "central.db", Role.CENTRAL) as db, db.transaction():
        db.execute(
            "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, container_id, created_at)"
            " VALUES ('i1', 'echo', 'busy', 'process', 'f', 'c1', ?)",
            (NOW,),
        )
    with session.runner() as db, db.transaction():
        db.execute("INSERT INTO container_state VALUES (1, 'pytest', 60000, ?, ?)", (to_text(NOW), to_text(NOW)))


@pytest.mark.parametrize(
    "command", [("session", "list"), ("session", "show", "echo/busy"), ("status",), ("top", "--once")]
)
def test_it_is_shown_wherever_sessions_are(cli: CommandLine, command: tuple[str, ...]) -> None:
    text = " ".join(cli(*command, "-o", "wide").out.split())
    for part in (MESSAGE[-8:], "tool pytest", "do the research"):
        assert part in text
    result = cli(*command).result
    one = result if command[1:2] == ("show",) else next(iter(result.get("working") or result["sessions"]))
    work = one["work"]
    assert (work["message_id"], work["since"], work["messages"], work["tool"]) == (MESSAGE, NOW, 1, "pytest")


def test_what_is_for_later_is_not_late(cli: CommandLine) -> None:
    assert [one["session"] for one in cli("session", "list", "--state", "scheduled").result["sessions"]] == ["later"]
    queues = cli("status").result["queues"]
    assert (queues["pending"], queues["scheduled"]) == (2, 1)
    text = " ".join(cli("status", "--pretty").out.split())
    assert "1 unfinished" in text
    assert "1 scheduled for later" in text


@pytest.mark.parametrize(
    ("state", "more", "said"),
    [
        ("scheduled", {"next_due_at": NOW + 7_200_000}, "next work in 2 h"),
        ("backing_off", {"next_due_at": NOW + 5000}, "tried again in 5 s"),
        ("waiting", {"oldest_pending_at": NOW - 60_000}, "oldest 1 min"),
        ("waiting", {"oldest_pending_at": NOW, "explanation": "why"}, "why"),
        ("idle", {}, ""),
    ],
)
def test_what_the_others_wait_for(state: str, more: dict[str, object], said: str) -> None:
    assert doing({"state": state, "work": None, **more}, NOW) == said
