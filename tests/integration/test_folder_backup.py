"""A whole data folder backed up under a running daemon, and put back: what was accepted by then is there, and goes on."""

import json
import os
import shutil
from pathlib import Path

import pytest

from daemon.runtimes.process_table import machine_id
from tests.integration.conftest import Make
from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.nest import nest

pytestmark = pytest.mark.faults

NO_TEXT = os.fsdecode(b"n\xff\n")  # a file's name is any bytes


@pytest.fixture
def daemon(make_daemon: Make) -> RealDaemon:
    made = make_daemon(ECHO + obedient())
    made.start()
    return made


def test_what_was_accepted_is_in_the_backup_and_is_answered_after_the_restore(daemon: RealDaemon) -> None:
    assert daemon.ask("one", agent="echo", session="a") == {"text": "one"}
    assert daemon.ask("file a.txt kept", agent="prog", session="b") == {"text": "see it", "files": ["a.txt"]}
    mark = daemon.root / "mark"
    working = daemon.post(f"hang {mark}", agent="prog", session="b")
    eventually("in mid-turn", mark.exists)
    (daemon.data / "agents" / "prog" / "note.txt").write_text("kept", encoding="utf-8")
    (daemon.data / "agents" / "prog" / "link").symlink_to("/etc/passwd")
    (daemon.data / "agents" / "prog" / NO_TEXT).write_text("kept, too", encoding="utf-8")
    home = daemon.folder("echo", "a") / "home"
    (home / ".agent" / "chats").mkdir(parents=True)
    (home / ".agent" / "chats" / "inbound.db").write_text("a transcript, and no database", encoding="utf-8")
    (home / "link").symlink_to("/etc/passwd")
    target = daemon.root / "backup"
    made = daemon.cli("backup", str(target)).result
    assert (made["sessions"], made["unverified"]) == (2, [])
    assert made["left_out"] == ["agents/prog/link", "sessions/echo/a/home/link"]
    assert target.stat().st_mode & 0o777 == 0o700
    assert daemon.cli("backup", str(target)).error == "BACKUP_FAILED", "nothing is overwritten"

    mark.with_name("mark.go").touch()
    daemon.answer(working, agent="prog", session="b")
    later = daemon.post("two", agent="echo", session="a")
    daemon.answer(later, agent="echo", session="a")
    cursor = daemon.entries()[-1]["cursor"]
    daemon.stop()
    assert daemon.cli("restore", str(target)).error == "RESTORE_REFUSED", "its containers still run"
    daemon.start()
    for agent, session in (("echo", "a"), ("prog", "b")):
        daemon.cli("session", "stop", agent, session)
        eventually("stopped", lambda agent=agent, session=session: daemon.running(agent, session) is None)
    assert daemon.cli("restore", str(target), "--replace").error == "DATA_FOLDER_LOCKED"
    daemon.stop()
    assert daemon.cli("restore", str(target)).error == "RESTORE_REFUSED", "the folder is not empty"
    done = daemon.cli("restore", str(target), "--replace").result
    assert done["sessions"] == 2
    assert (Path(done["before"]) / "central.db").exists()
    assert (daemon.data / "agents" / "prog" / "note.txt").read_text(encoding="utf-8") == "kept"
    [sent] = (daemon.folder("prog", "b") / "sent").iterdir()
    assert (sent / "a.txt").read_text(encoding="utf-8") == "kept", "a file that went with an answer"
    assert (daemon.data / "agents" / "prog" / NO_TEXT).read_text(encoding="utf-8") == "kept, too"
    assert (home / ".agent" / "chats" / "inbound.db").read_text(encoding="utf-8") == "a transcript, and no database"
    daemon.start()
    if not machine_id():  # then nothing proves that the original's agent has ended, so its session is held
        assert daemon.cli("session", "release", "prog", "b").ok
    assert daemon.answer(working, agent="prog", session="b") == {"text": "done"}
    assert [one["id"] for one in daemon.show("echo", "a")["messages"] if one["id"] == later] == []
    assert daemon.ask("three", agent="echo", session="a") == {"text": "three"}
    new = [one["content"]["text"] for one in daemon.entries(after=cursor)]
    assert new == ["done", "three"], "a client that was ahead of the backup misses nothing"


def test_a_backup_with_the_daemon_killed_rolls_its_journals_back(daemon: RealDaemon) -> None:
    daemon.ask("one", agent="echo", session="a")
    daemon.kill()
    (daemon.folder("echo", "a") / "in" / "inbound.db-journal").write_bytes(b"")
    made = daemon.cli("backup", str(daemon.root / "backup")).result
    assert made["sessions"] == 1


