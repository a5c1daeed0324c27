"""What senders and agents write into questions, schedules, people and refusals, on its way to a terminal: no line is forged."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from schema.connect import open_owner
from schema.layout import SessionFolder
from schema.migrate import Role
from tests.hostile.test_text import FORGED, JSON_TEXT, LINES, home, look_at
from tests.support.command_line import CommandLine

__all__ = ["home"]
pytestmark = pytest.mark.faults

SHORT: Final = f"x\n{FORGED}\x1b[2J\u202e"
OPTIONS: Final = json.dumps([{"id": f"{number}{SHORT}", "label": SHORT, "description": SHORT} for number in range(2)])
ID: Final = "q-aaaaaaaaaaaaaaaa"
DONE: Final = "q-bbbbbbbbbbbbbbbb"
EVERY: Final = json.dumps({"every_ms": 60_000, "start": 0})
CRON: Final = json.dumps({"cron": f"0 9 * * 1{SHORT}", "timezone": SHORT})
_QUESTION: Final = (
    "INSERT INTO questions(id, message_id, text, options, free_text, notify, channel_type, platform_id, thread_id, asked_at,"
    " deadline, outcome, choice, answer, answered_by, decided_at) VALUES (?, 'm1', ?, ?, 1, 0, ?, ?, ?, 1, 99999999999999, ?, ?, ?, ?, ?)"
)
_SCHEDULE: Final = (
    "INSERT INTO schedules(key, times, content, channel_type, platform_id, thread_id, origin, state, next_at, changed_at,"
    " changed_by, check_program, failures) VALUES (?, ?, ?, ?, ?, ?, 'agent', ?, 99999999999, 1, ?, ?, ?)"
)
IN_SESSION: Final[list[tuple[str, tuple[Any, ...]]]] = [
    (_QUESTION, (ID, LINES, OPTIONS, LINES, LINES, LINES, None, None, None, None, None)),
    (_QUESTION, (DONE, LINES, OPTIONS, LINES, LINES, LINES, "answered", SHORT, LINES, LINES, 2)),
    (_SCHEDULE, ("k1", EVERY, JSON_TEXT, LINES, LINES, LINES, "active", LINES, LINES, 0)),
    (_SCHEDULE, ("k2", CRON, JSON_TEXT, LINES, LINES, LINES, "active", LINES, LINES, 0)),
    (_SCHEDULE, ("k3", EVERY, JSON_TEXT, LINES, LINES, LINES, "paused", LINES, LINES, 3)),
    ("INSERT INTO schedule_runs VALUES ('k1', 1, 2, ?, ?)", (LINES, LINES)),
]
IN_CENTRAL: Final[list[tuple[str, tuple[Any, ...]]]] = [
    ("INSERT INTO users VALUES ('u', 1, ?, 2, ?, ?)", (LINES, LINES, LINES)),
    ("INSERT INTO user_roles VALUES ('u', ?, 'any', 'admin', 1, ?)", (LINES, LINES)),
    ("INSERT INTO identities VALUES (?, ?, 'u', 1, ?)", (LINES, LINES, LINES)),
    (
        "INSERT INTO pairings VALUES ('AAAA', ?, ?, ?, 'group', ?, 1, 99999999999999, NULL, NULL, NULL, NULL)",
        (LINES,) * 4,
    ),
    ("INSERT INTO pairings VALUES ('BBBB', ?, ?, ?, 'group', ?, 1, 2, 'refused', 2, ?, ?)", (LINES,) * 6),
    (
        "INSERT INTO routes VALUES ('r2', ?, 1, ?, ?)",
        (json.dumps({"name": "r2", "channel": SHORT, "place": SHORT, "agent": SHORT}), LINES, LINES),
    ),
    ("INSERT INTO refused_events VALUES (?, ?, ?, ?, ?, ?, ?, 3, 1, 2)", (LINES,) * 7),
    ("INSERT INTO egress_usage VALUES ('2026-11-30', ?, ?, 1, 1, 1, 1, 1, 1, 1, 1)", (LINES, LINES)),
    ("INSERT INTO agent_refills VALUES ('2026-11-30', 'echo', 1, 1, 1, 1, ?, ?)", (LINES, LINES)),
    ("INSERT INTO session_deletions VALUES ('d1', 'echo', 'gone', 1, ?, ?, 1, NULL)", (LINES, LINES)),
    (
        "INSERT INTO incarnations VALUES ('01M8NCMC6ST49WCWKJG2FJR4WB', 'echo', 's', 'process', ?, ?, 1, 1, NULL, NULL, 0, ?)",
        (LINES, LINES, LINES),
    ),
]
WORDS: Final = json.dumps({"at": "2026-11-21T00:00:00.000Z", "messages": ["m1"], "kind": "progress", "text": LINES})


@pytest.mark.parametrize(
    "arguments",
    [
        ("question", "list"), ("question", "list", "--all"), ("question", "show", ID), ("question", "show", DONE), ("question", "answer", ID, LINES * 10),
        ("question", "answer", DONE, "x"), ("schedule", "list"), ("schedule", "show", "k1"), ("schedule", "show", "k2"), ("schedule", "show", "k3"),
        ("schedule", "resume", "k3"), ("schedule", "pause", LINES), ("user", "list"), ("pairing", "list"), ("pairing", "approve", "AAAA", "--user", LINES),
        ("pairing", "approve", "BBBB"), ("pairing", "refuse", LINES), ("route", "list"), ("route", "list", "-o", "wide"), ("route", "log"), ("route", "remove", LINES),
        ("route", "test", "--channel", "local", "--place", LINES), ("egress", "list"), ("egress", "show", "echo"), ("agent", "list"), ("agent", "show", "echo"), ("channel", "list"),
        ("worker", "list"), ("message", "list"), ("message", "show", "m1"), ("message", "show", "m3"), ("message", "cancel", LINES), ("delivery", "list"),
        ("delivery", "retry", LINES), ("doctor",), ("status",), ("session", "show", "echo", "s"), ("top", "--once"), ("run", "show", "m1"),
        ("send", "x", "--place", LINES), ("send", "x", "--agent", "echo", "--session", "s", "--at", LINES),
    ],
    ids=lambda given: " ".join(given)[:30].partition("x\n")[0],
)  # fmt: skip
def test_no_command_lets_such_a_text_make_a_line_of_its_own(
    home: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    session = SessionFolder(home / "data" / "sessions" / "echo" / "s")
    for file, role, rows in (
        (session.inbound_db, "inbound", IN_SESSION),
        (home / "data" / "central.db", "central", IN_CENTRAL),
    ):
        with open_owner(file, Role(role)) as db, db.transaction():
            for sql, values in rows:
                db.execute(sql, values)
    (session.outbox / ".words").write_text(WORDS + "\n", encoding="utf-8")
    answer = CommandLine(capfd, home / "clawbus.toml")(*arguments, "--pretty")
    assert "Traceback" not in answer.err
    look_at(answer, "mailbox" if arguments[:2] == ("question", "show") else arguments[0])  # a body's lines are indented
