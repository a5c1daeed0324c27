"""The way in: what is refused, what is idempotent, what wakes, and that nothing is half written."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from daemon.channels.protocol import Incoming
from daemon.channels.webhook_refusals import FileFetchError
from daemon.core.attachments import Attachment, FilesToFetch
from daemon.core.errors import (
    AttachmentError,
    ContentError,
    IdConflictError,
    MessageError,
    UnknownAgentError,
    UnknownSessionError,
)
from daemon.core.session_key import SessionKey
from daemon.engine import ingress as ingress_module
from daemon.engine.dead_letters import drop_one
from daemon.maintenance import message_repair
from daemon.store import messages
from daemon.store.dead_letters import Operator
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from schema.errors import ClawbusError, InvalidNameError, StorageError
from schema.instants import to_text
from schema.rows import AckStatus, Address
from tests.support.bus_kit import AGENT, BusKit, until

pytestmark = [pytest.mark.anyio]


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncGenerator[BusKit]:
    made = BusKit(tmp_path / "data")
    async with made.running():
        yield made


class Remote:
    """A host of files whose links work once. `asked`: how often they were tried."""

    def __init__(self) -> None:
        self.asked = 0

    async def fetch(self) -> tuple[Attachment, ...]:
        self.asked += 1
        if self.asked > 1:
            raise FileFetchError("files.example.org answered 503.")
        return (Attachment("plan.txt", b"first"),)


def deep() -> Any:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"agent": "nobody"}, UnknownAgentError),
        ({"agent": "../etc"}, InvalidNameError),
        ({"session": ".."}, InvalidNameError),
        ({"session": "a//b"}, InvalidNameError),
        ({"session": ""}, InvalidNameError),
        ({"session": "x" * 241}, InvalidNameError),
        ({"session": "new", "create_session": False}, UnknownSessionError),
        ({"message_id": "a/b"}, InvalidNameError),
        ({"message_id": "a..b"}, InvalidNameError),
        ({"message_id": "x" * 201}, InvalidNameError),
        ({"content": {"a": float("nan")}}, ContentError),
        ({"content": {"a": object()}}, ContentError),
        ({"content": "\ud800"}, ContentError),
        ({"content": "x" * 1024**2}, ContentError),
        ({"content": deep()}, ContentError),
        ({"kind": "shout"}, MessageError),
        ({"recurrence": "often"}, MessageError),
        ({"recurrence": "* * * * * *"}, MessageError),
        ({"recurrence": "0 9 * *"}, MessageError),
        ({"recurrence": "@daily"}, MessageError),
        ({"recurrence": ",".join(["1"] * 500) + " * * * *"}, MessageError),
        ({"recurrence": "0 0 31 2 *"}, MessageError),
        ({"process_after": 2**62}, MessageError),
        ({"not_after": 2**62}, MessageError),
        ({"address": Address("fake", "\ud800")}, MessageError),
        ({"address": Address("fake", "room", "x" * 1001)}, MessageError),
        ({"address": Address("", "room")}, MessageError),
        ({"address": Address("local", "")}, MessageError),
        ({"address": Address("local", "a\nb")}, MessageError),
        ({"address": Address("local", "x" * 201)}, MessageError),
        ({"message_id": ""}, InvalidNameError),
    ],
)
async def test_a_refusal_is_typed_has_a_hint_and_stores_nothing(
    kit: BusKit, changes: dict[str, Any], error: type[ClawbusError]
) -> None:
    with pytest.raises(error) as caught:
        await kit.bus.ingress.accept(Incoming(**{"agent": AGENT, "session": "main", "content": "hi", **changes}))
    assert caught.value.hint
    assert await kit.bus.sessions.central(lambda registry: registry.all_keys(None, 10)) == []
    assert list((kit.root / "sessions").iterdir()) == []


async def test_the_same_id_with_the_same_content_is_one_row(kit: BusKit) -> None:
    first = await kit.send(message_id="m1")
    second = await kit.send(message_id="m1")
    assert (first.duplicate, second.duplicate) == (False, True)
    assert (first.seq, first.message_id) == (second.seq, second.message_id)
    assert len(await kit.inbound("SELECT * FROM messages_in")) == 1
    assert len(await kit.inbound("SELECT * FROM message_history WHERE event = 'accepted'")) == 1


async def test_a_duplicate_that_names_another_place_is_told_the_first_one_s(kit: BusKit) -> None:
    first, second = Address("local", "first"), Address("local", "second")
    await kit.send(message_id="m1", address=first)
    again = await kit.send(message_id="m1", address=second)
    assert (again.duplicate, again.address) == (True, first)


async def test_the_same_id_with_other_content_is_a_conflict_and_the_first_stands(kit: BusKit) -> None:
    await kit.send(text="first", message_id="m1")
    with pytest.raises(IdConflictError):
        await kit.send(text="second", message_id="m1")
    [row] = await kit.inbound("SELECT content FROM messages_in")
    assert row["content"] == '{"text": "first"}'


async def test_a_duplicate_repairs_a_lost_wake(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: Any) -> bool:
        await anyio.lowlevel.checkpoint()
        return False

    with monkeypatch.context() as patched:
        patched.setattr(type(kit.bus.supervisor), "wake", lost)
        await kit.send(message_id="m1")
        await kit.settle()
        await anyio.wait_all_tasks_blocked()
    assert kit.host.spawns == 0
    await kit.send(message_id="m1")
    await kit.started()


async def test_a_duplicate_of_a_finished_message_wakes_nothing(kit: BusKit) -> None:
    await kit.send(message_id="m1")
    await kit.started()
    agent = kit.agent()
    batch = agent.claim()
    assert batch is not None
    agent.answer(batch)
    kit.host.exit_now(kit.host.of_session("main").id)
    await kit.gone()
    assert (await kit.message("m1"))["status"] == "completed"
    assert (await kit.send(message_id="m1")).duplicate is True
    await kit.bus.sweeper.tick()
    await kit.fence()
    assert kit.spawned() == 1


async def test_concurrent_accepts_get_unique_even_seqs(kit: BusKit) -> None:
    seqs: list[int] = []

    async def send(number: int) -> None:
        seqs.append((await kit.send(text=str(number), message_id=f"m{number % 40}")).seq)

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(send, number)
    assert sorted(seqs) == [2 * number for number in range(1, 41)]


async def test_concurrent_first_messages_make_one_session(kit: BusKit) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(kit.send, "fresh", str(number))
    assert len(await kit.inbound("SELECT * FROM messages_in", session="fresh")) == 20


async def test_a_scheduled_message_wakes_at_its_time(kit: BusKit) -> None:
    await kit.send(process_after=kit.clock.now_ms() + 60_000)
    await kit.fence()
    assert kit.spawned() == 0
    kit.advance(59)
    await kit.fence()
    assert kit.spawned() == 0
    kit.advance(2)
    await kit.started()


async def test_a_scheduled_message_wakes_at_its_time_after_a_restart_and_a_jump_of_the_clock(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await kit.send(process_after=kit.clock.now_ms() + 3_600_000)
        await kit.bus.sweeper.tick()
        await kit.settle()
        assert len(kit.bus.sessions) == 0, "an idle session is a row, not an object"
        row = await kit.row()
        assert (row.active, row.next_due_at) == (False, kit.clock.now_ms() + 3_600_000)
    async with kit.running():
        await kit.settle()
        kit.clock.jump(-7200)
        kit.advance(1)
        await kit.fence()
        assert kit.spawned() == 0
        kit.clock.jump(4 * 3600)
        kit.advance(1)
        await kit.started()


async def test_context_does_not_wake_and_does_not_move_the_route(kit: BusKit) -> None:
    await kit.send(trigger=False, address=Address("fake", "elsewhere"))
    await kit.bus.sweeper.tick()
    await kit.fence()
    assert kit.spawned() == 0
    assert await kit.inbound("SELECT * FROM session_routing") == []
    await kit.send()
    await kit.started()


async def test_a_full_disk_is_an_error_and_nothing_is_half_written(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kit.send(message_id="m1")

    def full(*_: Any) -> None:
        raise StorageError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(messages, "set_routing", full)  # after the row and its history were written
        with pytest.raises(StorageError):
            await kit.send(message_id="m2")
    assert [row["id"] for row in await kit.inbound("SELECT id FROM messages_in")] == ["m1"]
    assert await kit.inbound("SELECT * FROM message_history WHERE message_id = 'm2'") == []
    assert (await kit.send(message_id="m2")).duplicate is False


@pytest.mark.parametrize("where", ["folder", "registry"])
async def test_a_session_that_could_not_be_made_can_be_made_later(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(
            SessionFiles if where == "folder" else Registry, "create" if where == "folder" else "activate", full
        )
        with pytest.raises(StorageError):
            await kit.send("fresh")
        assert await kit.bus.sessions.central(lambda registry: registry.session(SessionKey(AGENT, "fresh"))) is None
    await kit.send("fresh")
    await kit.started("fresh")


async def test_a_session_is_recorded_as_active_before_its_first_row_of_work(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kit.send(message_id="m1", trigger=False)
    await kit.bus.sweeper.tick()
    assert (await kit.row()).active is False
    seen: list[bool] = []
    real = ingress_module.store

    def looked(*arguments: Any) -> Any:
        row = Registry(kit.root / "central.db").session(SessionKey(AGENT, "main"))
        assert row is not None
        seen.append(row.active)
        return real(*arguments)

    monkeypatch.setattr(ingress_module, "store", looked)
    await kit.send(message_id="m2")
    assert seen == [True]


async def test_a_message_that_waits_for_the_sweep_to_retire_its_session_is_work_again(kit: BusKit) -> None:
    await kit.send(trigger=False)
    session = await kit.session()
    await kit.settle()
    async with anyio.create_task_group() as tasks, session.lock:
        tasks.start_soon(kit.bus.sweeper.sweep, session.key)
        await until(lambda: session.lock.statistics().tasks_waiting == 1)
        tasks.start_soon(kit.send)
        await until(lambda: session.lock.statistics().tasks_waiting == 2)
        # The sweep retires it, then the accept activates it: it must be among those with work.
    assert session in list(kit.bus.sessions)
    assert (await kit.row()).active is True


async def test_a_session_whose_folder_was_deleted_is_an_error_and_disturbs_nobody(kit: BusKit) -> None:
    import shutil  # noqa: PLC0415

    await kit.send("broken")
    await kit.started("broken")
    shutil.rmtree(kit.root / "sessions" / AGENT / "broken")
    kit.host.exit_now(kit.host.of_session("broken").id, 1)
    with pytest.raises(StorageError):
        await kit.send("broken")
    await kit.bus.sweeper.tick()
    await kit.send("fine")
    await kit.started("fine")


async def test_what_wakes_rings_once_it_is_committed_and_context_does_not(kit: BusKit) -> None:
    bell = kit.bus.sessions.files_of(SessionKey(AGENT, "main")).folder.inbox / ".bell"
    await kit.send(message_id="c1", trigger=False)
    assert not bell.exists()
    await kit.send(message_id="m1")
    assert bell.exists()


async def fail(kit: BusKit, message_id: str) -> None:
    """The agent answers with an error, and its container goes."""
    await kit.started()
    batch = kit.agent().claim()
    assert batch is not None
    assert [message.id for message in batch.messages] == [message_id]
    kit.agent().answer(batch, '{"text": "no", "error": {"code": "X", "message": "no"}}', status=AckStatus.FAILED)
    kit.host.exit_now(kit.host.of_session("main").id)
    await kit.gone()
    assert (await kit.message(message_id))["status"] == "failed"


async def test_an_id_that_failed_is_worked_on_again_when_it_is_sent_again(kit: BusKit) -> None:
    first = await kit.send(message_id="m1")
    assert (first.duplicate, first.state, first.previous, first.requeued_as) == (False, "pending", None, None)
    await fail(kit, "m1")
    again = await kit.send(message_id="m1")
    assert (again.message_id, again.duplicate, again.state) == ("m1", True, "pending")
    assert (again.previous, again.requeued_as) == ("failed", "m1+r1")
    assert again.seq == first.seq, "the seq belongs to the id that the answer names, not to the copy"
    row = await kit.message("m1+r1")
    assert (row["status"], row["content"], row["solo"]) == ("pending", '{"text": "hello"}', 1)
    repeated = await kit.send(message_id="m1")
    assert (repeated.previous, repeated.requeued_as, repeated.state) == ("failed", "m1+r1", "pending")
    assert len(await kit.inbound("SELECT * FROM messages_in")) == 2, "one requeue, however often it is sent"
    await fail(kit, "m1+r1")
    assert (await kit.send(message_id="m1")).requeued_as == "m1+r2"
    await kit.started()
    batch = kit.agent().claim()
    assert batch is not None
    kit.agent().answer(batch)
    kit.host.exit_now(kit.host.of_session("main").id)
    await kit.gone()
    done = await kit.send(message_id="m1")
    assert (done.previous, done.requeued_as, done.state) == ("failed", "m1+r2", "completed")
    closed = await kit.inbound("SELECT id, outcome, by, requeued_as FROM dead_letters_closed ORDER BY id")
    assert [(row["id"], row["by"], row["requeued_as"]) for row in closed] == [
        ("m1", "sender", "m1+r1"), ("m1+r1", "sender", "m1+r2"),
    ]  # fmt: skip


async def test_what_an_operator_dropped_is_worked_on_when_its_sender_sends_it_again(kit: BusKit) -> None:
    await kit.send(message_id="m1")
    await fail(kit, "m1")
    session = await kit.session()
    now = kit.clock.now_ms()
    await session.call(lambda: drop_one(session.files, "m1", Operator("ada"), now))
    assert (await kit.send(message_id="m1")).requeued_as == "m1+r1"


async def test_an_id_that_was_cancelled_and_retried_stands_for_the_message_that_does_the_work(kit: BusKit) -> None:
    await kit.send(message_id="m1", process_after=kit.clock.now_ms() + 1000)
    session, now = await kit.session(), kit.clock.now_ms()
    await session.call(lambda: message_repair.cancel(session.files, "m1", Operator("ada"), now, live=None))
    cancelled = await kit.send(message_id="m1")
    assert (cancelled.state, cancelled.previous, cancelled.requeued_as) == ("cancelled", None, None)
    await session.call(lambda: message_repair.retry(session.files, "m1", Operator("ada"), now))
    again = await kit.send(message_id="m1")
    assert (again.state, again.previous, again.requeued_as) == ("pending", "cancelled", "m1+r1")


async def test_a_message_may_expire(kit: BusKit) -> None:
    now = kit.clock.now_ms()
    for not_after, process_after in ((now, None), (now - 1, None), (now + 5, now + 5)):
        with pytest.raises(MessageError, match="at which the message is due"):
            await kit.send(not_after=not_after, process_after=process_after)
    await kit.send(message_id="m1", process_after=now + 5_000, not_after=now + 6_000)
    assert (await kit.message("m1"))["not_after"] == to_text(now + 6_000)
    kit.advance(9)
    await until(lambda: len(kit.fake.texts("room")) == 1)
    assert "expired" in kit.fake.texts("room")[0]
    assert (await kit.message("m1"))["status"] == "cancelled"
    assert kit.spawned() == 0, "nothing was started for it"


async def test_an_agents_default_expiry_counts_from_when_the_message_is_due(kit: BusKit) -> None:
    kit.bus.agents[AGENT] = kit.bus.agents[AGENT].model_copy(update={"expire_after_s": 60.0})
    now = kit.clock.now_ms()
    await kit.send(message_id="m1", process_after=now + 1_000_000)
    await kit.send(message_id="m2", process_after=now + 1_000_000, not_after=now + 2_000_000)
    assert (await kit.message("m1"))["not_after"] == to_text(now + 1_060_000)
    assert (await kit.message("m2"))["not_after"] == to_text(now + 2_000_000)


async def test_a_new_session_costs_two_looks_at_the_registry_and_one_commit(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    ours = ContextVar("ours", default=False)  # the bus's own tasks look at the registry too, whenever it suits them

    def counted(name: str) -> None:
        real = getattr(Registry, name)

        def call(*arguments: Any) -> Any:
            if ours.get():
                calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(Registry, name, call)

    for name in ("session", "activate", "add_sessions"):
        counted(name)
    ours.set(True)
    await kit.bus.sessions.create(SessionKey(AGENT, "fresh"))
    assert calls == ["session", "activate", "session"]
    await kit.bus.sessions.create(SessionKey(AGENT, "fresh"))
    assert len(calls) == 3


async def test_many_first_messages_at_once_make_one_session(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SessionFiles] = []
    real = SessionFiles.create

    def create(files: SessionFiles) -> None:
        made.append(files)
        real(files)

    monkeypatch.setattr(SessionFiles, "create", create)
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(partial(kit.send, "fresh", message_id=f"m{number}"))
    assert len(made) == 1
    session = await kit.bus.sessions.get(SessionKey(AGENT, "fresh"))
    with session.files.inbound() as db:
        assert len(db.all("SELECT 1 FROM messages_in")) == 5


async def test_what_an_agent_writes_to_another_answers_no_question_of_it(kit: BusKit) -> None:
    content = {"text": "see", "body": {"answer_to": f"q-{'a' * 16}", "choice": "approve"}}
    accepted = await kit.bus.ingress.accept(Incoming(AGENT, "main", content, relay="{}"))
    assert (accepted.seq, accepted.duplicate) == (2, False)
    assert (await kit.message(accepted.message_id))["status"] == "pending"


async def test_half_a_character_is_named(kit: BusKit) -> None:
    with pytest.raises(ContentError, match=r"half a character \(U\+D800\)") as refused:
        await kit.bus.ingress.accept(Incoming(AGENT, "main", {"text": "a\ud800"}))
    assert "U+FFFD" in refused.value.hint


# --- files that are named by URL


async def test_a_repeat_is_known_although_its_links_have_expired(kit: BusKit) -> None:
    """Its sender never got the answer, and sends the same again."""
    remote, inline = Remote(), Attachment("note.txt", b"mine")
    incoming = Incoming(
        AGENT, "main", {"text": "see"}, "m1", address=Address("fake", "room"), files=(inline,),
        to_fetch=FilesToFetch(1, remote.fetch),
    )  # fmt: skip
    first = await kit.bus.ingress.accept(incoming)
    again = await kit.bus.ingress.accept(incoming)
    assert (first.duplicate, again.duplicate, again.seq, remote.asked) == (False, True, first.seq, 1)
    folder = kit.bus.sessions.files_of(SessionKey(AGENT, "main")).folder.inbox / "inbox" / "m1"
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == {"note.txt": b"mine", "plan.txt": b"first"}


@pytest.mark.parametrize(
    "changes",
    [
        {"content": {"text": "other"}},
        {"files": (Attachment("note.txt", b"other"),)},
        {"files": ()},
        {"kind": "webhook"},
        {"content": ["not an object"]},
    ],
)  # fmt: skip
async def test_another_message_under_a_known_id_is_no_repeat(kit: BusKit, changes: dict[str, Any]) -> None:
    """It is refused, as it is without files."""
    remote = Remote()
    incoming = Incoming(
        AGENT, "main", {"text": "see"}, "m1", address=Address("fake", "room"), files=(Attachment("note.txt", b"mine"),),
        to_fetch=FilesToFetch(1, remote.fetch),
    )  # fmt: skip
    await kit.bus.ingress.accept(incoming)
    with pytest.raises((IdConflictError, AttachmentError)):
        await kit.bus.ingress.accept(replace(incoming, to_fetch=FilesToFetch(1, Remote().fetch), **changes))
