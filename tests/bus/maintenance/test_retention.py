"""The retention pass of a whole daemon, with a fake host and a moved clock: ages, isolation, what it tells, and its rest."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import daemon.maintenance.retention
from container_runner.retention import Retention as RunnerRetention
from daemon.config.loading import load_config
from daemon.core.errors import ConfigError
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import DeleteSession
from daemon.inspect.session_report import session_report
from daemon.inspect.status_report import status_report
from daemon.store.mailbox import NewEntry
from schema.errors import StorageError
from schema.layout import SessionFolder
from tests.support.bus_kit import AGENT, BusKit, until
from tests.support.clock import MovedClock

DAY = 86_400.0
ENTRY = NewEntry("me", "out-1", "a", "s", "in-1", "chat", None, "{}", MovedClock().now_ms())
pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass takes its time for the sake of a busy machine; these are alone."""
    monkeypatch.setattr(daemon.maintenance.retention, "_BETWEEN_SESSIONS_S", 0.0)


async def answered(kit: BusKit, *ids: str, session: str = "main") -> None:
    """Messages that an agent answers, each in a turn of its own; all settled and delivered, its container stopped."""
    for message_id in ids:
        await kit.send(session, message_id=message_id)
        await kit.started(session)
        agent = kit.agent(session)
        batch = agent.claim()
        assert batch is not None
        agent.answer(batch)
        kit.bus.delivery.poke(await kit.session(session))
        await kit.settle()
        assert (await kit.message(message_id, session))["status"] == "completed"
    await kit.ended(session)
    await kit.settle()


def month_later(kit: BusKit, *sessions: str) -> None:
    """31 days on; the sessions' runners have been there and pruned their own files."""
    kit.clock.advance(31 * DAY)
    for session in sessions or ("main",):
        folder = SessionFolder(kit.root / "sessions" / AGENT / session)
        runner = RunnerRetention(
            folder.inbox, folder.outbox, keep_ms=int(30 * DAY * 1000), batch=2, now_ms=kit.clock.now_ms
        )
        while runner.step().more:
            pass


async def test_a_pass_takes_what_is_old_and_tells_what_it_took(tmp_path: Path) -> None:
    kit = BusKit(tmp_path)
    async with kit.running() as bus:
        await answered(kit, "m1", "m2", "m3")
        assert (await bus.retention.prune()).taken == {}
        month_later(kit)
        last = await bus.retention.prune()
        assert dict(last.taken) == {"messages": 2, "receipts": 2}
        assert [row["id"] for row in await kit.inbound("SELECT id FROM messages_in")] == ["m3"]
        live = (await kit.operations.status())["live"]["retention"]
        assert live["keep_s"] == {
            "messages": 30 * DAY, "incarnations": 30 * DAY, "mailbox": 365 * DAY, "dead_letters": None,
            "idle_sessions": None,
        }  # fmt: skip
        assert live["last_pass"]["taken"] == {"messages": 2, "receipts": 2}
    told = {one["what"]: one["rows"] for one in status_report(tmp_path, kit.clock)["pruned"]}
    assert told == {"messages": 2, "receipts": 2}
    report = session_report(tmp_path, AGENT, "main", kit.clock)
    assert {one["what"]: one["rows"] for one in report["pruned"]} == told
    assert json.dumps(report["pruned"])


async def test_the_answer_to_a_pruned_message_is_none_to_a_new_one_of_its_id(tmp_path: Path) -> None:
    kit = BusKit(tmp_path)
    entries = [
        replace(ENTRY, message_out_id=f"of-{one}", agent=AGENT, session="main", in_reply_to=one) for one in ("m1", "m2")
    ]
    async with kit.running() as bus:
        bus.retention._mailbox.put_many(entries)
        await answered(kit, "m1", "m2")
        month_later(kit)
        assert (await bus.retention.prune()).taken["messages"] == 1
        await kit.send(message_id="m1")
        assert await kit.operations.wait_reply(AGENT, "main", "m1", 0.0) is None
        kept = await kit.operations.wait_reply(AGENT, "main", "m2", 0.0)
        assert kept is not None, "this message is still there"
        assert len(bus.retention._mailbox.read("me")) == 2, "whoever reads the mailbox still finds both"


async def test_an_idle_session_is_pruned_and_stays_idle(tmp_path: Path) -> None:
    kit = BusKit(tmp_path)
    async with kit.running() as bus:
        await answered(kit, "m1", "m2")
        await until(lambda: len(bus.sessions) == 0)
        month_later(kit)
        assert (await bus.retention.prune()).taken["messages"] == 1
        assert len(bus.sessions) == 0


async def test_a_session_that_has_not_changed_costs_no_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = BusKit(tmp_path)
    looked: list[str] = []
    real = daemon.maintenance.retention.prune_messages

    def noted(files: Any, *arguments: Any, **more: Any) -> Any:
        looked.append(files.folder.root.name)
        return real(files, *arguments, **more)

    monkeypatch.setattr("daemon.maintenance.retention.prune_messages", noted)
    async with kit.running() as bus:
        await answered(kit, "a1", "a2", session="aa")
        await answered(kit, "z1", "z2", session="zz")
        await bus.retention.prune()
        assert looked == ["aa", "zz"]
        await bus.retention.prune()
        assert looked == ["aa", "zz"]
        await kit.send("zz", message_id="z3", trigger=False)
        await bus.retention.prune()
        assert looked == ["aa", "zz", "zz"]
        kit.clock.advance(1.1 * DAY)
        await bus.retention.prune()
        assert looked[3:] == ["aa", "zz"]
        month_later(kit, "aa")
        assert (await bus.retention.prune()).taken["messages"] == 1


