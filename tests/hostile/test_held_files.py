"""A container that makes the host wait: locks, a journal that stays hot, a fifo under SQLite's open. In a whole bus.

Nobody else is served later, the container is ended or its session quarantined, and nothing is lost.
"""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

import schema.connect
from daemon.core.session_verbs import ReleaseSession
from daemon.runtimes.members import lock_holders
from schema.errors import FileBusyError
from schema.layout import HEARTBEAT, OUTBOUND_DB
from tests.support.bus_kit import SECONDS, BusKit, until
from tests.support.hot_journal import strand_journal

pytestmark = [pytest.mark.faults, pytest.mark.anyio]

HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], uri=True, isolation_level=None)
for statement in sys.argv[2:]:
    db.execute(statement).fetchone()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BusKit:
    monkeypatch.setattr(schema.connect, "BUSY_TIMEOUT_MS", 50)
    return BusKit(tmp_path, sweep={"session_timeout_s": 10.0, "backoff_base_s": 1.0})


@contextmanager
def holding(uri: str, *statements: str) -> Iterator[None]:
    """Another process with a lock on a file, as a container's would have it."""
    with subprocess.Popen([sys.executable, "-c", HOLD, uri, *statements], stdin=-1, stdout=-1) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield
        finally:
            process.communicate()


async def round_trip(kit: BusKit, session: str) -> None:
    """Return once a message to a session of its own is answered and delivered, while another session's files are held."""
    accepted = await kit.send(session)
    await kit.started(session)
    agent = kit.agent(session)
    batch = agent.claim()
    assert batch is not None
    assert [message.id for message in batch.messages] == [accepted.message_id]
    agent.answer(batch)
    kit.bus.delivery.poke(await kit.session(session))
    await until(lambda: any(one.session == session for one in kit.fake.sent))


@pytest.mark.parametrize("held", ["inbound.db", "outbound.db"])
async def test_a_container_that_keeps_a_lock_is_ended(kit: BusKit, held: str) -> None:
    async with kit.running() as bus:
        accepted = await kit.send("main")
        await kit.started()
        session = await kit.session()
        folder = session.files.folder
        incarnation = kit.slot().incarnation  # pyright: ignore[reportOptionalMemberAccess]
        if held == "inbound.db":  # read-only, as it is mounted: a reader's lock is enough
            lock = holding(f"file:{folder.inbound_db}?mode=ro", "BEGIN", "SELECT count(*) FROM messages_in")
        else:
            kit.agent().claim()
            lock = holding(f"file:{folder.outbound_db}", "BEGIN EXCLUSIVE")
        with lock:
            if held == "inbound.db":
                # Only now: had the host written the claim down before the lock, it would have nothing left to write.
                kit.agent().claim()
            bus.delivery.poke(session)
            await until(lambda: session.unreadable_since is not None)
            await round_trip(kit, "other")
            kit.advance(61)
            # A sweep that could still read may have judged its claim first: ended it is, one way or the other.
            ends = ("unreadable", "claim_stuck")
            await until(lambda: kit.slot() is None or kit.slot().reason in ends)  # pyright: ignore[reportOptionalMemberAccess]
        await until(lambda: kit.slot() is None or kit.slot().incarnation != incarnation)  # pyright: ignore[reportOptionalMemberAccess]
        assert (await kit.row()).quarantine_reason is None
        assert (await kit.message(accepted.message_id))["status"] == "pending"