def test_a_container_s_broken_file_is_kept_as_it_is_and_named(daemon: RealDaemon) -> None:
    daemon.hostile = True
    daemon.ask("say up", agent="prog", session="s")
    daemon.cli("session", "quarantine", "prog", "s")
    eventually("ended", lambda: daemon.running("prog", "s") is None)
    out = daemon.folder("prog", "s") / "out"
    (out / "outbound.db").write_bytes(b"\xa5" * 9000)
    (out / "outbox" / "m").mkdir(parents=True)
    os.mkfifo(out / "outbox" / "m" / "fifo")
    (out / "outbox" / "m" / "link").symlink_to(daemon.data / "central.db")
    (out / "outbox" / "m" / "file").write_text("attached", encoding="utf-8")
    (out / "outbox" / os.fsdecode(b"n\xff\x1b[31m\n")).symlink_to("nothing")  # a name is any bytes
    target = daemon.root / "backup"
    with nest(out / "outbox" / "m", "d", 1500):
        made = daemon.cli("backup", str(target)).result
        told = daemon.people("backup", str(daemon.root / "another"))
    assert made["unverified"] == ["sessions/prog/s/out/outbound.db"]
    deep, *others = sorted(made["left_out"])
    assert deep.startswith("sessions/prog/s/out/outbox/m/d/d/d/")
    assert [one.rpartition("/")[2].encode(errors="replace") for one in others] == [b"fifo", b"link", b"n?\x1b[31m\n"]
    assert "left out: sessions/prog/s/out/outbox/n" in told
    assert "\x1b[31m" not in told
    copy = target / "sessions" / "prog" / "s" / "out"
    assert (copy / "outbound.db").read_bytes() == b"\xa5" * 9000
    assert (copy / "outbox" / "m" / "file").read_text(encoding="utf-8") == "attached"


def damage(how: str, backup: Path) -> None:
    manifest = backup / "manifest.json"
    file = backup / "sessions" / "echo" / "a" / "in" / "inbound.db"
    listed = json.loads(manifest.read_text(encoding="utf-8"))
    match how:
        case "byte":
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
        case "missing":
            file.unlink()
        case "manifest":
            manifest.unlink()
        case "format":
            manifest.write_text(json.dumps(listed | {"format": 99}), encoding="utf-8")
        case _:
            listed["files"][0]["path"] = "../../evil"
            manifest.write_text(json.dumps(listed), encoding="utf-8")


def test_a_damaged_backup_is_not_restored(daemon: RealDaemon) -> None:
    daemon.ask("one", agent="echo", session="a")
    daemon.cli("backup", str(daemon.root / "backup"))
    daemon.cli("session", "kill", "echo", "a")
    for how, code in (
        ("byte", "BACKUP_NOT_VERIFIED"), ("missing", "BACKUP_NOT_VERIFIED"), ("outside", "BACKUP_NOT_VERIFIED"),
        ("format", "RESTORE_REFUSED"), ("manifest", "RESTORE_REFUSED"),
    ):  # fmt: skip
        copy, fresh = daemon.root / how, daemon.root / f"fresh-{how}"
        shutil.copytree(daemon.root / "backup", copy)
        damage(how, copy)
        refused = daemon.cli("restore", str(copy), "--data", str(fresh))
        assert refused.error == code, how
        assert "of this very file" not in refused.envelope["fix"], "it is a folder"
        assert not fresh.exists()


def test_a_backup_that_cannot_be_written_leaves_nothing(daemon: RealDaemon) -> None:
    daemon.ask("one", agent="echo", session="a")
    inside = daemon.data / "sessions" / "backup"
    assert daemon.cli("backup", str(inside)).error == "BACKUP_FAILED"
    assert not inside.exists()
    (daemon.root / "file").write_text("", encoding="utf-8")
    assert daemon.cli("backup", str(daemon.root / "file" / "x")).error == "BACKUP_FAILED"


def test_with_another_runtime_configured_living_agents_are_not_taken_for_gone(daemon: RealDaemon) -> None:
    daemon.ask("one", agent="echo", session="a")
    target = daemon.root / "backup"
    assert daemon.cli("backup", str(target)).ok
    daemon.stop()
    leader = daemon.leader("echo", "a")
    still_runs = daemon.cli("restore", str(target), "--replace")
    assert "session kill --all" in still_runs.envelope["fix"]
    assert "docker" not in still_runs.envelope["fix"]
    text = daemon.config.read_text(encoding="utf-8")
    daemon.config.write_text(text.replace('kind = "process"', 'kind = "docker"'), encoding="utf-8")
    refused = daemon.cli("restore", str(target), "--replace")
    assert refused.error == "RESTORE_REFUSED"
    assert 'kind = "process"' in refused.envelope["fix"]
    started = daemon.refused()
    assert started.error == "RUNTIME_CHANGED"
    assert "echo/a" in started.envelope["error"]["message"]
    daemon.config.write_text(text, encoding="utf-8")
    daemon.start()
    assert daemon.leader("echo", "a") == leader, "it goes on under the old configuration"
    assert daemon.ask("two", agent="echo", session="a") == {"text": "two"}


def test_a_folder_of_another_installation_is_not_moved_away_under_its_agents(
    daemon: RealDaemon, make_daemon: Make
) -> None:
    daemon.ask("one", agent="echo", session="a")
    other = make_daemon("")
    other.start()
    target = daemon.root / "backup"
    assert other.cli("backup", str(target)).ok
    daemon.stop()
    assert daemon.cli("restore", str(target), "--replace").error == "RESTORE_REFUSED"
