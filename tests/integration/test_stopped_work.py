"""No state in which work is stopped and the doctor says that nothing is wrong: each file of a newer version, and a lock."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schema.migrate import VERSION
from tests.support.agents import obedient
from tests.support.daemon import RealDaemon, eventually

Make = Callable[..., RealDaemon]


def set_version(path: Path, by: int) -> None:
    connection = sqlite3.connect(path, timeout=10)
    connection.execute(f"PRAGMA user_version = {VERSION + by}")
    connection.close()


def findings(daemon: RealDaemon) -> list[dict[str, Any]]:
    found = daemon.cli("doctor")
    return (found.envelope["result"] or {}).get("diagnoses", [])


FILES = {
    "inbound.db": "sessions/prog/s/in/inbound.db",
    "outbound.db": "sessions/prog/s/out/outbound.db",
    "central.db": "central.db",
    "mailbox.db": "mailbox.db",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_newer_version_is_named_while_the_daemon_runs_and_while_it_does_not(
    make_daemon: Make, name: str
) -> None:
    daemon = make_daemon(obedient(), runtime_keys="idle_stop_s = 0.5")
    daemon.start()
    daemon.ask("say up", agent="prog", session="s")
    eventually("idle", lambda: daemon.running("prog", "s") is None)
    path = daemon.data / FILES[name]
    set_version(path, by=7)
    if name == "outbound.db":
        daemon.post("say on", agent="prog", session="s")
        words = eventually("its runner was refused", lambda: daemon.events("spawn_failed"))[0]["error"]
        assert "SCHEMA_TOO_NEW" in words, "the failed start says why"

    def named() -> list[dict[str, Any]]:
        return [
            one for one in findings(daemon) if "SCHEMA_TOO_NEW" in (one["code"], *" ".join(one["evidence"]).split(":"))
        ]

    found = eventually("the doctor names it", named)
    assert name in " ".join(found[0]["evidence"])
    daemon.end_quietly()
    assert name in " ".join(eventually("the doctor names it without a daemon", named)[0]["evidence"])
    set_version(path, by=0)
    daemon.start()
    eventually("nothing is wrong", lambda: not findings(daemon), 90)


def test_a_session_whose_sweep_fails_is_a_finding_until_it_succeeds(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    daemon.ask("say up", agent="prog", session="s")
    inbound = daemon.folder("prog", "s") / "in" / "inbound.db"
    connection = sqlite3.connect(inbound, isolation_level=None, timeout=10)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        found = eventually(
            "the doctor names it", lambda: [one for one in findings(daemon) if one["code"] == "SESSION_FAILING"], 60
        )
        assert (found[0]["agent"], found[0]["session"]) == ("prog", "s")
        assert "FILE_BUSY" in " ".join(found[0]["evidence"])
        assert "FILE_BUSY" in daemon.show("prog", "s")["explanation"]
    finally:
        connection.execute("ROLLBACK")
        connection.close()
    eventually("nothing is wrong", lambda: not findings(daemon), 90)
