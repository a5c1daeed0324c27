"""What only looks, beside a runner of another make without a busy time-out: none of its commits fails, with the daemon down."""

from pathlib import Path

import pytest

from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from schema.connect import open_owner
from schema.migrate import Role
from tests.support.command_line import CommandLine
from tests.support.impatient_writer import begin, impatient_writer, outcome, prepare
from tests.support.session_world import SessionWorld

LOOKS = (
    ("doctor",), ("status",), ("session", "list"), ("session", "show", "echo", "s"), ("session", "show", "echo/s", "--message", "m1"),
    ("run", "list"), ("run", "show", "m1"), ("dead", "list"), ("sweep", "stale"), ("mailbox",), ("logs",),
)  # fmt: skip
ROUNDS = 3


@pytest.fixture
def world(home: Path) -> SessionWorld:
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    registry.activate(SessionKey("echo", "s"), 1)
    session = SessionWorld(home / "data" / "sessions" / "echo" / "s")
    session.accept("m1")
    open_owner(session.files.folder.outbound_db, Role.OUTBOUND).close()
    prepare(session.files.folder.outbound_db)
    return session


def test_no_command_that_looks_fails_a_commit(cli: CommandLine, world: SessionWorld, tmp_path: Path) -> None:
    codes: set[str | None] = set()
    with impatient_writer(world.files.folder.outbound_db, 0, pause_every=1) as runner:
        begin(runner)
        for number in range(ROUNDS):
            for words in (*LOOKS, ("backup", str(tmp_path / f"copy-{number}"))):
                answer = cli(*words)
                codes.add((answer.envelope.get("error") or {}).get("code"))
        result = outcome(runner)
    assert result["failed"] == 0, result["errors"]
    assert result["made"] > 0
    assert "HOSTILE_FILE" not in codes
    assert "USAGE" not in codes, codes
    for number in range(ROUNDS):
        assert list((tmp_path / f"copy-{number}").rglob("outbound.db"))
