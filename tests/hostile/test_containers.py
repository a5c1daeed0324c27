"""Attacks from inside a real, locked-down container on a real daemon: another session's answers come as before, the daemon
neither ends nor grows, and the attacker's session goes on unharmed, is ended by its limits, or is in quarantine with a reason.
"""

import json
import os
import threading
import time
from collections.abc import Iterator

import pytest

from daemon.core.errors import RemoteError
from tests.support.daemon import eventually
from tests.support.docker_bus import docker
from tests.support.hostile_bus import GROWTH_BYTES, ROUND_TRIP_S, HostileBus
from tests.support.invariants import data_folder_violations

pytestmark = [pytest.mark.docker, pytest.mark.faults]


SECRET = "not for agents"


@pytest.fixture(scope="module")
def bus(image: str) -> Iterator[HostileBus]:
    daemon = HostileBus(image)
    daemon.environment["OF_THE_HOST"] = SECRET
    try:
        daemon.start()
        daemon.bystander()
        yield daemon
        daemon.end_quietly()
        assert data_folder_violations(daemon.data, hostile=True) == []
    finally:
        daemon.close()


@pytest.fixture
def daemon(bus: HostileBus) -> Iterator[HostileBus]:
    """The same for all: at the end of each test it is the same process, no larger, and serves as before."""
    assert bus.alive(), "an earlier attack ended the daemon"
    before, pid = bus.resident(), bus.process and bus.process.pid
    yield bus
    assert bus.alive(), bus.log_tail()
    assert pid == (bus.process and bus.process.pid)
    assert bus.bystander() < ROUND_TRIP_S
    assert bus.resident() - before < GROWTH_BYTES
    for one in bus.status()["live"]["running"]:
        if one["agent"] == "evil":
            bus.cli("session", "kill", "evil", one["session"])


