"""The local channel: woken by the commit, never by a clock; one commit for many; no delivery before its row is there."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from daemon.channels import local as local_module
from daemon.channels.local import LocalChannel
from daemon.channels.protocol import Accepted, Incoming, Outgoing, Receipt
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.store.mailbox import Mailbox, MailboxEntry, NewEntry
from schema.errors import FileBusyError, StorageError
from tests.support.bus_kit import until
from tests.support.channels import SetClock, build, outgoing

pytestmark = pytest.mark.anyio
FAR = 30.0


@pytest.fixture
def channel(tmp_path: Path) -> LocalChannel:
    return build(LocalChannel, "local", {}, tmp_path, SetClock())


class HeldMailbox(Mailbox):
    """Commits when a test lets it, and counts commits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go = threading.Event()
        self.entered = threading.Event()
        self.groups: list[int] = []
        self.errors: list[Exception] = []
        self.bad = ""

    def put_many(self, entries: Sequence[NewEntry]) -> list[int]:
        self.entered.set()
        assert self.go.wait(FAR)
        self.groups.append(len(entries))
        if self.errors:
            raise self.errors.pop(0)
        if self.bad in {entry.message_out_id for entry in entries}:
            raise StorageError("a bad entry")
        return super().put_many(entries)


@pytest.fixture
def held(channel: LocalChannel, tmp_path: Path) -> HeldMailbox:
    mailbox = HeldMailbox(tmp_path / "mailbox.db")
    channel._mailbox = mailbox
    channel._group._mailbox = mailbox
    return mailbox


async def settle() -> None:
    """Let every task go as far as it can."""
    await anyio.wait_all_tasks_blocked()


async def test_deliver_returns_only_after_the_commit(channel: LocalChannel, held: HeldMailbox) -> None:
    receipts: list[Receipt] = []

    async def deliver() -> None:
        receipts.append(await channel.deliver(outgoing()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deliver)
        assert await anyio.to_thread.run_sync(held.entered.wait, FAR)
        assert receipts == []
        held.go.set()
    assert receipts == [Receipt("1")]


async def test_what_comes_during_a_commit_shares_the_next_one(channel: LocalChannel, held: HeldMailbox) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.deliver, outgoing(message_out_id="first"))
        assert await anyio.to_thread.run_sync(held.entered.wait, FAR)
        for number in range(300):
            tasks.start_soon(channel.deliver, outgoing(message_out_id=f"out-{number}"))
        await settle()
        held.go.set()
    assert held.groups == [1, 256, 44]
    assert len(await channel.read("me", 0, 1000)) == 301


async def test_a_cancelled_delivery_takes_nobody_along(channel: LocalChannel, held: HeldMailbox) -> None:
    leader = anyio.CancelScope()

    async def lead() -> None:
        with leader:
            await channel.deliver(outgoing(message_out_id="leader"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lead)
        assert await anyio.to_thread.run_sync(held.entered.wait, FAR)
        tasks.start_soon(channel.deliver, outgoing(message_out_id="follower"))
        await settle()
        leader.cancel()
        held.go.set()
    assert {entry.message_out_id for entry in await channel.read("me", 0)} == {"leader", "follower"}


async def test_one_bad_entry_does_not_hold_back_its_neighbours(channel: LocalChannel, held: HeldMailbox) -> None:
    held.bad = "b"
    failed: list[str] = []

    async def deliver(name: str) -> None:
        try:
            await channel.deliver(outgoing(message_out_id=name))
        except TransientDeliveryError:
            failed.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deliver, "first")
        assert await anyio.to_thread.run_sync(held.entered.wait, FAR)
        for name in ("a", "b", "c"):
            tasks.start_soon(deliver, name)
        await settle()
        held.go.set()
    assert failed == ["b"]
    assert {entry.message_out_id for entry in await channel.read("me", 0)} == {"first", "a", "c"}
    assert held.groups == [1, 3, 1, 1, 1]


async def test_a_busy_file_is_transient_for_all_and_tried_once(channel: LocalChannel, held: HeldMailbox) -> None:
    held.errors = [FileBusyError("locked")]
    held.go.set()
    with pytest.raises(TransientDeliveryError, match="locked"):
        await channel.deliver(outgoing())
    assert held.groups == [1]
    assert await channel.deliver(outgoing()) == Receipt("1")


