"""A disk that is full or nearly so explains itself in `degraded`, and stops to when writing works again."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.store import free_room
from schema.errors import HostTroubleError, StorageError, UnusableFileError
from tests.support.bus_kit import BusKit, until

pytestmark = [pytest.mark.anyio]


@asynccontextmanager
async def swept(kit: BusKit) -> AsyncGenerator[None]:
    """A bus whose first sweep is over: it looks at the disk too, and would be the one that tells."""
    async with kit.running():
        await until(lambda: kit.bus.sweeper.last.at is not None)
        yield


def whats(kit: BusKit) -> list[str]:
    return [one["what"] for one in kit.bus.problems.degraded()]


async def test_a_write_that_failed_is_told_until_a_write_works(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with swept(kit):
        session = (await kit.send(message_id="m1")) and await kit.session()

        def full() -> None:
            raise StorageError("inbound.db: database or disk is full.")

        for failing in (session.call(full), kit.bus.sessions.central(lambda _: full())):
            with pytest.raises(StorageError):
                await failing
            assert whats(kit) == ["storage"]
            (kit.root / "write-probe").mkdir()  # nothing can be written there
            await kit.bus.sweeper.tick()
            assert whats(kit) == ["storage"]
            (kit.root / "write-probe").rmdir()
            await kit.bus.sweeper.tick()
            assert whats(kit) == []


async def test_a_file_that_is_gone_says_nothing_about_the_disk(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with swept(kit):
        kit.bus.sessions.storage.failed(UnusableFileError("gone"))
        assert whats(kit) == []


async def test_a_disk_that_is_nearly_full_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = BusKit(tmp_path / "data")
    async with swept(kit):
        monkeypatch.setattr(free_room, "LOW_BYTES", 2**62)
        monkeypatch.setattr(free_room, "_SHARE", 1)
        with capture_logs() as logs:
            await kit.bus.sweeper.tick()
            await kit.bus.sweeper.tick()
        assert whats(kit) == ["disk"]
        assert [one["event"] for one in logs].count("disk_low") == 1
        monkeypatch.setattr(free_room, "LOW_BYTES", 0)
        await kit.bus.sweeper.tick()
        assert whats(kit) == []


async def test_two_that_look_at_once_tell_of_the_recovery_once(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with swept(kit):
        storage = kit.bus.sessions.storage
        storage.failed(StorageError("inbound.db: database or disk is full."))
        with capture_logs() as logs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(storage.look)
                tasks.start_soon(storage.look)
        assert [one["event"] for one in logs if one["event"].startswith("storage")] == ["storage_recovered"]
        assert whats(kit) == []


async def test_few_inodes_are_told_although_there_are_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = BusKit(tmp_path / "data")
    async with swept(kit):
        monkeypatch.setattr(free_room, "LOW_INODES", 2**62)
        monkeypatch.setattr(free_room, "_SHARE", 1)
        if (room := free_room.free_room(kit.root)) is None or room.inodes is None:
            pytest.skip("this file system counts no inodes")
        await kit.bus.sweeper.tick()
        (found,) = kit.bus.problems.degraded()
        assert found["what"] == "disk"
        assert "inodes" in found["why"]
        assert "df -i" in found["why"]
        monkeypatch.setattr(free_room, "LOW_INODES", 0)
        await kit.bus.sweeper.tick()
        assert whats(kit) == []


async def test_what_this_host_has_run_out_of_is_named_with_its_limit_and_heals(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with swept(kit):
        session = (await kit.send(message_id="m1")) and await kit.session()

        def exhausted() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        for failing in (session.call(exhausted), kit.bus.sessions.central(lambda _: exhausted())):
            with pytest.raises(HostTroubleError):
                await failing
            (found,) = kit.bus.problems.degraded()
            assert (found["what"], found["code"]) == ("storage", "HOST_TROUBLE")
            assert "LimitNOFILE" in found["why"]
            await kit.bus.sweeper.tick()
            await kit.bus.sweeper.tick()
            assert whats(kit) == []
        assert session.quarantined is None


async def test_no_thread_that_can_be_started_is_the_hosts_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path / "data")
    async with swept(kit):
        session = (await kit.send(message_id="m1")) and await kit.session()

        async def no_thread(*_: object, **__: object) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(anyio.to_thread, "run_sync", no_thread)
            with pytest.raises(HostTroubleError, match="no thread"):
                await session.call(lambda: None)
            assert [one["code"] for one in kit.bus.problems.degraded()] in ([], ["HOST_TROUBLE"])
        assert await session.call(lambda: 1) == 1


def test_of_a_small_disk_a_share_must_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk(total_mib: int, free_mib: int, inodes: int, free_inodes: int) -> free_room.FreeRoom:
        page, pages = 4096, 256  # a MiB has so many
        status = SimpleNamespace(
            f_frsize=page, f_blocks=total_mib * pages, f_bavail=free_mib * pages, f_files=inodes, f_favail=free_inodes,
            f_flag=0,
        )  # fmt: skip
        monkeypatch.setattr(free_room.os, "statvfs", lambda _: status)
        found = free_room.free_room(tmp_path)
        assert found is not None
        return found

    assert not disk(50, 40, 5000, 900).is_low, "it can never have 64 MiB or 1000 inodes free"
    assert disk(50, 4, 5000, 900).is_low
    assert disk(50, 40, 5000, 400).is_low
    assert disk(100_000, 63, 10**6, 10**5).is_low
    assert not disk(100_000, 65, 10**6, 1001).is_low
