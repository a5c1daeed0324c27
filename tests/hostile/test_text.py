"""Text out of a container on its way to a terminal or a log: no control character passes, no line is forged."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from daemon.core.errors import RemoteError
from daemon.core.printable import clean
from daemon.logs.render import json_line, ordered, pretty_renderer
from daemon.store.mailbox import MailboxEntry
from schema.connect import open_owner
from schema.layout import SessionFolder
from schema.migrate import Role
from tests.support.command_line import Answer, CommandLine

pytestmark = pytest.mark.faults

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x00\u202e\u2066\u2028" + '\n{"event": "forged"}'
DRIVING = set("\x1b\x07\x9b\r\x00\u202e\u2066\u2028")


def test_a_line_of_json_is_one_line() -> None:
    line = json_line(ordered({"event": "container_said", "text": EVIL, "list": [EVIL], "map": {EVIL: EVIL}}))
    assert line.count(b"\n") == 1
    assert not DRIVING & set(line.decode())
    assert json.loads(line)["text"] == EVIL


@pytest.mark.parametrize("colors", [True, False])
def test_a_pretty_line_moves_no_terminal(colors: bool) -> None:
    render = pretty_renderer(colors=colors)
    plain = render(ordered({"timestamp": "", "event": "x"})).decode()
    shown = render(ordered({"timestamp": "", "event": "x", "text": EVIL, "list": [EVIL], "map": {"k": EVIL}})).decode()
    assert not (DRIVING - set(plain)) & set(shown)
    assert shown.count("\n") == 1


def test_a_tracebacks_last_line_quotes_and_does_nothing_else() -> None:
    shown = pretty_renderer(colors=False)({"timestamp": "", "event": "x", "traceback": f"ValueError: {EVIL}"}).decode()
    assert not DRIVING & set(shown)


def test_a_cell_of_a_table_is_text() -> None:
    assert not DRIVING & set(clean(EVIL))


# --- every command, over a folder whose every text is hostile

ENDS = ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
FORGED = "FORGED 2026-11-27 23:59:59.000 info session_released"
LINES = "x" + "".join(f"{end}{FORGED}\u200b\u2060\x1b[2J\u202e" for end in ENDS)
HIDDEN = set("\x1b\x9b\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\u200b\u2060\u202e\ufeff")
JSON_TEXT = json.dumps({"text": LINES, "error": LINES, "reason": LINES, "code": LINES, LINES: LINES})
# Every column of text that a container, a sender or an error may have filled.
ROWS: dict[str, list[Any]] = {
    "inbound": [
        (
            (
                "INSERT INTO messages_in(id, seq, kind, timestamp, status, tries, platform_id, channel_type, thread_id, content)"
                " VALUES (?, ?, ?, '2026-11-21T00:00:00.000Z', ?, 1, ?, ?, ?, ?)"
            ),
            (name, seq, LINES, status, LINES, LINES, LINES, JSON_TEXT),
        )
        for name, seq, status in (
            ("m1", 2, "pending"),
            ("m2", 4, "failed"),
            (LINES, 6, "failed"),
            ("m3", 8, "completed"),
        )
    ]
    + [
        (
            "INSERT INTO message_history(message_id, event, incarnation, at, detail) VALUES (?, ?, ?, 1, ?)",
            (name, event, LINES, JSON_TEXT),
        )
        for name in ("m1", "m2", "m3", LINES, "@session")
        for event in ("accepted", "failed", LINES)
    ]
    + [
        (
            (
                "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, last_error,"
                " last_error_code) VALUES (?, ?, ?, ?, 3, 1, ?, ?)"
            ),
            (name, seq, "\x1f".join([LINES] * 3), state, LINES, LINES),
        )
        for name, seq, state in ((LINES, 1, "dead"), ("o2", 3, "retrying"), ("o3", 5, "dead"))
    ]
    + [("INSERT INTO attempts(message_id, incarnation, claimed_at) VALUES ('m1', ?, 1)", (LINES,))],
    "outbound": [
        (
            (
                "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id, content)"
                " VALUES (?, ?, ?, '2026-11-21T00:00:00.000Z', ?, ?, ?, ?, ?)"
            ),
            (name, seq, reply, LINES, LINES, LINES, LINES, JSON_TEXT),
        )
        for name, seq, reply in ((LINES, 1, LINES), ("o2", 3, "m1"), ("o3", 5, "m2"), ("o4", 7, "m3"))
    ]
    + [
        (
            (
                "INSERT INTO processing_ack(message_id, status, status_changed, incarnation)"
                " VALUES (?, ?, '2026-11-21T00:00:00.000Z', ?)"
            ),
            (name, status, LINES),
        )
        for name, status in (("m1", "processing"), ("m3", "completed"), (LINES, "failed"))
    ]
    + [
        (
            (
                "INSERT INTO container_state(id, current_tool, tool_declared_timeout_ms, tool_started_at, updated_at)"
                " VALUES (1, ?, 1000, '2026-11-21T00:00:00.000Z', '2026-11-21T00:00:00.000Z')"
            ),
            (LINES,),
        ),
    ],
    "central": [
        ("INSERT INTO install VALUES (1, 'install', 1)", ()),
        ("INSERT INTO sessions(agent, session, created_at, active) VALUES ('echo', 's', 1, 1)", ()),
    ],
}
ANSWER = MailboxEntry(1, "cli", LINES, "echo", "s", LINES, LINES, LINES, JSON_TEXT, 1)
# What prints an answer's own text: its further lines are indented.
BODIES = frozenset({"mailbox", "send", "chat"})


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration, a registry and a session with hostile text in every such column, a log and a container's log."""
    folder = tmp_path_factory.mktemp("h")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "4000")
    for name in ("CLAWBUS_CONFIG", "CLAWBUS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    (folder / "clawbus.toml").write_text('data_dir = "data"\n[runtime]\nkind = "process"\n[agents.echo]\n')
    data = folder / "data"
    session = SessionFolder(data / "sessions" / "echo" / "s")
    for place in (session.inbox, session.outbox, session.logs, data / "logs"):
        place.mkdir(parents=True)
    (data / "clawbus.version").write_text("1\n")
    files = {"inbound": session.inbound_db, "outbound": session.outbound_db, "central": data / "central.db"}
    for name, rows in ROWS.items():
        with open_owner(files[name], Role(name)) as db, db.transaction():
            for sql, values in rows:
                db.execute(sql, values)
    event = {"timestamp": "2026-11-21T02:20:32.123Z", "level": LINES, "event": LINES, "message": LINES, LINES: LINES}
    (data / "logs" / "clawbus.log").write_text(json.dumps({**event, "traceback": f"Error: {LINES}"}) + "\n")
    (session.logs / "container.log").write_text(f"{LINES}\n", encoding="utf-8")
    return folder


def look_at(answer: Answer, command: str) -> None:
    """No line of it, by whatever ends one, is the hostile text's own; nothing invisible or driving is in it."""
    for text in (answer.out, answer.err):
        assert not HIDDEN & set(text), command
        for line in text.splitlines():
            own = line if command in BODIES else line.lstrip()
            assert not own.startswith("FORGED"), (command, line[:200])


FROM_FILES = (
    ("status",), ("top", "--once"), ("session", "list"), ("session", "show", "echo", "s"),
    ("session", "show", "echo", "s", "--message", "m2"), ("session", "show", "echo", "s", "--message", LINES),
    ("dead", "list"), ("dead", "show", "m2"), ("dead", "show", LINES), ("dead", "show", "o3"), ("doctor",), ("run", "list"),
    ("run", "show", "m1"), ("run", "show", "m2"), ("run", "show", "m3"), ("run", "show", LINES), ("logs",),
    ("sweep", "stale", "--older-than", "1s"),
    ("backup", "copy"), ("config", "check"), ("message", "retry", LINES), ("dead", "requeue", LINES), ("send", LINES),
    ("session", "show", LINES), ("mailbox", LINES), ("run", "show", "nosuch" + LINES), ("logs", "--session", f"echo/{LINES}"),
    ("image", "show", LINES), (LINES,), ("logs", "--level", LINES), ("inngest", "runs", "--db", LINES.replace("/", "")),
)  # fmt: skip


@pytest.mark.parametrize("arguments", FROM_FILES, ids=lambda given: " ".join(given)[:30].partition("x\n")[0])
def test_no_command_lets_a_text_make_a_line_of_its_own(
    home: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    cli = CommandLine(capfd, home / "clawbus.toml")
    answer = cli(*arguments, "--pretty")
    assert "Traceback" not in answer.err
    look_at(answer, arguments[0])


@pytest.mark.parametrize(
    "arguments",
    [
        ("mailbox",), ("send", "x", "-a", "echo", "-s", "s", "--wait", "60", "--id", "m1"), ("watch",), ("status",),
        ("top", "--once"), ("session", "show", "echo", "s"), ("dead", "list"), ("dead", "requeue", "o1"),
    ],
    ids=lambda given: " ".join(given)[:20],
)  # fmt: skip
def test_nor_does_what_the_daemon_answers(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("daemon.api.client.ControlClient", partial(Hostile))
    answer = CommandLine(capfd, home / "clawbus.toml")(*arguments, "--pretty")
    assert "Traceback" not in answer.err
    assert "FORGED" in answer.out + answer.err, "the hostile text was not even shown"
    look_at(answer, arguments[0])


class Hostile:
    """A client whose daemon answers with hostile text wherever it may."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def accept(self, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "message_id": message["id"],
            "agent": "echo",
            "session": "s",
            "seq": 2,
            "duplicate": False,
            "address": None,
        }

    def wait_reply(self, *_: Any) -> MailboxEntry:
        return ANSWER

    def read_mailbox(self, *_: Any) -> list[MailboxEntry]:
        return [ANSWER]

    def watch(self, _: Any) -> Iterator[dict[str, Any]]:
        yield {"timestamp": LINES, "level": LINES, "event": LINES, "message": LINES, LINES: [LINES], "traceback": LINES}

    def __getattr__(self, _: str) -> Any:
        def refuse(*_: Any, **__: Any) -> Any:
            raise RemoteError(LINES, LINES, hint=LINES)

        return refuse
