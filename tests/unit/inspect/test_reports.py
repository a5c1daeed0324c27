"""Reports from real files: complete, bounded, and undisturbed by one session that is broken."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.core.content import error_of, preview, text_of
from daemon.core.errors import DataFolderError, RegistryGoneError, UnknownMessageError, UnknownSessionError
from daemon.inspect.central_reading import read_central
from daemon.inspect.dead_reading import dead_letters_report
from daemon.inspect.message_life import message_life
from daemon.inspect.session_report import session_report, sessions_report
from daemon.inspect.status_report import status_report
from schema.connect import open_owner
from schema.errors import InvalidNameError
from schema.handles import Writer
from schema.instants import to_text
from schema.layout import SessionFolder
from schema.migrate import Role

NOW = 1_763_000_000_000


@dataclass
class FixedClock:
    """Wall time stands still; the other clock moves by `step` each time it is looked at."""

    step: float = 0.0
    elapsed: float = 0.0

    def now_ms(self) -> int:
        return NOW

    def monotonic(self) -> float:
        self.elapsed += self.step
        return self.elapsed

    def slept_s(self) -> float:
        return 0.0


class Data:
    """A data folder as a daemon leaves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_owner(path / "central.db", Role.CENTRAL) as db, db.transaction():
            db.execute("INSERT INTO install VALUES (1, 'install-1', ?)", (NOW,))

    def central(self, sql: str, *values: object) -> None:
        with open_owner(self.path / "central.db", Role.CENTRAL) as db, db.transaction():
            db.execute(sql, values)

    def session(self, name: str, **columns: object) -> SessionFolder:
        values = {"agent": "a", "session": name, "created_at": NOW, "active": 0, **columns}
        marks = ", ".join("?" for _ in values)
        self.central(f"INSERT INTO sessions({', '.join(values)}) VALUES ({marks})", *values.values())
        folder = SessionFolder(self.path / "sessions" / "a" / name)
        folder.inbox.mkdir(parents=True)
        folder.outbox.mkdir()
        open_owner(folder.inbound_db, Role.INBOUND).close()
        return folder

    def live(self, name: str, container: str | None = "c1") -> None:
        self.central(
            "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, container_id, created_at)"
            " VALUES (?, 'a', ?, 'process', 'f', ?, ?)",
            f"inc-{name}",
            name,
            container,
            NOW,
        )


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def inbound(folder: SessionFolder, work: Callable[[Writer], object]) -> None:
    with open_owner(folder.inbound_db, Role.INBOUND) as db, db.transaction():
        work(db)


def add_message(folder: SessionFolder, identity: str, seq: int, status: str = "pending", **columns: object) -> None:
    values = {
        "id": identity,
        "seq": seq,
        "kind": "chat",
        "timestamp": to_text(NOW - 60_000),
        "status": status,
        "content": json.dumps({"text": f"text of {identity}"}),
        **columns,
    }
    marks = ", ".join("?" for _ in values)
    inbound(
        folder,
        lambda db: db.execute(f"INSERT INTO messages_in({', '.join(values)}) VALUES ({marks})", [*values.values()]),
    )


def add_event(folder: SessionFolder, identity: str, event: str, at: int, **detail: object) -> None:
    inbound(
        folder,
        lambda db: db.execute(
            "INSERT INTO message_history(message_id, event, at, detail) VALUES (?, ?, ?, ?)",
            (identity, event, at, json.dumps(detail) if detail else None),
        ),
    )


def add_delivery(folder: SessionFolder, identity: str, state: str, **columns: object) -> None:
    values = {
        "message_out_id": identity,
        "seq": 3,
        "destination": "local\x1fcli\x1f",
        "state": state,
        "attempts": 4,
        "first_at": NOW - 30_000,
        **columns,
    }
    marks = ", ".join("?" for _ in values)
    inbound(
        folder,
        lambda db: db.execute(
            f"INSERT INTO delivery_attempts({', '.join(values)}) VALUES ({marks})", [*values.values()]
        ),
    )