async def test_a_read_lock_that_refuses_every_sender_ends_its_container(kit: BusKit) -> None:
    """Nothing is claimed, the heartbeat is fresh, and every read of the host's comes through."""
    async with kit.running() as bus:
        await round_trip(kit, "main")
        session = await kit.session()
        incarnation = kit.slot().incarnation  # pyright: ignore[reportOptionalMemberAccess]
        folder = session.files.folder
        with holding(f"file:{folder.inbound_db}?mode=ro", "BEGIN", "SELECT count(*) FROM messages_in"):
            with pytest.raises(FileBusyError, match="the message was not stored") as refused:
                await kit.send("main")
            assert "Send it again" in refused.value.hint
            for _ in range(3):
                kit.advance(15)
                (folder.outbox / HEARTBEAT).touch()
                assert await bus.sweeper.sweep(session.key), "a sweep that only reads is a good one"
                assert kit.slot() is not None
            told = await kit.operations.session("helper", "main")
            assert "Writing its inbound.db fails since" in told["explanation"]
            found = [one["what"] for one in kit.operations.live()["troubles"]]
            assert set(found) >= {"accept", "write"}
            assert any(one["session"] == "main" for one in (await kit.operations.status())["attention"])
            kit.advance(20)
            await bus.sweeper.sweep(session.key)
            await until(lambda: kit.slot() is None or kit.slot().reason == "unreadable")  # pyright: ignore[reportOptionalMemberAccess]
        await until(lambda: kit.slot() is None or kit.slot().incarnation != incarnation)  # pyright: ignore[reportOptionalMemberAccess]
        await kit.send("main")
        await bus.sweeper.sweep(session.key)
        kit.advance(5)  # a receipt that the lock refused is recorded at its next try
        await until(lambda: kit.operations.live()["troubles"] == [])