async def test_a_waiter_is_woken_by_the_commit(channel: LocalChannel) -> None:
    got: list[list[MailboxEntry]] = []

    async def wait() -> None:
        got.append(await channel.wait_new("me", 0, FAR))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await settle()
        await channel.deliver(outgoing(place="other"))
        await settle()
        assert got == []
        await channel.deliver(outgoing(message_out_id="mine"))
    assert [[entry.message_out_id for entry in entries] for entries in got] == [["mine"]] * 3
    assert channel._bells._bells == {}


async def test_a_client_that_has_everything_opens_no_file_and_misses_nothing(
    channel: LocalChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    real = channel.read

    async def read(mailbox: str, after: int, limit: int = 100) -> list[MailboxEntry]:
        reads.append(after)
        return await real(mailbox, after, limit)

    monkeypatch.setattr(channel, "read", read)
    await channel.deliver(outgoing(message_out_id="before"))
    got: list[str] = []

    async def follow() -> None:
        cursor = 0
        while len(got) < 3:
            for entry in await channel.wait_new("me", cursor, FAR):
                got.append(entry.message_out_id)
                cursor = entry.cursor

    async with anyio.create_task_group() as tasks:
        await tasks.start(channel.run, nobody)
        tasks.start_soon(follow)
        await until(lambda: got == ["before"])
        assert await channel.wait_new("me", 1, 0) == []
        assert reads == [0], "what was there before the start is looked for, and nothing after it until it is told of"
        await channel.deliver(outgoing(message_out_id="other"))
        await until(lambda: len(got) == 2)
        assert await taken_here(channel, outgoing(message_out_id="here")) == [Receipt("3")]
        await until(lambda: len(got) == 3)
        tasks.cancel_scope.cancel()
    assert got == ["before", "other", "here"]
    assert reads == [0, 1, 2]


async def test_what_is_there_is_returned_at_once(channel: LocalChannel) -> None:
    await channel.deliver(outgoing())
    assert len(await channel.wait_new("me", 0, 0)) == 1
    assert (await channel.wait_reply("a", "s", "in-1", -1)) is not None


async def test_a_wait_ends_with_nothing(channel: LocalChannel) -> None:
    assert await channel.wait_new("me", 0, 0.01) == []
    assert await channel.wait_reply("a", "s", "in-1", 0.01) is None
    assert channel._bells._bells == {}


async def test_a_waiter_does_not_read_the_file_while_it_waits(
    channel: LocalChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real = channel._mailbox.read
    monkeypatch.setattr(channel._mailbox, "read", lambda *args: reads.append("read") or real(*args))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.wait_new, "me", 0, FAR)
        while not reads:
            await settle()
        await settle()
        await channel.deliver(outgoing(place="other"))
        await channel.deliver(outgoing(message_out_id="mine"))
    assert reads == ["read", "read"]


async def test_an_answer_between_look_and_wait_is_not_missed(
    channel: LocalChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit happens after the waiter's look has read nothing and before the waiter sleeps."""
    real = channel.read
    looks = 0

    async def read(mailbox: str, after: int, limit: int = 100) -> list[MailboxEntry]:
        nonlocal looks
        looks += 1
        found = await real(mailbox, after, limit)
        if looks == 1:
            await channel.deliver(outgoing())
        return found

    monkeypatch.setattr(channel, "read", read)
    with anyio.fail_after(FAR):
        assert len(await channel.wait_new("me", 0, FAR * 2)) == 1


@pytest.mark.parametrize("message_id", ["in-1", "in-2", "in-3"])
async def test_a_reply_to_a_batch_answers_each_of_its_messages(channel: LocalChannel, message_id: str) -> None:
    got: list[MailboxEntry | None] = []

    async def wait() -> None:
        got.append(await channel.wait_reply("a", "s", message_id, FAR))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await settle()
        await channel.deliver(outgoing(message_out_id="no", in_reply_to="in-9"))
        await channel.deliver(outgoing(message_out_id="no", session="z", content='{"answers":["in-1","in-2","in-3"]}'))
        await settle()
        assert got == []
        content = json.dumps({"text": "all", "answers": ["in-2", 7, None, "../x", {}, "in-3"]})
        await channel.deliver(outgoing(in_reply_to="in-1", content=content))
    assert [entry.message_out_id if entry else None for entry in got] == ["out-1"]


@pytest.mark.parametrize("content", ["[]", "7", '"answers"', '{"answers": "in-2"}', '{"answers": {"in-2": 1}}'])
async def test_any_json_is_content(channel: LocalChannel, content: str) -> None:
    await channel.deliver(outgoing(content=content))
    assert await channel.wait_reply("a", "s", "in-2", 0) is None
    assert [entry.content for entry in await channel.read("me", 0)] == [content]


@pytest.mark.parametrize("place", ["", "x" * 201, "a\nb", "a\0b", "\ud800"])
async def test_a_bad_mailbox_name_is_permanent(channel: LocalChannel, place: str) -> None:
    with pytest.raises(PermanentDeliveryError):
        await channel.deliver(outgoing(place=place))


async def test_a_new_process_finds_what_the_old_one_delivered(channel: LocalChannel, tmp_path: Path) -> None:
    await channel.deliver(outgoing())
    again: LocalChannel = build(LocalChannel, "local", {}, tmp_path, SetClock())
    assert [entry.message_out_id for entry in await again.wait_new("me", 0, 0)] == ["out-1"]
    assert await again.deliver(outgoing(attempt=2)) == Receipt("1")


async def taken_here(channel: LocalChannel, *messages: Outgoing) -> Sequence[object] | None:
    """What `deliver_inline` says in a thread."""
    return await anyio.to_thread.run_sync(channel.deliver_inline, messages)


async def nobody(_: Incoming) -> Accepted:
    raise AssertionError("this channel takes nothing in by itself")


@pytest.mark.parametrize("waits_already", [False, True])
async def test_who_waits_since_the_acceptance_opens_the_file_only_if_something_came(
    channel: LocalChannel, waits_already: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    real, got = channel._mailbox.first_reply, list[MailboxEntry | None]()

    def first_reply(agent: str, session: str, message_id: str, after: int | None = None) -> MailboxEntry | None:
        looks.append(message_id)
        return real(agent, session, message_id, after)

    monkeypatch.setattr(channel._mailbox, "first_reply", first_reply)

    async def wait(top: int | None) -> None:
        got.append(await channel.wait_reply("a", "s", "in-1", FAR, accepted_at=top))

    async with anyio.create_task_group() as tasks:
        await tasks.start(channel.run, nobody)
        await channel.deliver(outgoing(message_out_id="earlier", in_reply_to="in-0"))
        top = channel.top
        async with anyio.create_task_group() as waits:
            if not waits_already:
                await channel.deliver(outgoing())
            waits.start_soon(wait, top)
            await settle()
            if waits_already:
                await channel.deliver(outgoing())
        tasks.cancel_scope.cancel()
    assert [one.message_out_id for one in got if one] == ["out-1"]
    assert looks == ([] if waits_already else ["in-1"])


async def test_what_is_taken_in_a_thread_wakes_who_waits(channel: LocalChannel) -> None:
    got: list[MailboxEntry | None] = []

    async def wait() -> None:
        got.append(await channel.wait_reply("a", "s", "in-1", FAR))

    async with anyio.create_task_group() as tasks:
        await tasks.start(channel.run, nobody)
        tasks.start_soon(wait)
        await settle()
        assert await taken_here(channel, outgoing()) == [Receipt("1")]
        while not got:
            await settle()
        assert await taken_here(channel, outgoing()) == [Receipt("1")], "the same key has the same receipt"
        tasks.cancel_scope.cancel()
    assert [entry.message_out_id for entry in got if entry is not None] == ["out-1"]


async def test_who_waits_is_woken_when_the_bus_has_recorded_what_was_taken(channel: LocalChannel) -> None:
    got: list[MailboxEntry | None] = []
    stored, recorded = threading.Event(), threading.Event()

    async def wait() -> None:
        got.append(await channel.wait_reply("a", "s", "in-1", FAR))

    def take() -> None:
        with channel.readers_held():
            assert channel.deliver_inline([outgoing()]) == [Receipt("1")]
            stored.set()
            assert recorded.wait(FAR)

    async with anyio.create_task_group() as tasks:
        await tasks.start(channel.run, nobody)
        tasks.start_soon(wait)
        await settle()
        tasks.start_soon(anyio.to_thread.run_sync, take)
        assert await anyio.to_thread.run_sync(stored.wait, FAR)
        await settle()
        assert got == []
        recorded.set()
        await until(lambda: bool(got))
        tasks.cancel_scope.cancel()
    assert [entry.message_out_id for entry in got if entry is not None] == ["out-1"]


async def test_nothing_is_taken_in_a_thread_while_another_commits_for_long_or_nobody_runs(
    channel: LocalChannel, held: HeldMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await taken_here(channel, outgoing()) is None, "who waits could not be woken"
    async with anyio.create_task_group() as tasks:
        await tasks.start(channel.run, nobody)
        held.go.set()
        await channel.deliver(outgoing(message_out_id="warm"))
        held.go.clear()
        held.entered.clear()
        tasks.start_soon(channel.deliver, outgoing(message_out_id="first"))
        assert await anyio.to_thread.run_sync(held.entered.wait, FAR)
        monkeypatch.setattr(local_module, "_INLINE_WAIT_S", 0.05)
        assert await taken_here(channel, outgoing()) is None
        held.go.set()
        while len(held.groups) < 2:
            await settle()
        tasks.cancel_scope.cancel()
    assert [entry.message_out_id for entry in await channel.read("me", 0)] == ["warm", "first"]


async def test_threads_that_wait_for_a_commit_share_the_next_one(channel: LocalChannel, held: HeldMailbox) -> None:
    got: dict[str, Sequence[object] | None] = {}

    async def take(name: str) -> None:
        got[name] = await taken_here(channel, outgoing(message_out_id=name))

    async with anyio.create_task_group() as tasks:
        await tasks.start(channel.run, nobody)
        tasks.start_soon(take, "first")
        assert await anyio.to_thread.run_sync(held.entered.wait, FAR)
        for number in range(5):
            tasks.start_soon(take, f"out-{number}")
        await until(lambda: len(channel._group._runs) == 5)
        held.go.set()
        await until(lambda: len(got) == 6)
        tasks.cancel_scope.cancel()
    assert held.groups == [1, 5]
    entries = await channel.read("me", 0)
    assert {name: [Receipt(str(entry.cursor))] for entry in entries for name in [entry.message_out_id]} == got


async def test_a_thread_whose_rows_another_one_took_and_failed_with_puts_them_itself(
    channel: LocalChannel, held: HeldMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(BaseException):
        pass

    got: dict[str, Sequence[object] | None] = {}
    real = held.put_many

    def put_many(entries: Sequence[NewEntry]) -> list[int]:
        if len(entries) == 2:
            raise Cut
        return real(entries)

    async def take(name: str) -> None:
        try:
            got[name] = await taken_here(channel, outgoing(message_out_id=name))
        except Cut:
            got[name] = None

    async with anyio.create_task_group() as tasks:
        await tasks.start(channel.run, nobody)
        tasks.start_soon(take, "first")
        assert await anyio.to_thread.run_sync(held.entered.wait, FAR)
        monkeypatch.setattr(held, "put_many", put_many)
        tasks.start_soon(take, "a")
        tasks.start_soon(take, "b")
        await until(lambda: len(channel._group._runs) == 2)
        held.go.set()
        await until(lambda: len(got) == 3)
        tasks.cancel_scope.cancel()
    assert sorted(str(got[name]) for name in ("a", "b")) == ["None", str([Receipt("2")])]


async def test_nothing_behind_a_failed_one_is_taken_in_a_thread(channel: LocalChannel, held: HeldMailbox) -> None:
    """Also not in the next commit of the same pile."""
    held.go.set()
    held.bad = "out-3"
    async with anyio.create_task_group() as tasks:
        await tasks.start(channel.run, nobody)
        messages = [outgoing(message_out_id=f"out-{number}") for number in range(300)]
        results = await taken_here(channel, *messages)
        assert results is not None
        assert [type(result) for result in results] == [Receipt] * 3 + [TransientDeliveryError]
        tasks.cancel_scope.cancel()
    assert len(await channel.read("me", 0, 1000)) == 3