def add_answer(folder: SessionFolder, identity: str, seq: int, in_reply_to: str, content: object) -> None:
    with open_owner(folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
        db.execute(
            "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, kind, content) VALUES (?, ?, ?, ?, 'chat', ?)",
            (identity, seq, in_reply_to, to_text(NOW + 20), json.dumps(content)),
        )


class TestStatus:
    def test_an_empty_folder(self, data: Data) -> None:
        report = status_report(data.path, FixedClock())
        assert report["sessions"] == {"total": 0}
        assert report["install_id"] == "install-1"
        assert report["queues"]["oldest_pending_age_ms"] is None
        assert report["attention"] == []

    def test_states_queues_and_ages(self, data: Data) -> None:
        busy = data.session("busy", active=1)
        data.live("busy")
        add_message(busy, "m1", 2)
        add_message(busy, "m2", 4, process_after=to_text(NOW + 5000))
        add_message(busy, "context", 6, trigger=0)
        add_delivery(busy, "out-1", "retrying")
        data.session("idle")
        data.session("later", next_due_at=NOW + 1)
        data.session("new", active=1)
        data.session("starting", active=1)
        data.live("starting", None)
        report = status_report(data.path, FixedClock())
        assert report["sessions"] == {
            "total": 5,
            "idle": 1,
            "resting": 1,
            "scheduled": 1,
            "starting": 1,
            "waiting": 1,
        }
        assert report["queues"] == {
            "pending": 2,
            "scheduled": 1,
            "backing_off": 0,
            "oldest_pending_age_ms": 60_000,
            "undelivered": 1,
            "oldest_undelivered_age_ms": 30_000,
            "scheduled_answers": 0,
            "failed": 0,
            "dead": 0,
            "dead_letters": 0,
        }
        assert {one["session"] for one in report["incarnations"]} == {"busy", "starting"}
        json.dumps(report)

    def test_a_broken_session_is_one_line(self, data: Data) -> None:
        add_message(data.session("good"), "m1", 2)
        data.session("corrupt").inbound_db.write_bytes(b"no database at all" * 100)
        data.session("missing").inbound_db.unlink()
        report = status_report(data.path, FixedClock())
        assert report["queues"]["pending"] == 1
        assert [one["session"] for one in report["attention"]] == ["corrupt", "missing"]
        assert all("cannot be read" in one["explanation"] for one in report["attention"])

    def test_what_there_was_no_time_for_is_told_and_work_comes_first(self, data: Data) -> None:
        for name in ("idle-1", "idle-2", "idle-3"):
            data.session(name)
        add_message(data.session("working", active=1), "m1", 2)
        report = status_report(data.path, FixedClock(step=1.0), budget_s=1.0)
        assert (report["queues"]["pending"], report["not_examined"]) == (1, 3)

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(DataFolderError, match="does not exist"):
            status_report(tmp_path / "none", FixedClock())
        with pytest.raises(DataFolderError, match=r"central\.db"):
            status_report(tmp_path, FixedClock())

    def test_a_registry_that_is_lost_is_not_called_one_that_never_was(self, data: Data) -> None:
        data.session("s")
        (data.path / "central.db").unlink()
        for report in (sessions_report, dead_letters_report):
            with pytest.raises(RegistryGoneError, match="is lost") as caught:
                report(data.path, FixedClock())
            assert "rebuilds central.db" in caught.value.hint


class TestExplanations:
    def explanation(self, data: Data, name: str = "s") -> str | None:
        (one,) = [one for one in sessions_report(data.path, FixedClock()) if one["session"] == name]
        explanation: str | None = one["explanation"]
        return explanation

    def test_nothing_to_say(self, data: Data) -> None:
        add_message(data.session("s", active=1), "m1", 2)
        assert self.explanation(data) is None

    def test_quarantine(self, data: Data) -> None:
        data.session("s", quarantined_at=NOW, quarantine_reason="outbound.db is not a SQLite database.")
        assert self.explanation(data) == (
            f"The session is in quarantine. Since {to_text(NOW)}: outbound.db is not a SQLite database:"
            " `clawbus session show a s`"
        )

    def test_spawn_failures(self, data: Data) -> None:
        folder = data.session("s", active=1, spawn_failures=3, next_spawn_at=NOW + 9, last_spawn_error="no such image")
        assert self.explanation(data) is None, "nothing waits for it"
        add_message(folder, "m1", 2)
        assert self.explanation(data) == (
            "Its container cannot be started. 3 failed starts in a row, the last: no such image."
            " The next attempt is in 0.009 s: `clawbus session show a s`"
        )
        assert sessions_report(data.path, FixedClock())[0]["state"] == "backing_off"

    def test_a_message_given_up(self, data: Data) -> None:
        folder = data.session("s")
        for number in (1, 2):
            add_message(folder, f"m{number}", 2 * number, "failed", tries=5)
            add_event(folder, f"m{number}", "failed", NOW, reason="tries_exhausted")
        assert self.explanation(data) == (
            "2 open dead letters wait for an operator. 2 messages were given up, 0 answers could not be delivered."
            " The newest: m2: tries_exhausted: `clawbus dead show m2 --session a/s`"
        )

    def test_a_dead_letter(self, data: Data) -> None:
        add_delivery(data.session("s"), "out-1", "dead", last_error="404 not found")
        assert self.explanation(data) == (
            "1 open dead letter waits for an operator. 0 messages were given up, 1 answer could not be delivered."
            " The newest: out-1: 404 not found: `clawbus dead show out-1 --session a/s`"
        )


class TestSession:
    def test_everything_about_one(self, data: Data) -> None:
        folder = data.session("s", active=1)
        data.live("s")
        add_message(folder, "m1", 2, tries=1)
        add_event(folder, "m1", "accepted", NOW)
        add_event(folder, "m1", "retry_scheduled", NOW + 1, reason="orphaned")
        add_delivery(folder, "out-1", "intended")
        inbound(folder, lambda db: db.execute("INSERT INTO attempts VALUES ('m1', 'inc-s', ?, NULL, NULL)", (NOW,)))
        with open_owner(folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
            db.execute("INSERT INTO processing_ack VALUES ('m1', 'processing', ?, 'inc-s')", (to_text(NOW),))
            db.execute("INSERT INTO container_state VALUES (1, 'Bash', 7000, ?, ?)", (to_text(NOW), to_text(NOW)))
        (folder.outbox / ".heartbeat").touch()
        os.utime(folder.outbox / ".heartbeat", (5.0, 5.0))
        report = session_report(data.path, "a", "s", FixedClock())
        (message,) = report["messages"]
        assert (message["text"], message["tries"], message["timestamp"]) == ("text of m1", 1, NOW - 60_000)
        assert message["last_event"] == {"at": NOW + 1, "event": "retry_scheduled", "detail": {"reason": "orphaned"}}
        assert report["incarnation"]["id"] == "inc-s"
        assert report["undelivered"][0]["destination"] == "local/cli"
        assert report["attempts"][0]["incarnation"] == "inc-s"
        assert report["claims"] == [
            {"message_id": "m1", "status": "processing", "changed_at": NOW, "incarnation": "inc-s"}
        ]
        assert report["tool"] == {"name": "Bash", "declared_timeout_ms": 7000, "started_at": NOW}
        assert (report["heartbeat_at"], report["errors"], report["state"]) == (5000, [], "working")
        json.dumps(report)

    def test_rows_are_bounded_and_newest_first(self, data: Data) -> None:
        folder = data.session("s")
        for number in range(1, 31):
            add_message(folder, f"m{number}", 2 * number, "completed")
        report = session_report(data.path, "a", "s", FixedClock(), limit=3)
        assert [one["id"] for one in report["messages"]] == ["m30", "m29", "m28"]

    @pytest.mark.parametrize("harm", ["garbage", "link", "fifo", "view"])
    def test_a_hostile_outbound_file_is_one_error(self, data: Data, tmp_path: Path, harm: str) -> None:
        folder = data.session("s")
        add_message(folder, "m1", 2)
        path = folder.outbound_db
        if harm == "garbage":
            path.write_bytes(b"x" * 5000)
        elif harm == "link":
            path.symlink_to(tmp_path / "central.db")
        elif harm == "fifo":
            os.mkfifo(path)
        else:
            with open_owner(path, Role.OUTBOUND) as db:
                db.execute("DROP TABLE processing_ack")
                db.execute("CREATE VIEW processing_ack AS SELECT 1 AS message_id")
        report = session_report(data.path, "a", "s", FixedClock())
        assert [one["id"] for one in report["messages"]] == ["m1"]
        assert len(report["errors"]) == 1
        assert report["errors"][0].startswith("HOSTILE_FILE")

    def test_a_quarantine_that_a_release_would_not_end_names_what_does(self, data: Data) -> None:
        folder = data.session("s", quarantined_at=NOW, quarantine_reason="outbound.db is not a SQLite database.")
        assert "`clawbus session release a s`" in session_report(data.path, "a", "s", FixedClock())["explanation"]
        folder.outbound_db.write_bytes(b"x" * 5000)
        report = session_report(data.path, "a", "s", FixedClock())
        for text in (report["explanation"], report["held_up"]):
            assert "`clawbus session reset a s --discard`" in text, "as doctor says"
            assert "session release" not in text

    def test_blobs_and_nonsense_of_a_container_fit_json(self, data: Data) -> None:
        folder = data.session("s")
        with open_owner(folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
            db.execute("INSERT INTO processing_ack VALUES (?, 'processing', ?, ?)", (b"\xff", b"\x00", b"\x01"))
            db.execute("INSERT INTO container_state VALUES (1, ?, 'soon', 'never', 'never')", (b"\x07",))
        report = session_report(data.path, "a", "s", FixedClock())
        json.dumps(report)
        assert report["tool"]["declared_timeout_ms"] is None

    def test_a_folder_of_an_older_shape_is_read(self, data: Data) -> None:
        folder = data.session("s")
        folder.inbound_db.unlink()
        _old_shape(folder.inbound_db)
        report = session_report(data.path, "a", "s", FixedClock())
        assert (report["errors"], report["pending"]) == ([], 1)
        assert report["messages"][0]["id"] == "m1"

    @pytest.mark.parametrize("left", [b"", b"x"])
    def test_a_registry_that_was_emptied_is_as_lost_as_one_that_was_deleted(self, data: Data, left: bytes) -> None:
        data.session("s")
        (data.path / "central.db").write_bytes(left)
        with pytest.raises(RegistryGoneError, match="is lost; the sessions are there") as refused:
            sessions_report(data.path, FixedClock())
        assert "rebuilds central.db" in refused.value.hint
        assert read_central(data.path).missing

    def test_a_lost_file_names_what_ends_it_and_counts_nothing(self, data: Data) -> None:
        data.session("s").inbound_db.unlink()
        report = session_report(data.path, "a", "s", FixedClock())
        assert "`clawbus session delete a s --force" in report["explanation"]
        assert "`clawbus session show" not in report["explanation"]
        assert (report["pending"], report["failed"], report["undelivered"][:]) == (None, None, [])
        (listed,) = sessions_report(data.path, FixedClock())
        assert (listed["pending"], listed["dead"]) == (None, None)
        assert listed["error"].startswith("FILE_UNUSABLE")

    def test_names_are_checked_and_unknown_ones_refused(self, data: Data) -> None:
        with pytest.raises(UnknownSessionError):
            session_report(data.path, "a", "nothing", FixedClock())
        with pytest.raises(InvalidNameError):
            session_report(data.path, "..", "s", FixedClock())


def _old_shape(path: Path) -> None:
    """inbound.db before series_id, trigger and our own tables; written as SQL, since only owners migrate."""
    with open_owner(path, Role.INBOUND) as db:
        for row in db.all("SELECT name, type FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'"):
            db.execute(f"DROP {row['type']} IF EXISTS {row['name']}")
        db.execute(
            "CREATE TABLE messages_in (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, kind TEXT, timestamp TEXT, status TEXT,"
            " process_after TEXT, recurrence TEXT, tries INTEGER, platform_id TEXT, channel_type TEXT, thread_id TEXT,"
            " content TEXT)"
        )
        db.execute(
            "INSERT INTO messages_in(id, seq, kind, timestamp, status, content) VALUES ('m1', 2, 'chat', 'x', 'pending', '{}')"
        )
        db.execute("PRAGMA user_version=0")


class TestLife:
    def life(self, data: Data, identity: str) -> list[dict[str, Any]]:
        found = message_life(data.path, "a", "s", identity)
        assert found["errors"] == []
        life: list[dict[str, Any]] = found["life"]
        return life

    def test_from_acceptance_to_delivery_in_order(self, data: Data) -> None:
        folder = data.session("s")
        add_message(folder, "m1", 2, "completed")
        add_event(folder, "m1", "accepted", NOW)
        add_event(folder, "m1", "completed", NOW + 40)
        add_event(folder, "out-1", "delivery_failed", NOW + 22, code="DELIVERY_TRANSIENT")
        inbound(
            folder,
            lambda db: db.execute("INSERT INTO attempts VALUES ('m1', 'i1', ?, ?, 'orphaned')", (NOW + 5, NOW + 9)),
        )
        inbound(
            folder,
            lambda db: db.execute("INSERT INTO attempts VALUES ('m1', 'i2', ?, ?, 'completed')", (NOW + 10, NOW + 40)),
        )
        add_answer(folder, "out-1", 3, "m1", {"text": "hi"})
        with open_owner(folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
            db.execute("INSERT INTO processing_ack VALUES ('m1', 'completed', ?, 'i2')", (to_text(NOW + 20),))
        inbound(
            folder,
            lambda db: db.execute("INSERT INTO delivered VALUES ('out-1', '7', 'delivered', ?)", (to_text(NOW + 30),)),
        )
        life = self.life(data, "m1")
        assert [event["event"] for event in life] == [
            "accepted",
            "claimed",
            "attempt_orphaned",
            "claimed",
            "answered",
            "acked_completed",
            "delivery_failed",
            "delivered",
            "completed",
            "attempt_completed",
        ]
        assert life[4]["detail"] == {"message_out_id": "out-1", "text": "hi"}
        assert life[7]["detail"] == {"message_out_id": "out-1", "platform_message_id": "7"}

    def test_an_answer_to_a_batch_is_in_every_life(self, data: Data) -> None:
        folder = data.session("s")
        add_event(folder, "m2", "accepted", NOW)
        add_answer(folder, "out-1", 3, "m1", {"text": "both", "answers": ["m2"]})
        add_answer(folder, "out-2", 5, "m9", {"text": "m2 is only spoken of"})
        add_answer(folder, "out-3", 7, "m1", {"text": "long" * 20_000, "answers": ["m2"]})
        assert [event["detail"].get("message_out_id") for event in self.life(data, "m2")] == [None, "out-1", "out-3"]
        assert self.life(data, "m2")[2]["detail"]["text"].startswith("longlong")

    def test_an_undelivered_answer_tells_its_error(self, data: Data) -> None:
        folder = data.session("s")
        add_answer(folder, "out-1", 3, "m1", {"text": "hi"})
        add_delivery(folder, "out-1", "retrying", last_error="502")
        (event,) = [event for event in self.life(data, "m1") if event["event"] == "delivery_retrying"]
        assert (event["detail"]["last_error"], event["detail"]["destination"]) == ("502", "local/cli")

    def test_the_host_s_own_answer_counts(self, data: Data) -> None:
        folder = data.session("s")
        add_event(folder, "m1", "failed", NOW)
        inbound(
            folder,
            lambda db: db.execute(
                "INSERT INTO host_messages(id, seq, in_reply_to, timestamp, kind, content)"
                " VALUES ('failed:m1', 4, 'm1', ?, 'system', ?)",
                (to_text(NOW + 1), '{"error": "given up"}'),
            ),
        )
        assert self.life(data, "m1")[1]["detail"]["text"] == "given up"

    def test_an_unknown_message(self, data: Data) -> None:
        data.session("s")
        with pytest.raises(UnknownMessageError):
            message_life(data.path, "a", "s", "m1")


@pytest.mark.parametrize(
    ("content", "text", "error"),
    [
        ('{"text": "hi"}', "hi", None),
        ('"hi"', "hi", None),
        ("no json", "no json", None),
        ('{"error": "bad"}', "bad", "bad"),
        ('{"error": {"message": "bad"}}', "bad", "bad"),
        ('{"error": {"code": 3}}', '{"code": 3}', '{"code": 3}'),
        ('{"error": null, "text": "fine"}', "fine", None),
        ("[1, 2]", "[1, 2]", None),
        ("[" * 100_000, "[" * 100_000, None),
        ("1" * 10_000, "1" * 10_000, None),
        ('{"a": NaN}', '{"a": NaN}', None),
    ],
)
def test_what_a_content_says(content: str, text: str, error: str | None) -> None:
    assert (text_of(content), error_of(content)) == (text, error)


def test_a_preview_is_one_short_line() -> None:
    assert preview('{"text": "a\\n  b"}') == "a b"
    assert len(preview("x" * 5000)) == 200
