"""An agent that spoils its own outbox: its session is taken out of service with a reason, and nobody else notices."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.agents import obedient
from tests.support.daemon import RealDaemon, eventually

Make = Callable[..., RealDaemon]


def symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(16_384))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def hard_link(path: Path) -> None:
    path.hardlink_to(path.with_name("outbound.kept"))


def view(path: Path) -> None:
    """A database in which a name that the host reads is no table."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE VIEW messages_out AS SELECT 1 AS id")
    connection.close()


@pytest.mark.parametrize("spoil", [symlink, noise, fifo, hard_link, view], ids=lambda spoil: spoil.__name__)
def test_a_spoiled_outbox_is_quarantined_and_after_its_repair_nothing_is_lost(
    make_daemon: Make, spoil: Callable[[Path], None]
) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    daemon.ask("say up", agent="prog", session="bad")
    daemon.ask("say up", agent="prog", session="good")
    before = daemon.container("prog", "good")
    path = daemon.folder("prog", "bad") / "out" / "outbound.db"
    daemon.pause()  # so that it sees the file change once, not while it is being changed
    path.rename(path.with_name("outbound.kept"))
    spoil(path)
    daemon.resume()
    message_id = daemon.post("say on", agent="prog", session="bad")

    report = eventually(
        "quarantined", lambda: (found := daemon.show("prog", "bad"))["state"] == "quarantined" and found
    )
    assert report["registry"]["quarantine_reason"]
    assert "clawbus session reset prog bad --discard" in report["explanation"]
    assert [one["session"] for one in daemon.status()["attention"]] == ["bad"]
    assert daemon.cli("session", "show", "prog", "bad").result["state"] == "quarantined"
    eventually("its container is ended", lambda: daemon.running("prog", "bad") is None)
    waiting = daemon.post("say this too", agent="prog", session="bad")
    assert daemon.ask("say on", agent="prog", session="good") == {"text": "on"}
    assert daemon.container("prog", "good") == before

    for found in path.parent.glob("outbound.db*"):
        found.unlink()
    path.with_name("outbound.kept").rename(path)
    assert daemon.cli("session", "release", "prog", "bad").result["released"] is True
    answers = [daemon.answer(one, agent="prog", session="bad") for one in (message_id, waiting)]
    assert all(answer["text"] in ("on", "this too") for answer in answers)
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    assert daemon.status()["attention"] == []
    daemon.at_rest = True


def test_a_quarantine_outlives_the_daemon(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    daemon.ask("say up", agent="prog", session="bad")
    path = daemon.folder("prog", "bad") / "out" / "outbound.db"
    path.rename(path.with_name("outbound.kept"))
    symlink(path)
    message_id = daemon.post("say on", agent="prog", session="bad")
    eventually("quarantined", lambda: daemon.show("prog", "bad")["state"] == "quarantined")
    daemon.kill()
    daemon.start()
    assert daemon.show("prog", "bad")["state"] == "quarantined"
    steps = daemon.cli("session", "show", "prog", "bad").envelope["next_actions"]
    assert [one["command"].partition(" session ")[2] for one in steps] == [
        "release prog bad",
        "reset prog bad --discard",
    ]
    path.unlink()
    path.with_name("outbound.kept").rename(path)
    daemon.cli("session", "release", "prog", "bad")
    assert daemon.answer(message_id, agent="prog", session="bad") == {"text": "on"}


def test_a_stranded_journal_is_rolled_back_after_the_confirmed_exit(make_daemon: Make) -> None:
    """The journal of a writer that was killed in its commit: the next look of the host must not stumble over it."""
    daemon = make_daemon(obedient())
    daemon.start()
    daemon.ask("say up", agent="prog", session="s")
    path = daemon.folder("prog", "s") / "out" / "outbound.db"
    daemon.cli("session", "kill", "prog", "s")
    _die_in_commit(path)
    assert path.with_name("outbound.db-journal").exists()
    assert daemon.ask("say on", agent="prog", session="s") == {"text": "on"}
    assert not path.with_name("outbound.db-journal").exists()
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("SELECT count(*) FROM session_state").fetchone() == (0,)
    finally:
        connection.close()


def _die_in_commit(path: Path) -> None:
    """A child that writes, has its pages spilled into the file, and ends without a word."""
    child = os.fork()
    if child == 0:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        for number in range(200):
            row = (f"key{number}", "x" * 2000, "2026-11-21T00:00:00.000Z")
            connection.execute("INSERT INTO session_state VALUES (?, ?, ?)", row)
        os._exit(0)
    os.waitpid(child, 0)
