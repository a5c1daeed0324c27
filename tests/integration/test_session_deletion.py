"""A session's end: by command with the daemon up and down, by age, and by a daemon that dies in the middle of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core.session_key import SessionKey
from daemon.maintenance import session_deletion
from daemon.store.dead_letters import Operator
from daemon.store.registry import Registry
from daemon.store.session_trash import move_to_trash, remove_trash, trash_of
from tests.support.agents import obedient
from tests.support.bus_kit import AGENT, BusKit
from tests.support.daemon import RealDaemon, eventually
from tests.support.nest import nest

Make = Callable[..., RealDaemon]
WHO = Operator("me", "over")


def deleted(daemon: RealDaemon, session: str, *more: str) -> dict[str, object]:
    return daemon.cli("session", "delete", "prog", session, *more).result


def test_a_session_ends_and_its_name_begins_anew(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    daemon.ask("say up", agent="prog", session="s")
    assert deleted(daemon, "s")["lost"] == []
    assert not daemon.folder("prog", "s").exists()
    assert daemon.cli("session", "show", "prog", "s").error == "UNKNOWN_SESSION"
    assert daemon.status()["live"]["running"] == []
    assert len(daemon.entries()) == 1, "the mailbox stays"
    assert daemon.ask("say again", agent="prog", session="s") == {"text": "again"}
    assert [one["session"] for one in daemon.events("session_deleted")] == ["s"]
    assert daemon.cli("doctor").result["healthy"]
    daemon.at_rest = True


@pytest.mark.parametrize("up", [True, False], ids=["daemon up", "daemon down"])
def test_answers_of_a_deleted_session_are_none_of_the_new_ones(make_daemon: Make, up: bool) -> None:
    """A sender with ids of its own, such as a nightly job, uses them again in the session of the same name."""
    daemon = make_daemon(obedient(), runtime_keys="idle_stop_s = 0.3", sweep_keys="max_tries = 1")
    daemon.start()
    assert daemon.ask("say old", agent="prog", session="s", id="m1") == {"text": "old"}
    dies = daemon.ask("die 9", agent="prog", session="s", id="m2")
    assert dies["error"]["code"] == "TRIES_EXHAUSTED"
    eventually("at rest", lambda: daemon.running("prog", "s") is None)
    assert daemon.cli("dead", "drop", "m2").ok
    if not up:
        daemon.stop()
    deleted(daemon, "s")
    if not up:
        daemon.start()
    assert daemon.ask("say new", agent="prog", session="s", id="m1") == {"text": "new"}
    before = len(daemon.entries())
    daemon.post("die 9", agent="prog", session="s", id="m2")
    eventually("told again", lambda: len(daemon.entries()) > before)
    assert daemon.answer("m2", agent="prog", session="s")["error"]["code"] == "TRIES_EXHAUSTED"
    assert [one["content"]["text"] for one in daemon.entries() if one["in_reply_to"] == "m1"] == ["old", "new"]


def test_one_with_work_is_refused_unless_its_loss_is_wanted(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    mark = daemon.root / "s"
    daemon.post(f"hang {mark}", agent="prog", session="s")
    eventually("in mid-turn", lambda: mark.exists() and mark.read_text())
    refused = daemon.cli("session", "delete", "prog", "s")
    assert refused.error == "SESSION_UNFINISHED"
    assert "1 messages are not finished" in refused.envelope["error"]["message"]
    assert daemon.running("prog", "s") is not None, "nothing was changed"
    assert deleted(daemon, "s", "--force", "--reason", "wrong number")["lost"] == ["1 messages are not finished"]
    assert not daemon.folder("prog", "s").exists()
    (event,) = daemon.events("session_deleted")
    assert event["reason"] == "wrong number"
    assert daemon.cli("doctor").result["healthy"]


def test_without_a_daemon(make_daemon: Make) -> None:
    daemon = make_daemon(obedient(), runtime_keys="idle_stop_s = 0.3")
    daemon.start()
    daemon.ask("say up", agent="prog", session="s")
    eventually("stopped", lambda: daemon.running("prog", "s") is None)
    daemon.stop()
    assert deleted(daemon, "s")["removed"] is True
    assert not daemon.folder("prog", "s").exists()
    assert daemon.cli("session", "delete", "prog", "s").error == "UNKNOWN_SESSION"
    daemon.start()
    assert daemon.ask("say again", agent="prog", session="s") == {"text": "again"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "dies_at", ["move_to_trash", "forget_session", "deletion_moved", "remove_trash", "deletion_done"]
)
async def test_a_death_in_the_middle_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running() as bus:
        await kit.rest()
        with monkeypatch.context() as patch:

            def die(*_: object) -> None:
                raise SystemError("killed")

            owner = Registry if dies_at.startswith("deletion") else session_deletion
            patch.setattr(owner, dies_at, die)
            with pytest.raises(SystemError):
                await house_delete(kit)
        assert bus is kit.bus
    async with kit.running():
        assert not (kit.root / "sessions" / AGENT / "main").exists()
        assert list((kit.root / "sessions").glob(".trash-*")) == []
        registry = Registry(kit.root / "central.db")
        assert registry.open_deletions() == []
        assert registry.session(SessionKey(AGENT, "main")) is None
        await kit.send()
        await kit.started()


async def house_delete(kit: BusKit) -> None:
    await kit.operations.executor.deletions.delete(SessionKey(AGENT, "main"), WHO, force=False)


@pytest.mark.anyio
async def test_a_new_session_of_the_name_outlives_the_removal_of_the_old_one(tmp_path: Path) -> None:
    """The old folder could not be removed before the daemon ended: the next start touches the trash alone."""
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await kit.rest()
        registry = Registry(kit.root / "central.db")
        key = SessionKey(AGENT, "main")
        session = await kit.bus.sessions.get(key)
        registry.begin_deletion("D1", key, 1, WHO)
        move_to_trash(kit.root / "sessions", key, "D1")
        registry.deletion_moved("D1", key)
        kit.bus.sessions.forget(session)
        accepted = await kit.send()
    async with kit.running():
        assert (await kit.message(accepted.message_id))["status"] == "pending"
        assert not trash_of(kit.root / "sessions", "D1").exists()


@pytest.mark.anyio
async def test_a_folder_that_cannot_be_put_aside_leaves_the_session_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running() as bus:
        await kit.rest()

        def full(*_: object) -> None:
            raise session_deletion.StorageError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(session_deletion, "move_to_trash", full)
            with pytest.raises(session_deletion.StorageError):
                await house_delete(kit)
        assert Registry(kit.root / "central.db").open_deletions() == []
        await kit.send()
        await kit.started()
        assert bus is kit.bus


@pytest.mark.anyio
async def test_sessions_that_nobody_uses_expire_and_those_with_work_stay(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", retention={"idle_sessions_s": 10 * 86_400.0})
    async with kit.running() as bus:
        await kit.rest()
        await kit.send("waits", process_after=kit.clock.now_ms() + 400 * 86_400_000)
        kit.advance(9 * 86_400)
        await bus.retention.prune()
        assert (kit.root / "sessions" / AGENT / "main").exists()
        kit.advance(30 * 86_400)
        await bus.retention.prune()
        assert not (kit.root / "sessions" / AGENT / "main").exists()
        assert (kit.root / "sessions" / AGENT / "waits").exists()
        assert bus.retention.last.taken["expired_sessions"] == 1


@pytest.mark.anyio
async def test_a_clock_that_is_wrong_for_a_minute_deletes_nothing(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", retention={"idle_sessions_s": 10 * 86_400.0, "mailbox_s": 86_400.0})
    month = 30 * 86_400
    async with kit.running() as bus:
        await kit.rest()
        folder = kit.root / "sessions" / AGENT / "main"
        kit.clock.jump(month)
        await bus.retention.prune()
        kit.clock.jump(-month)
        await bus.retention.prune()
        assert folder.exists()
        kit.clock.jump(month)
        await bus.retention.prune()
        assert folder.exists()
        assert not bus.retention.last.taken
        await bus.retention.prune()
        assert not folder.exists(), "the clock was right"


def test_any_tree_is_removed(tmp_path: Path) -> None:
    key, elsewhere = SessionKey("a", "s"), tmp_path / "elsewhere"
    folder = tmp_path / "a" / "s"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    (folder / "link").symlink_to(elsewhere)
    (folder / ".up-1").write_text("in the way")
    closed = folder / "closed" / "inner"
    closed.mkdir(parents=True)
    (closed / "file").write_text("x")
    closed.chmod(0)
    with nest(folder, "d", 1500):
        move_to_trash(tmp_path, key, "D")
        remove_trash(tmp_path, "D")
        assert not trash_of(tmp_path, "D").exists()
        folder.mkdir()
    assert (elsewhere / "kept").exists()
    remove_trash(tmp_path, "D")


def test_one_whose_agent_died_with_its_daemon_does_not_come_back(make_daemon: Make) -> None:
    """As after a power cut: central.db still has the incarnation, and nothing runs."""
    daemon = make_daemon(obedient())
    daemon.start()
    daemon.ask("say up", agent="prog", session="s")
    daemon.kill()
    daemon.end_agents()
    assert deleted(daemon, "s")["removed"] is True
    daemon.start()
    eventually("adopted", lambda: daemon.status()["live"] is not None)
    assert daemon.cli("session", "show", "prog", "s").error == "UNKNOWN_SESSION"
    assert not daemon.folder("prog", "s").exists()
    assert daemon.ask("say again", agent="prog", session="s") == {"text": "again"}


def test_who_waits_for_an_answer_is_told_that_its_session_was_deleted(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    mark = daemon.root / "s"
    waiting = daemon.begin_cli("send", f"hang {mark}", "--agent", "prog", "--session", "s", "--wait", "60")
    eventually("in mid-turn", lambda: mark.exists() and mark.read_text())
    deleted(daemon, "s", "--force", "--reason", "a test")
    said = daemon.end_cli(waiting)
    assert said.error == "UNKNOWN_SESSION"
    assert "was deleted, and the message with it" in said.envelope["error"]["message"]
    assert "stays so" not in said.envelope["error"]["message"]