PLACED = {
    "symlink": ("symlink:/etc/passwd outbound.db", "not a plain file"),
    "symlink-dangling": ("symlink:/no/where outbound.db", "not a plain file"),
    "hard-link": ("hardlink outbound.db", "single link"),
    "fifo": ("fifo outbound.db", "plain file"),
    "folder": ("folder outbound.db", "plain file"),
    "noise": ("noise outbound.db", "not a SQLite"),
    "over-the-limit": (f"sparse:{64 * 1024**3} outbound.db", "the limit is"),
    "journal-fifo": ("fifo outbound.db-journal", "plain file"),
    "journal-symlink": ("symlink:/workspace/in/inbound.db outbound.db-journal", "plain file"),
    "journal-folder": ("folder outbound.db-journal", "plain file"),
    "journal-huge": (f"sparse:{64 * 1024**3} outbound.db-journal", "the limit|more than the file"),
    "wal": ("noise outbound.db-wal", "outbound.db-wal"),
    "shm": ("noise outbound.db-shm", "outbound.db-shm"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACED)
def test_what_is_no_plain_file_is_quarantined(daemon: HostileBus, name: str) -> None:
    what, reason = PLACED[name]
    session = f"placed-{name}"
    daemon.attack(session, f"place {what}")
    assert daemon.meanwhile(30, lambda: daemon.state(session) == "quarantined") < ROUND_TRIP_S
    found = daemon.quarantined(session)
    assert any(text in found for text in reason.split("|")), found


def others(daemon: HostileBus) -> tuple[str, str]:
    """Host paths that a container might guess: another session's file, and the registry."""
    return str(daemon.folder("echo", "bystander") / "out" / "outbound.db"), str(daemon.data / "central.db")


@pytest.mark.parametrize("target", ["outbound.db of another", "central.db", "inbound.db of another"])
def test_a_link_to_somebody_elses_database_delivers_nothing_of_it(daemon: HostileBus, target: str) -> None:
    session = "thief-" + target.split(".", maxsplit=1)[0] + str(len(target))
    theirs, central = others(daemon)
    path = {"outbound.db of another": theirs, "central.db": central}.get(target, theirs.replace("out/out", "in/in"))
    mailbox = len(daemon.entries())
    daemon.attack(session, f"place symlink:{path} outbound.db")
    daemon.quarantined(session)
    stolen = [
        one for one in daemon.entries()[mailbox:] if "hello" in str(one["content"]) and one["in_reply_to"] is None
    ]
    assert stolen == []


SWAPPED = ["symlink:{theirs} outbound.db", "fifo outbound.db", "folder outbound.db", "noise outbound.db",
           "fifo outbound.db-journal", "noise outbound.db-wal", "noise outbound.db-shm", "fifo .heartbeat",
           "symlink:/dev/zero .heartbeat"]  # fmt: skip


@pytest.mark.parametrize("what", SWAPPED, ids=lambda text: text.replace(":{theirs}", "").replace("/", ""))
def test_a_race_is_won_by_nobody(daemon: HostileBus, what: str) -> None:
    """Swapped in a tight loop while the host looks: whatever it sees, it neither follows nor hangs nor dies."""
    session = "swap-" + "".join(letter if letter.isalnum() else "-" for letter in what.replace("{theirs}", ""))[:40]
    theirs, _ = others(daemon)
    daemon.attack(session, "swap " + what.format(theirs=theirs))
    deadline = time.monotonic() + 5
    slowest = 0.0
    while time.monotonic() < deadline and daemon.state(session) != "quarantined":
        daemon.nudge(session)
        slowest = max(slowest, daemon.bystander())
    assert slowest < ROUND_TRIP_S
    assert daemon.state(session) in ("quarantined", "working", "resting", "waiting", "backing_off", "starting")


def test_a_mapped_file_that_is_cut_does_not_end_the_daemon(daemon: HostileBus) -> None:
    """A log appears and vanishes, its index is cut while it is mapped: SIGBUS, if anybody maps it."""
    script = (
        "while True:\n"
        " (OUT / 'outbound.db-wal').write_bytes(os.urandom(64))\n"
        " with contextlib.suppress(OSError):\n"
        "  os.truncate(OUT / 'outbound.db-shm', 0); os.truncate(OUT / 'outbound.db-shm', 32768)\n"
        " (OUT / 'outbound.db-wal').unlink()\n"
    )
    daemon.attack("sigbus", "script " + script)
    assert daemon.meanwhile(8, lambda: daemon.state("sigbus") == "quarantined") < ROUND_TRIP_S
    assert daemon.alive()


SCHEMAS = {
    "view": "ALTER TABLE messages_out RENAME TO kept; CREATE VIEW messages_out AS SELECT * FROM kept",
    "recursive": "DROP TABLE processing_ack; CREATE VIEW processing_ack AS WITH RECURSIVE c(n) AS"
    " (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n AS message_id, 'processing' AS status, n AS status_changed FROM c",
    "generated": "DROP TABLE messages_out; CREATE TABLE messages_out (id, seq, content AS"
    " (hex(zeroblob(1000000))))",
    "trigger": "DROP TABLE container_state; CREATE TRIGGER container_state AFTER INSERT ON session_state BEGIN SELECT 1; END",
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_known_name_that_is_no_table_is_quarantined(daemon: HostileBus, name: str) -> None:
    daemon.attack(f"schema-{name}", f"script sql({SCHEMAS[name]!r})")
    assert any(word in daemon.quarantined(f"schema-{name}") for word in ("ordinary table", "generated", "malformed"))


def test_rows_that_the_program_writes_itself_go_where_the_session_may_and_nowhere_else(daemon: HostileBus) -> None:
    rows = ";".join(
        f"INSERT INTO messages_out(id, seq, timestamp, kind, content, channel_type, platform_id) VALUES"
        f" ('forged{number}', {100001 + 2 * number}, 'now', 'chat', '{{\"text\":\"forged {number}\"}}', {place})"
        for number, place in enumerate(("NULL, NULL", "'local', 'victim'", "'webhook', 'hook'", "'local', '../cli'"))
    )
    daemon.attack("forger", f"now sql({rows!r})")
    report = eventually("dead letters", lambda: (r := daemon.show("evil", "forger"))["dead"] == 3 and r, 30)
    assert {one["last_error_code"] for one in report["undelivered"] if one["state"] == "dead"} == {
        "UNAUTHORISED_DESTINATION"
    }
    assert daemon.entries("victim") == []
    eventually("the one it may write", lambda: {"text": "forged 0"} in [one["content"] for one in daemon.entries()], 20)
    assert not [one for one in daemon.entries() if one["content"].get("text") in ("forged 1", "forged 2", "forged 3")]


def test_a_program_that_kills_its_runner_costs_its_own_messages_tries(daemon: HostileBus) -> None:
    message_id = daemon.attack("patricide", "now os.kill(os.getppid(), 9); time.sleep(60)")
    row = eventually(
        "given up", lambda: (m := daemon.message("evil", "patricide", message_id))["status"] == "failed" and m, 60
    )
    assert row["tries"] == 2
    assert daemon.ask("say alive", agent="evil", session="patricide") == {"text": "alive"}


LOCKS = {
    "inbound": "db = sqlite3.connect('file:/workspace/in/inbound.db?mode=ro', uri=True, isolation_level=None);"
    "db.execute('BEGIN'); db.execute('SELECT count(*) FROM messages_in').fetchall(); time.sleep(600)",
    "outbound": "db = sqlite3.connect(OUT / 'outbound.db', isolation_level=None, timeout=30);"
    "db.execute('BEGIN EXCLUSIVE'); time.sleep(600)",
}


@pytest.mark.parametrize("which", LOCKS)
def test_a_lock_that_is_kept_ends_its_container(daemon: HostileBus, which: str) -> None:
    session = f"lock-{which}"
    daemon.attack(session, f"script {LOCKS[which]}")
    first = daemon.container("evil", session)["container_id"]
    # Only that session's own messages wait, or are refused for now.
    waiting = daemon.begin_cli("send", "say again", "--agent", "evil", "--session", session)
    ended = lambda: any(e["session"] == session for e in daemon.events("container_keeps_files"))  # noqa: E731
    assert daemon.meanwhile(60, ended) < ROUND_TRIP_S
    assert ended()
    eventually(
        "that container is gone",
        lambda: (r := daemon.running("evil", session)) is None or r["container_id"] != first,
        30,
    )
    daemon.end_cli(waiting)
    assert daemon.ask("say alive", agent="evil", session=session)["text"] == "alive"


def test_deleted_files_in_a_container_are_counted(daemon: HostileBus) -> None:
    script = (
        "file = open(OUT / 'gone', 'wb'); os.unlink(OUT / 'gone')\n"
        "for _ in range(100): file.write(os.urandom(2**20)); file.flush()\n"
        "time.sleep(600)"
    )
    daemon.attack("deleted", f"now {script}")
    assert "deleted files" in daemon.quarantined("deleted")
    assert daemon.bystander() < ROUND_TRIP_S


_SENDS_FILE = (
    "; (Path.home() / 'a.txt').write_text('x'); print(json.dumps({'type': 'message', 'text': 'f', 'files': ['a.txt']}))"
)
TAKEN = {
    "out closed": "now os.chmod(OUT, 0)",
    "out read-only": "now os.chmod(OUT, 0o555)",
    "database closed": "now os.chmod(OUT / 'outbound.db', 0)",
    "database read-only": "now os.chmod(OUT / 'outbound.db', 0o444)",
    "outbox closed": "now os.chmod(OUT / 'outbox', 0)" + _SENDS_FILE,
    "outbox a fifo": "now (OUT / 'outbox').rmdir(); os.mkfifo(OUT / 'outbox')" + _SENDS_FILE,
    "answers dropped": "now sql('DROP TABLE messages_out')",
    "acks dropped": "now sql('DROP TABLE processing_ack')",
    "a fifo in the outbox": "now os.mkfifo(OUT / 'outbox' / '.half'); os.kill(os.getppid(), 15)" + _SENDS_FILE,
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_runner_takes_back_the_rights_that_its_agent_took_from_it(daemon: HostileBus, name: str) -> None:
    session = f"rights-{name.replace(' ', '-')}"
    message_id = daemon.attack(session, TAKEN[name])
    assert daemon.answer(message_id, agent="evil", session=session, wait_s=30)
    assert daemon.ask("say alive", agent="evil", session=session, wait_s=30)["text"] == "alive"
    assert {one["tries"] for one in daemon.show("evil", session)["messages"]} == {0}


READ_LOCK = (
    "import fcntl\n"
    "file = open(IN / 'inbound.db', 'rb')\n"
    "fcntl.lockf(file, fcntl.LOCK_SH, 510, 0x40000002)\n"
    "while True: (OUT / '.heartbeat').touch(); time.sleep(1)"
)


def test_a_read_lock_through_the_read_only_mount_ends_its_container(daemon: HostileBus) -> None:
    """The container is done and beats; each read of the host's comes through, and each write is refused."""
    session = "read-lock"
    daemon.attack(session, f"script {READ_LOCK}")
    first = daemon.container("evil", session)["container_id"]
    refused: set[str] = set()
    told: list[str] = []
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            try:
                daemon.post("say again", agent="evil", session=session)
            except RemoteError as error:
                refused.add(error.remote_code)

    def ended() -> bool:
        told.append(daemon.show("evil", session)["explanation"] or "")
        return any(event["session"] == session for event in daemon.events("container_keeps_files"))

    # Beside the senders, since each of them waits for the lock itself.
    sender = threading.Thread(target=send)
    sender.start()
    try:
        eventually("its container is ended", ended, 90)
    finally:
        over.set()
        sender.join(60)
    assert refused == {"FILE_BUSY"}
    assert any("FILE_BUSY" in text for text in told), told
    assert daemon.bystander() < ROUND_TRIP_S
    eventually(
        "that container is gone",
        lambda: (r := daemon.running("evil", session)) is None or r["container_id"] != first,
        30,
    )
    assert daemon.ask("say alive", agent="evil", session=session)["text"] == "alive"


RESOURCES = {
    "memory": "now x = [bytearray(10**7) for _ in range(1000)]",
    "processes": "script \nwhile True:\n try:\n  os.fork()\n except OSError: pass",
    "processor": "script \nfor _ in range(30):\n if not os.fork():\n  while True: pass",
    "tmp": "script open('/tmp/full', 'wb').write(b'x' * 10**9)",
    "stderr": "script \nf = os.open('/proc/1/fd/2', os.O_WRONLY)\nwhile True: os.write(f, b'x' * 65536)",
}  # fmt: skip


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_are_held_by_the_containers_limits(daemon: HostileBus, name: str) -> None:
    daemon.attack(f"resource-{name}", RESOURCES[name])
    assert daemon.meanwhile(6) < ROUND_TRIP_S
    assert daemon.state(f"resource-{name}") in ("working", "resting", "waiting", "backing_off", "starting", "idle")
    daemon.cli("session", "kill", "evil", f"resource-{name}")


def test_a_storm_of_forks_does_not_stop_its_sweep(daemon: HostileBus) -> None:
    """Reading a process's maps waits for its forks: a sweep did not return in time, and the session was quarantined for it."""
    daemon.attack("storm", "now \nwhile True:\n try:\n  os.fork()\n except OSError: pass")
    unreadable = lambda: [one for one in daemon.events("session_unreadable") if one["session"] == "storm"]  # noqa: E731
    assert daemon.meanwhile(25, unreadable) < ROUND_TRIP_S
    assert unreadable() == []
    assert daemon.state("storm") == "working"
    daemon.cli("session", "kill", "evil", "storm")


FILLING = {
    "bytes": ("script \nwith open(OUT / 'fill', 'wb') as f:\n while True: f.write(os.urandom(1000000)); f.flush(); time.sleep(.005)",
              "max_out_folder_bytes"),
    "files": ("script \nfor n in range(100000): open(OUT / f'f{n}', 'w').close()", "max_out_folder_files"),
    "nest": ("script \nos.chdir(OUT)\nfor n in range(200): os.mkdir('d'); os.chdir('d')", "nested"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILLING)
def test_a_folder_that_is_filled_is_quarantined(daemon: HostileBus, name: str) -> None:
    script, reason = FILLING[name]
    daemon.attack(f"fill-{name}", script)
    assert daemon.meanwhile(60, lambda: daemon.state(f"fill-{name}") == "quarantined") < ROUND_TRIP_S
    assert reason in daemon.quarantined(f"fill-{name}")


def test_a_flood_of_rows_holds_up_nobody_else(daemon: HostileBus) -> None:
    """Rows that cannot be sent, each of which costs the host rows of its own: until it is too many."""
    many = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO messages_out"
        "(id, seq, timestamp, kind, content) SELECT 'r' || i, 100001 + 2 * i, 't', 'nonsense', '1' FROM n"
    )
    daemon.attack("flood", f"script sql({many!r})")
    assert daemon.meanwhile(60, lambda: daemon.state("flood") == "quarantined") < ROUND_TRIP_S
    assert "max_dead_letters" in daemon.quarantined("flood")


def test_a_content_over_a_rows_limit_is_quarantined(daemon: HostileBus) -> None:
    large = "INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES ('l', 100001, 't', 'chat', zeroblob(9000000))"
    daemon.attack("large", f"now sql({large!r})")
    assert "TOOBIG" in daemon.quarantined("large")


def test_text_of_an_agent_moves_no_terminal_and_forges_no_line(daemon: HostileBus) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\n" + json.dumps({"event": "forged_event", "level": "error"}) + "\u202e"
    row = (
        "INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES"
        f" ({_sql('id' + evil)}, 100001, 't', {_sql('kind' + evil)}, '1')"
    )
    daemon.attack("escape", f"now sql({row!r}); sys.stderr.write({evil!r}); sys.exit(3)")
    eventually("a dead letter", lambda: daemon.show("evil", "escape")["dead"] == 1, 30)
    daemon.bystander()
    assert daemon.events("forged_event") == []
    shown = "".join(daemon.people(*words.split()) for words in (
        "session show evil escape", "status", "session list", "logs --session evil/escape -n 200", "mailbox cli"))  # fmt: skip
    raw = (daemon.data / "logs" / "clawbus.log").read_text() + daemon.people("logs", "--raw", "-n", "200")
    for text in (shown, raw):
        assert not [letter for letter in text if letter in "\x1b\x07\r\u202e"]
    assert "forged_event" in shown, "it is told, and harmless"


def _sql(text: str) -> str:
    return "char(" + ",".join(str(ord(letter)) for letter in text) + ")"


def test_what_a_container_sees_and_may(daemon: HostileBus) -> None:
    """Nothing of the host: no process, no environment, no network, no capability, nothing to write but out/ and its own folder."""
    answer = daemon.answer(daemon.attack("look", "look"), agent="evil", session="look")
    assert answer["uid"] not in (0, os.getuid())
    assert set(answer["capabilities"]) == {"0000000000000000"}
    assert answer["no_new_privileges"] is True
    assert answer["processes"] < 10
    assert answer["interfaces"] == ["lo"]
    assert answer["docker_socket"] is False
    assert not [name for name in answer["environment"] if name.startswith("CLAWBUS_")]
    assert not [text for text in answer["commands"] if "clawbus --config" in text or "dockerd" in text]
    assert SECRET not in json.dumps(answer)
    succeeded = {name for name, what in answer["refused"].items() if what == "SUCCEEDED"}
    assert succeeded == set(), answer["refused"]


def test_the_network_is_none(daemon: HostileBus) -> None:
    daemon.ask("say up", agent="evil", session="net")
    container = daemon.container("evil", "net")["container_id"]
    assert docker("inspect", "--format", "{{.HostConfig.NetworkMode}}", container) == "none"
