"""A deletion that fails half way: what is accepted afterwards outlives the next start, and no session comes back as a ghost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core.session_key import SessionKey
from daemon.engine import sessions as engine_sessions
from daemon.maintenance import session_deletion
from daemon.store import session_trash
from daemon.store.dead_letters import Operator
from daemon.store.registry import Memory, Registry
from daemon.store.routes import note_mentioned, prune_mentioned
from daemon.store.session_trash import move_to_trash, trash_of
from schema.errors import FileBusyError, StorageError
from schema.ids import new_id
from tests.support.bus_kit import AGENT, BusKit

pytestmark = pytest.mark.anyio
KEY = SessionKey(AGENT, "main")
WHO = Operator("me", "over")


def failing(error: Exception) -> Callable[..., object]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    return BusKit(tmp_path / "data")


async def delete(kit: BusKit) -> dict[str, object]:
    return await kit.operations.executor.deletions.delete(KEY, WHO, force=False)


def registry_of(kit: BusKit) -> Registry:
    return Registry(kit.root / "central.db")


async def test_a_session_whose_deletion_could_neither_go_on_nor_be_undone_keeps_what_it_is_sent(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kit.running():
        await kit.rest()
        with monkeypatch.context() as patch:
            patch.setattr(session_deletion, "move_to_trash", failing(StorageError("no room")))
            patch.setattr(Registry, "undo_deletion", failing(StorageError("no room")))
            with pytest.raises(StorageError):
                await delete(kit)
        accepted = await kit.send()
    async with kit.running():
        assert (await kit.message(accepted.message_id))["status"] == "pending"
        assert registry_of(kit).open_deletions() == []


async def test_a_deletion_that_could_not_be_recorded_has_happened_and_the_name_begins_anew(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kit.running():
        await kit.rest()
        with monkeypatch.context() as patch:
            for name in ("deletion_moved", "deletion_done"):
                patch.setattr(Registry, name, failing(FileBusyError("locked")))
            done = await delete(kit)
        assert (done["deleted"], done["removed"]) == (True, False)
        accepted = await kit.send()
        assert accepted.seq == 2, "the new session's first"
    async with kit.running():
        assert (await kit.message(accepted.message_id))["status"] == "pending"
        assert registry_of(kit).open_deletions() == []


async def test_a_death_beside_the_first_folder_of_the_next_session_keeps_no_start_from_succeeding(kit: BusKit) -> None:
    """The old folder is in the trash, unrecorded; the new one lies in its place, without a row."""
    async with kit.running() as bus:
        await kit.rest()
    registry_of(kit).begin_deletion("D1", KEY, 1, WHO)
    move_to_trash(kit.root / "sessions", KEY, "D1")
    bus.sessions.files_of(KEY).create()
    async with kit.running():
        assert registry_of(kit).open_deletions() == []
        assert not trash_of(kit.root / "sessions", "D1").exists()
        assert registry_of(kit).session(KEY) is not None


async def test_one_folder_that_cannot_be_moved_keeps_no_daemon_from_starting(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kit.running():
        await kit.rest()
    registry_of(kit).begin_deletion("D1", KEY, 1, WHO)
    with monkeypatch.context() as patch:
        patch.setattr(session_trash, "move_to_trash", failing(StorageError("EACCES")))
        async with kit.running():
            assert registry_of(kit).session(KEY) is None, "nothing takes the folder for a session"
            other = await kit.send("other")
            accepted = await kit.send()
    async with kit.running():
        assert (await kit.message(other.message_id, "other"))["status"] == "pending"
        assert (await kit.message(accepted.message_id))["status"] == "pending"


async def test_a_listing_from_before_a_deletion_brings_no_session_back(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand folders take a while to list; a row without a folder would be quarantined, and refuse the next message."""
    async with kit.running() as bus:
        await kit.rest()
        await delete(kit)
        monkeypatch.setattr(engine_sessions, "found_sessions", lambda _: iter([KEY]))
        assert await bus.sessions.find_lost() == 0
        assert registry_of(kit).session(KEY) is None
        await kit.send()
        await kit.started()


def test_a_search_in_the_middle_of_a_deletion_finds_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "central.db")
    registry.activate(KEY, 1)
    registry.begin_deletion("D1", KEY, 1, WHO)
    assert registry.add_sessions([KEY], 2) == []
    registry.rebuild([KEY], Memory("i", frozenset(), {}, ()), 3)
    registry.deletion_moved("D1", KEY)
    assert registry.session(KEY) is None


async def test_records_of_deletions_and_folders_that_were_left_are_removed_with_time(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kit.running() as bus:
        await kit.rest()
        with monkeypatch.context() as patch:
            patch.setattr(session_deletion, "remove_trash", failing(StorageError("busy")))
            done = await delete(kit)
        left = trash_of(kit.root / "sessions", str(done["deletion"]))
        await bus.retention.prune()
        assert left.exists(), "its deletion may still be at work"
        kit.advance(2 * 3600)
        await bus.retention.prune()
        assert not left.exists()
        assert _deletions(kit) == 1
        kit.advance(400 * 86_400)
        await bus.retention.prune()
        assert _deletions(kit) == 0
        assert bus.retention.last.taken["deletions"] == 1


def test_mentions_have_an_end(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "central.db")
    for number in range(9):
        registry.with_file(lambda db, at=number: note_mentioned(db, ("a", "c", "p", new_id(at)), at))
    assert registry.with_file(lambda db: prune_mentioned(db, 4)) == 5
    assert registry.with_file(lambda db: prune_mentioned(db, 4)) == 0


def _deletions(kit: BusKit) -> int:
    rows = registry_of(kit).with_file(lambda db: db.all("SELECT 1 FROM session_deletions"))
    return len(rows)
