"""A session whose folder was made while central.db could not be written is registered by the next sweep."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from schema.errors import FileBusyError
from schema.rows import Address
from tests.support.bus_kit import AGENT, BusKit, until

ME = Address("local", "me")


@pytest.mark.anyio
async def test_a_session_refused_for_a_locked_registry_is_in_it_after_the_next_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await until(lambda: kit.bus.sweeper.last.at is not None)

        def locked(*_: object) -> None:
            raise FileBusyError("central.db: database is locked (SQLITE_BUSY)")

        with monkeypatch.context() as patch:
            patch.setattr(Registry, "activate", locked)
            with pytest.raises(FileBusyError):
                await kit.send("fresh", message_id="m1", address=ME)
        assert (kit.root / "sessions" / AGENT / "fresh" / "in" / "inbound.db").exists()
        await kit.bus.sweeper.tick()
        with closing(sqlite3.connect(kit.root / "central.db")) as db:
            assert db.execute("SELECT active FROM sessions WHERE session = 'fresh'").fetchall() == [(0,)], "and idle"
        assert [str(one) for one in kit.bus.sessions] == []
        await kit.send("fresh", message_id="m1", address=ME)
        assert (await kit.bus.sessions.get(SessionKey(AGENT, "fresh"))).quarantined is None