@pytest.mark.parametrize("held", ["inbound.db", "outbound.db"])
async def test_a_foreign_exclusive_lock_ends_no_container(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """Not even a read succeeds. The holder is named, the container is not blamed and goes on."""
    monkeypatch.setattr("daemon.app.bus.member_finder", lambda *_: lambda _: frozenset({os.getppid()}))
    async with kit.running() as bus:
        await round_trip(kit, "main")
        session = await kit.session()
        slot = kit.slot()
        assert slot is not None
        folder = session.files.folder
        with holding(f"file:{folder.inbound_db if held == 'inbound.db' else folder.outbound_db}", "BEGIN EXCLUSIVE"):
            bus.delivery.poke(session)
            await until(lambda: session.unreadable_since is not None)
            kit.advance(61)
            bus.delivery.poke(session)
            await until(lambda: bool(session.held_by) or kit.slot() is not slot or slot.reason is not None)
            assert session.held_by
            assert kit.slot() is slot
            assert slot.reason is None
            if held == "inbound.db":
                with pytest.raises(FileBusyError, match="keeps a lock") as refused:
                    await kit.send("main")
                assert f"End process {session.held_by[0]}" in refused.value.hint
            assert any("is held by process" in one.error for one in bus.sessions.troubles.of(session.key))
        await kit.send("main")


async def test_a_lock_of_somebody_else_s_process_ends_no_container(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's open sqlite3 shell is not the container's doing: it is named, and the container goes on."""
    monkeypatch.setattr("daemon.app.bus.member_finder", lambda *_: lambda _: frozenset({os.getppid()}))
    async with kit.running() as bus:
        await round_trip(kit, "main")
        session = await kit.session()
        with holding(f"file:{session.files.folder.inbound_db}?mode=ro", "BEGIN", "SELECT count(*) FROM messages_in"):
            with pytest.raises(FileBusyError):
                await kit.send("main")
            kit.advance(61)
            await bus.sweeper.sweep(session.key)
            await until(lambda: any("is held by process" in one.error for one in bus.sessions.troubles.of(session.key)))
            assert kit.slot() is not None
            assert kit.slot().reason is None  # pyright: ignore[reportOptionalMemberAccess]


async def test_the_holder_of_a_lock_is_named_at_once_and_no_longer_than_it_holds_it(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any time passing: neither the limit after which a container is ended, nor the next try of a write."""
    monkeypatch.setattr("daemon.app.bus.member_finder", lambda *_: lambda _: frozenset({os.getppid()}))
    async with kit.running():
        await round_trip(kit, "main")
        session = await kit.session()
        with holding(f"file:{session.files.folder.inbound_db}?mode=ro", "BEGIN", "SELECT count(*) FROM messages_in"):
            with pytest.raises(FileBusyError, match=r"^process \d+ \(.+\) keeps a lock") as refused:
                await kit.send("main")
            holder = session.held_by[0]
            assert f"End process {holder}" in refused.value.hint
            told = await kit.operations.session("helper", "main")
            assert f"It is held by process {holder}, not by its container." in told["explanation"]
            await kit.operations.check_holders()
            assert all(f"held by process {holder}" in one["sentence"] for one in kit.operations.live()["troubles"])
        told = await kit.operations.session("helper", "main")
        assert holder not in (told["explanation"] or "")
        assert not any("is held by" in sentence for sentence in told["troubles"])
        attention = (await kit.operations.status())["attention"]
        assert not any("is held by" in one["explanation"] for one in attention)
        assert not any("is held by" in one["sentence"] for one in kit.operations.live()["troubles"])


async def test_a_lock_of_its_container_is_said_to_be_its_container_s(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: set[int] = set()
    monkeypatch.setattr("daemon.app.bus.member_finder", lambda *_: lambda _: frozenset(pids))
    async with kit.running():
        await round_trip(kit, "main")
        session = await kit.session()
        folder = session.files.folder
        with holding(f"file:{folder.inbound_db}?mode=ro", "BEGIN", "SELECT count(*) FROM messages_in"):
            pids |= lock_holders(folder.inbound_db)
            with pytest.raises(FileBusyError, match="another process keeps a lock"):
                await kit.send("main")
            told = await kit.operations.session("helper", "main")
            assert ", of its container." in told["explanation"]
            assert not session.held_by


async def test_a_journal_that_stays_hot_ends_the_container_and_is_recovered(kit: BusKit) -> None:
    async with kit.running() as bus:
        accepted = await kit.send("main")
        await kit.started()
        kit.agent().claim()
        session = await kit.session()
        strand_journal(
            session.files.folder.outbound_db, "INSERT INTO session_state VALUES ('k' || ?, hex(zeroblob(400)), 'x')"
        )
        bus.delivery.poke(session)
        await until(lambda: session.unreadable_since is not None)
        assert session.files.has_journal()
        await round_trip(kit, "other")
        kit.advance(61)
        bus.delivery.poke(session)
        await kit.gone()
        assert not session.files.has_journal()
        row = await kit.message(accepted.message_id)
        assert (row["status"], row["tries"]) == ("pending", 1)


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> Generator[list[Path]]:
    """Session folders whose outbound.db turns into a fifo between our check and SQLite's open; released afterwards."""
    connect = schema.connect._connect
    victims: list[Path] = []

    def swap_and_connect(path: Path, mode: str) -> sqlite3.Connection:
        if path.parent in victims and path.name == OUTBOUND_DB:
            path.unlink()
            os.mkfifo(path)
        return connect(path, mode)

    monkeypatch.setattr(schema.connect, "_connect", swap_and_connect)
    yield victims
    for folder in victims:
        with open(folder / OUTBOUND_DB, "wb"):  # noqa: PTH123 - the thread that waits for a writer gets one
            pass


async def test_an_open_that_never_returns_costs_one_session_and_no_other(kit: BusKit, swapped: list[Path]) -> None:
    kit.config = kit.configure(sweep={"session_timeout_s": 1.0, "backoff_base_s": 1.0})
    async with kit.running() as bus:
        await kit.send("main")
        await kit.started()
        kit.agent().claim()
        session = await kit.session()
        swapped.append(session.files.folder.outbox)
        threads = threading.active_count()
        bus.delivery.poke(session)
        await until(lambda: session._in_thread)
        await round_trip(kit, "other")
        with anyio.fail_after(SECONDS):
            while session.quarantined is None:
                kit.advance(2)
                await anyio.sleep(0.2)  # the real thread hangs in real time
        assert "has not returned" in (session.quarantined or "")
        report = await kit.operations.session("helper", "main")
        assert "has not returned" in report["explanation"]
        assert [one["status"] for one in report["messages"]] == ["pending"]
        assert any("READ_DEADLINE" in one for one in report["errors"])
        await kit.gone()
        await round_trip(kit, "third")
        assert threading.active_count() <= threads + 8
        # An operator who releases it without having mended anything has it back in quarantine, and the daemon unharmed.
        await kit.operations.execute(ReleaseSession("helper", "main"))
        kit.advance(5)
        with anyio.fail_after(SECONDS):
            while session.quarantined is None:
                kit.advance(2)
                bus.sweeper.poke(session.key)
                await anyio.sleep(0.02)


def test_a_thread_that_hangs_does_not_keep_the_daemon_from_ending(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = (
        "import threading, sys, daemon.app.main\n"
        "threading.Thread(target=lambda: open(sys.argv[1])).start()\n"
        "daemon.app.main._leave_hung_threads()\n"
        "print('not reached', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(fifo)], timeout=120, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
