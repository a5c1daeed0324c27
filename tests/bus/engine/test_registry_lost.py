"""central.db deleted, emptied or replaced, while the daemon runs and while it does not: no message and no agent is forgotten."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.core.errors import RegistryGoneError
from daemon.core.session_key import SessionKey
from daemon.engine.supervisor.slots import Phase
from daemon.store.rebuild import agree_on_install_id, found_sessions, rebuild
from daemon.store.registry import Memory, Registry
from schema.errors import StorageError
from schema.rows import Address
from tests.support.bus_kit import AGENT, INSTALL, SECONDS, BusKit, text_of, until
from tests.support.fake_agent import echo

NOW = 1_795_219_200_000
ME = Address("local", "me")


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    return BusKit(tmp_path / "data")


@pytest.fixture
def central(kit: BusKit) -> Path:
    return kit.root / "central.db"


async def answer(kit: BusKit, message_id: str, session: str = "main") -> str:
    entry = await kit.operations.wait_reply(AGENT, session, message_id, SECONDS)
    assert entry is not None
    return str(text_of(entry.content))


@pytest.mark.anyio
async def test_a_registry_lost_between_two_daemons_is_rebuilt_from_the_folders(kit: BusKit, central: Path) -> None:
    async with kit.running():
        await kit.send("quiet", text="before", message_id="m1", address=ME)
        await kit.started("quiet")
        kit.bus.supervisor.close()
    kit.host.exit_now(kit.host.of_session("quiet").id)
    central.unlink()
    with capture_logs() as logs:
        async with anyio.create_task_group() as machine:
            kit.host.run_agents(machine, echo(kit.clock))
            async with kit.running():
                assert await answer(kit, "m1", "quiet") == "before"
            machine.cancel_scope.cancel()
    (rebuilt,) = (one for one in logs if one["event"] == "registry_rebuilt")
    assert (rebuilt["sessions"], rebuilt["cause"]) == (1, "central.db knew none of the sessions")
    assert "clawbus route list" in rebuilt["hint"]


@pytest.mark.anyio
async def test_a_container_of_the_lost_registry_is_ended_before_another_one_starts(kit: BusKit, central: Path) -> None:
    async with kit.running():
        await kit.send(text="before", message_id="m1")
        await kit.started()
        old = kit.host.of_session("main")
    central.unlink()
    async with kit.running():
        await until(lambda: old.exit is not None)
        await kit.started()
        assert kit.host.of_session("main") is not old


@pytest.mark.anyio
@pytest.mark.parametrize("damage", ["deleted", "emptied", "replaced", "restored"])
async def test_a_registry_lost_under_the_daemon_is_rebuilt_with_its_live_containers(
    kit: BusKit, central: Path, damage: str
) -> None:
    async with kit.running():
        await kit.send("held", message_id="h1")
        await kit.started("held")
        held = await kit.session("held")
        held.quarantined = "a hostile file"
        backup = shutil.copy(central, kit.root / "backup.db")
        await kit.send(message_id="m1")
        await kit.started()
        await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
        container = kit.host.of_session("main")
        await until(lambda: all(row.container_id for row in Registry(central).live_incarnations()))
        await kit.settle()
        if damage == "deleted":
            central.unlink()
        elif damage == "emptied":
            os.truncate(central, 0)
        elif damage == "replaced":
            (kit.root / "new.db").touch()
            (kit.root / "new.db").replace(central)
        else:
            Path(backup).replace(central)
        with capture_logs() as logs:
            accepted = await kit.send("fresh", message_id="m2")
        assert accepted.session == "fresh"
        assert [one["event"] for one in logs if one["event"].startswith("registry")] == [
            "registry_gone", "registry_rebuilt"]  # fmt: skip
        registry = Registry(central)
        assert registry.install_id(NOW) == INSTALL
        for session in ("held", "main", "fresh"):
            assert (await kit.row(session)).active
        assert (await kit.row("held")).quarantine_reason == "a hostile file"
        slot = kit.slot()
        assert slot is not None
        assert slot.incarnation in {row.id for row in registry.live_incarnations() if row.key.session == "main"}
        assert kit.bus.problems.degraded() == []
        kit.crash()
    async with kit.running():
        assert container.exit is None  # known again, so the next daemon adopts it
        assert kit.host.of_session("main") is container


@pytest.mark.anyio
async def test_while_it_cannot_be_rebuilt_nothing_is_accepted_and_status_says_so(kit: BusKit, central: Path) -> None:
    async with kit.running():
        await kit.send(message_id="m1")
        central.unlink()
        central.mkdir()  # whatever is there now is no file
        with pytest.raises(StorageError):
            await kit.send("fresh", message_id="m2")
        assert not (kit.root / "sessions" / AGENT / "fresh" / "in" / "inbound.db").exists() or not await kit.inbound(
            "SELECT 1 FROM messages_in", session="fresh"
        )
        assert "registry" in [one["what"] for one in kit.bus.problems.degraded()]
        central.rmdir()
        await kit.send("fresh", message_id="m2")
        await kit.bus.sweeper.tick()
        await kit.bus.sweeper.tick()  # a storage failure is over when a whole round has passed without one
        assert kit.bus.problems.degraded() == []


@pytest.mark.anyio
async def test_a_data_folder_that_is_moved_away_and_back_goes_on_as_it_was(kit: BusKit, tmp_path: Path) -> None:
    async with kit.running():
        await kit.send(message_id="m1")
        kit.root.rename(tmp_path / "elsewhere")
        with pytest.raises(StorageError):
            await kit.send("fresh", message_id="m2")
        assert "registry" in [one["what"] for one in kit.bus.problems.degraded()]
        assert not kit.root.exists()
        (tmp_path / "elsewhere").rename(kit.root)
        await kit.send("fresh", message_id="m2")
        await kit.bus.sweeper.tick()
        await kit.bus.sweeper.tick()
        assert kit.bus.problems.degraded() == []


@pytest.mark.anyio
async def test_a_tick_notices_by_itself(kit: BusKit, central: Path) -> None:
    async with kit.running():
        await kit.send(message_id="m1")
        central.unlink()
        await kit.bus.sweeper.tick()
        assert central.exists()


def copy_of(session: Path, target: Path) -> Path:
    """A whole copy of a session that may be written in this moment (its receipt comes after its answer)."""
    for name in ("in/inbound.db", "out/outbound.db"):
        (target / name).parent.mkdir(parents=True)
        with closing(sqlite3.connect(session / name)) as source, closing(sqlite3.connect(target / name)) as copy:
            source.backup(copy)
    return target


@pytest.mark.anyio
async def test_the_full_pass_finds_a_folder_without_a_row(kit: BusKit, central: Path) -> None:
    kit.config = kit.configure(sweep={"full_pass_s": 0.05})
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, echo(kit.clock))
        async with kit.running():
            await kit.send("moved", text="hi", message_id="m0", address=ME)
            assert await answer(kit, "m0", "moved") == "hi"
            copied = copy_of(kit.root / "sessions" / AGENT / "moved", kit.root / "copied")
            copied.rename(kit.root / "sessions" / AGENT / "copied")
            with anyio.fail_after(SECONDS):
                while Registry(central).session(SessionKey(AGENT, "copied")) is None:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        machine.cancel_scope.cancel()


def test_the_install_id_and_its_file_restore_each_other(tmp_path: Path) -> None:
    central, file = tmp_path / "central.db", tmp_path / "install-id"
    made = agree_on_install_id(Registry(central), file, NOW)
    assert file.read_text() == f"{made}\n"
    central.unlink()
    assert agree_on_install_id(Registry(central), file, NOW + 1) == made
    file.unlink()
    assert agree_on_install_id(Registry(central), file, NOW + 2) == made
    file.write_text("../../not an id")
    assert agree_on_install_id(Registry(central), file, NOW + 3) == made
    assert file.read_text() == f"{made}\n"


def test_only_folders_with_valid_names_and_a_file_are_sessions(tmp_path: Path) -> None:
    for name in ("a/s", "a/.hidden", "b c/s", "a/unfinished", "a/truncated"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "inbound.db").touch()
    (tmp_path / "a/s/in/inbound.db").write_bytes(b"something")
    (tmp_path / "a/truncated/out").mkdir()
    (tmp_path / "a/truncated/out/outbound.db").write_bytes(b"a container was here")
    (tmp_path / "a/bare").mkdir()
    (tmp_path / "a/linked").symlink_to(tmp_path / "a/s")
    assert sorted(found_sessions(tmp_path)) == [SessionKey("a", "s"), SessionKey("a", "truncated")]


def test_an_unmounted_disk_gets_no_new_registry(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "central.db")
    registry.install_id(NOW)
    (tmp_path / "central.db").unlink()
    with pytest.raises(RegistryGoneError):
        registry.with_work()
    with pytest.raises(StorageError, match="is gone"):
        rebuild(registry, tmp_path / "sessions", Memory("i", frozenset(), {}, ()), NOW)
    assert not (tmp_path / "central.db").exists()
