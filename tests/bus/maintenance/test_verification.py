"""The daemon reads its idle sessions once, records which hold nothing to report, and reads what changed again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from daemon.core.message_verbs import DropDead
from daemon.core.session_key import SessionKey
from daemon.inspect.central_reading import idle_sessions
from daemon.maintenance import verification
from daemon.store import verified_idle
from schema.errors import StorageError
from schema.layout import SessionFolder
from schema.rows import AckStatus
from tests.support.bus_kit import AGENT, BusKit, until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else writes these files, nobody else needs the processor, and the daemon's own rounds do not come in between."""
    monkeypatch.setattr(verification, "_FIRST_S", 3600.0)
    monkeypatch.setattr(verified_idle, "SETTLED_NS", 0)
    monkeypatch.setattr(verification, "_BETWEEN_SESSIONS_S", 0.0)


async def finish(kit: BusKit, session: str, status: str = "completed") -> None:
    """A message that is answered, or failed at, and its session idle again."""
    await kit.send(session, message_id=f"m-{session}")
    await kit.started(session)
    agent = kit.agent(session)
    batch = agent.claim()
    assert batch is not None
    agent.answer(batch, *(['{"error": "no"}'] if status == "failed" else []), status=AckStatus(status))
    kit.bus.delivery.poke(await kit.session(session))
    await kit.settle()
    await kit.ended(session)
    await kit.settle()
    await kit.bus.sweeper.sweep(SessionKey(AGENT, session))
    row = await kit.row(session)
    assert not row.active


def recorded(kit: BusKit) -> set[str]:
    return {session for _, session in idle_sessions(kit.root, kit.clock.now_ms())}


async def test_idle_sessions_are_recorded_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = BusKit(tmp_path)
    read: list[Path] = []
    check = verification.is_idle
    monkeypatch.setattr(
        verification, "is_idle", lambda folder, *more: (read.append(folder.root), check(folder, *more))[1]
    )
    async with kit.running() as bus:
        await finish(kit, "one")
        await finish(kit, "two")
        await kit.send("busy")
        await kit.started("busy")
        assert await bus.verification.verify() == 2
        assert recorded(kit) == {"one", "two"}
        assert await bus.verification.verify() == 0
        assert [path.name for path in read] == ["one", "two"]
        await finish(kit, "two2")
        await kit.send("two")
        assert recorded(kit) == {"one"}


async def test_the_full_pass_opens_only_what_is_not_recorded_or_has_changed_since(tmp_path: Path) -> None:
    kit = BusKit(tmp_path)
    async with kit.running() as bus:
        for name in ("one", "paused", "two"):
            await finish(kit, name)
        keys = [SessionKey(AGENT, name) for name in ("one", "paused", "two")]
        assert await bus.sweeper._unverified(keys) == keys
        await bus.verification.verify()
        await bus.sessions.central(lambda registry: registry.deactivate(keys[1], None, schedules=1))
        assert await bus.sweeper._unverified(keys) == [keys[1]], "a schedule may no longer be in the configuration"
        bus.sessions.files_of(keys[2]).folder.inbound_db.touch()
        assert await bus.sweeper._unverified(keys) == keys[1:]
        await bus.sessions.central(lambda registry: registry.activate(keys[0], kit.clock.now_ms()))
        assert await bus.sweeper._unverified(keys) == keys


async def test_a_record_is_renewed_before_it_is_too_old(tmp_path: Path) -> None:
    kit = BusKit(tmp_path)
    async with kit.running() as bus:
        await finish(kit, "one")
        await bus.verification.verify()
        kit.clock.advance(verified_idle.RENEW_MS / 1000)
        assert await bus.verification.verify() == 1
        kit.clock.advance(verified_idle.VALID_MS / 1000)
        assert recorded(kit) == {"one"}


async def test_a_file_that_changed_just_now_is_left_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times may stay the same when it changes again within the same tick."""
    kit = BusKit(tmp_path)
    async with kit.running() as bus:
        await finish(kit, "one")
        monkeypatch.setattr(verified_idle, "SETTLED_NS", 3_600_000_000_000)
        assert await bus.verification.verify() == 0
        monkeypatch.setattr(verified_idle, "SETTLED_NS", 0)
        assert await bus.verification.verify() == 1


async def test_a_file_that_changes_while_it_is_read_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path)
    check = verification.is_idle

    def beside(folder: SessionFolder, *more: object) -> bool:
        found = check(folder, *more)  # pyright: ignore[reportArgumentType]
        with sqlite3.connect(folder.inbound_db) as db:
            db.execute("INSERT INTO messages_in(id, seq, kind, timestamp, content) VALUES ('x', 90, 'chat', '', '{}')")
        db.close()
        return found

    async with kit.running() as bus:
        await finish(kit, "one")
        monkeypatch.setattr(verification, "is_idle", beside)
        assert await bus.verification.verify() == 0
    assert recorded(kit) == set()


async def test_what_is_idle_and_odd_is_not_recorded_until_somebody_deals_with_it(tmp_path: Path) -> None:
    """central.db lags: it knows of no dead letter in a session that has one."""
    kit = BusKit(tmp_path)
    key = SessionKey(AGENT, "one")
    async with kit.running() as bus:
        await finish(kit, "one", "failed")
        await bus.sessions.central(lambda registry: registry.deactivate(key, None, 0))
        assert await bus.verification.verify() == 0
        letters = (await kit.operations.dead_letters(None, None, 10))["letters"]
        assert [letter["id"] for letter in letters] == ["m-one"]
        await kit.operations.execute(DropDead(*key, by="me", id="m-one"))
        await kit.settle()
        await bus.sweeper.sweep(key)
        assert not (await kit.row("one")).active
        assert await bus.verification.verify() == 1


async def test_a_failure_of_the_registry_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_FIRST_S", 0.0)
    monkeypatch.setattr(verification, "_INTERVAL_S", 0.001)
    kit, failed = BusKit(tmp_path), list[str]()
    verify = verification.Verification.verify

    async def fails_twice(self: verification.Verification) -> int:
        if len(failed) < 2:
            failed.append("the disk is full")
            raise StorageError(failed[-1])
        return await verify(self)

    monkeypatch.setattr(verification.Verification, "verify", fails_twice)
    async with kit.running():
        await finish(kit, "one")
        await until(lambda: recorded(kit) == {"one"})
    assert len(failed) == 2


async def test_a_surprise_in_one_session_keeps_no_other_from_being_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path)
    check = verification.is_idle

    def surprised(folder: SessionFolder, *more: object) -> bool:
        if folder.root.name == "one":
            raise ValueError("nobody thought of this")
        return check(folder, *more)  # pyright: ignore[reportArgumentType]

    async with kit.running() as bus:
        await finish(kit, "one")
        await finish(kit, "two")
        monkeypatch.setattr(verification, "is_idle", surprised)
        assert await bus.verification.verify() == 1
        assert recorded(kit) == {"two"}
