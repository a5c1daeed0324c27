"""A disk that is full or nearly so explains itself in `degraded`, and stops to when writing works again."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.bus import storage_watch
from schema.errors import StorageError, UnusableFileError
from tests.support.house_kit import HouseKit

pytestmark = [pytest.mark.anyio]


def whats(kit: HouseKit) -> list[str]:
    return [one["what"] for one in kit.house.degraded()]


async def test_a_write_that_failed_is_told_until_a_write_works(tmp_path: Path) -> None:
    kit = HouseKit(tmp_path / "data")
    async with kit.running():
        session = (await kit.send(message_id="m1")) and await kit.session()

        def full() -> None:
            raise StorageError("inbound.db: database or disk is full.")

        for failing in (session.call(full), kit.house.sessions.central(lambda _: full())):
            with pytest.raises(StorageError):
                await failing
            assert whats(kit) == ["storage"]
            (kit.root / "write-probe").mkdir()  # nothing can be written there
            await kit.house.sweeper.tick()
            assert whats(kit) == ["storage"]
            (kit.root / "write-probe").rmdir()
            await kit.house.sweeper.tick()
            assert whats(kit) == []


async def test_a_file_that_is_gone_says_nothing_about_the_disk(tmp_path: Path) -> None:
    kit = HouseKit(tmp_path / "data")
    async with kit.running():
        kit.house.sessions.storage.failed(UnusableFileError("gone"))
        assert whats(kit) == []


async def test_a_disk_that_is_nearly_full_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = HouseKit(tmp_path / "data")
    async with kit.running():
        monkeypatch.setattr(storage_watch, "LOW_BYTES", 2**62)
        with capture_logs() as logs:
            await kit.house.sweeper.tick()
            await kit.house.sweeper.tick()
        assert whats(kit) == ["disk"]
        assert [one["event"] for one in logs].count("disk_low") == 1
        monkeypatch.setattr(storage_watch, "LOW_BYTES", 0)
        await kit.house.sweeper.tick()
        assert whats(kit) == []


async def test_two_that_look_at_once_tell_of_the_recovery_once(tmp_path: Path) -> None:
    kit = HouseKit(tmp_path / "data")
    async with kit.running():
        storage = kit.house.sessions.storage
        storage.failed(StorageError("inbound.db: database or disk is full."))
        with capture_logs() as logs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(storage.look)
                tasks.start_soon(storage.look)
        # The first tick after the start may end meanwhile.
        assert [one["event"] for one in logs if one["event"] != "swept"] == ["storage_recovered"]
        assert whats(kit) == []