async def test_a_session_that_is_deleted_is_forgotten(tmp_path: Path) -> None:
    kit = BusKit(tmp_path)
    async with kit.running() as bus:
        for name in ("aa", "zz"):
            await answered(kit, f"{name}1", session=name)
        await bus.retention.prune()
        assert {key.session for key in bus.retention._looked} == {"aa", "zz"}
        await bus.executor.execute(DeleteSession(AGENT, "aa", by="root"))
        await bus.retention.prune()
        assert {key.session for key in bus.retention._looked} == {"zz"}


async def test_old_containers_and_mailbox_entries_go_by_their_own_ages(tmp_path: Path) -> None:
    kit = BusKit(tmp_path, retention={"incarnations_s": 2 * DAY, "messages_s": 0, "mailbox_s": 90 * DAY})
    async with kit.running() as bus:
        from tests.unit.channels.test_mailbox import numbered  # noqa: PLC0415

        bus.retention._mailbox.put(numbered(1, delivered_at=kit.clock.now_ms()))
        await answered(kit, "m1")
        await answered(kit, "m2")
        kit.clock.advance(3 * DAY)
        assert dict((await bus.retention.prune()).taken) == {"incarnations": 1}
        kit.clock.advance(88 * DAY)
        assert dict((await bus.retention.prune()).taken) == {"mailbox": 1}
        assert len(await kit.inbound("SELECT id FROM messages_in")) == 2


async def test_a_session_that_cannot_be_pruned_disturbs_no_other(tmp_path: Path) -> None:
    kit = BusKit(tmp_path)
    async with kit.running() as bus:
        for name in ("aa", "main", "zz"):
            await answered(kit, f"{name}1", f"{name}2", session=name)
        month_later(kit, "aa", "main", "zz")
        broken = await kit.session("main")

        def refuse(_: object = None) -> Any:
            raise StorageError("the disk says no")

        broken.files.inbound = refuse
        last = await bus.retention.prune()
        assert (last.errors, last.sessions, last.taken["messages"]) == (1, 3, 2)


async def test_a_session_in_quarantine_is_left_as_it_is(tmp_path: Path) -> None:
    kit = BusKit(tmp_path)
    async with kit.running() as bus:
        await answered(kit, "m1", "m2")
        month_later(kit)
        (await kit.session()).quarantined = "a test"
        assert (await bus.retention.prune()).taken == {}


async def test_room_goes_back_only_while_no_container_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.maintenance.retention._MIN_FREE_BYTES", 64 * 1024)
    kit = BusKit(tmp_path)
    path = tmp_path / "sessions" / AGENT / "main" / "in" / "inbound.db"
    async with kit.running() as bus:
        for number in range(3):
            await kit.send(message_id=f"m{number}", text="x" * 200_000)
        await kit.started()
        agent = kit.agent()
        batch = agent.claim()
        assert batch is not None
        agent.answer(batch)
        kit.bus.delivery.poke(await kit.session())
        await kit.settle()
        await kit.send(message_id="last", trigger=False)
        month_later(kit)
        before = path.stat().st_size
        assert (await bus.retention.prune()).taken["messages"] == 3
        assert path.stat().st_size == before, "its container runs"
        await kit.ended()
        await kit.send(message_id="again", trigger=False)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE messages_in SET status = 'cancelled' WHERE id = 'last'")
        month_later(kit)
        last = await bus.retention.prune()
        assert last.given_back > 0
        assert path.stat().st_size == before - last.given_back


async def test_the_daemon_makes_a_pass_soon_and_again(tmp_path: Path) -> None:
    kit = BusKit(tmp_path, retention={"interval_s": 0.01})
    async with kit.running() as bus:
        passes: list[int | None] = []
        real = bus.retention.prune

        async def counted() -> Any:
            passes.append(bus.retention.last.at)
            return await real()

        bus.retention.prune = counted
        await until(lambda: len(passes) >= 2)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [('"never"', 0.0), ("0", 0.0), ("86400", 86400.0), ("3600", None), ("-1", None), ('"soon"', None)],
)
async def test_an_age_is_never_shorter_than_what_may_be_repeated(
    tmp_path: Path, line: str, seconds: float | None
) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text(f"[retention]\nmessages_s = {line}\nmailbox_s = {line}\n")
    if seconds is None:
        with pytest.raises(ConfigError, match=r"retention\.messages_s") as refused:
            load_config(path)
        assert "retention.mailbox_s" in str(refused.value)
    else:
        retention = load_config(path).retention
        assert (retention.messages_s, retention.mailbox_s) == (seconds, seconds)


async def test_a_pass_expires_old_dead_letters_also_where_messages_are_kept_for_ever(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", retention={"messages_s": 0, "dead_letters_s": 7 * DAY})
    async with kit.running():
        await answered(kit, "m1")
        file_ = kit.bus.sessions.files_of(SessionKey(AGENT, "main"))

        def make_dead_letter() -> None:
            with file_.inbound() as db, db.transaction():
                db.execute(
                    "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at, last_error_code)"
                    " VALUES ('dead', 1, 'x', 'dead', 0, 'DELIVERY_PERMANENT')"
                )
                db.execute("INSERT INTO delivered VALUES ('dead', NULL, 'failed', '2000-01-01T00:00:00.000Z')")

        await (await kit.session()).call(make_dead_letter)
        await kit.bus.retention.prune()
        (closed,) = await kit.inbound("SELECT id, outcome, by FROM dead_letters_closed")
        assert closed == {"id": "dead", "outcome": "expired", "by": "clawbus"}
        assert (await kit.message("m1"))["status"] == "completed"
        await kit.settle()
