"""The `local` channel: it stores answers in a durable mailbox that clients of the control socket read by cursor.

This channel only delivers: the control API passes its messages to the ingress itself. The channel must not report a delivery
before its row is committed. It must not poll the file either: each commit wakes the clients that wait for it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Generator, Hashable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, TypeVar, cast

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskStatus
from pydantic import BaseModel, ConfigDict

from daemon.channels.group_commit import GroupCommit, Ticket
from daemon.channels.protocol import Accept, Capabilities, ChannelContext, DeliveryFailure, Outgoing, Receipt
from daemon.core.answer_place import MAX_NAME, is_mailbox_name
from daemon.core.errors import ChannelError, PermanentDeliveryError, TransientDeliveryError
from daemon.core.sent_files import NONE
from daemon.store.data_layout import Layout
from daemon.store.mailbox import MAX_ANSWERS, Mailbox, MailboxEntry, NewEntry
from schema.errors import ClawbusError
from schema.handles import once_more
from schema.json_text import answered_ids

_INLINE_WAIT_S: Final = 2.0  # the longest wait for another thread's commit: the waiting thread holds its session's lock

_T = TypeVar("_T")


class LocalSettings(BaseModel):
    """[channels.local] has no settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalChannel:
    """The local channel. The channel registry always builds it.

    `run` must be running for `deliver_inline`, which otherwise returns None. All other methods work without it.
    """

    Settings: ClassVar[type[BaseModel]] = LocalSettings

    def __init__(self, context: ChannelContext) -> None:
        self.name = context.name
        self.capabilities = Capabilities(deduplicates=True, threads=True, files=True)
        self._clock = context.clock
        layout = Layout(context.data_dir)
        self._sessions = layout.sessions_dir
        self._mailbox = Mailbox(layout.mailbox_db, context.clock, self._report_loss)
        self._bells = _Bells()
        self._group = GroupCommit(self._mailbox, self._announce)
        self._held = threading.local()  # `tickets`: entries that this thread stored inside `readers_held`; None outside
        self._log = structlog.get_logger("local")
        self._loop: asyncio.AbstractEventLoop | None = None  # set while `run` runs
        self._top: int | None = None  # the highest cursor that was announced to waiting clients; None before `run`

    async def run(self, accept: Accept, *, task_status: TaskStatus[None]) -> None:
        """Prepare the mailbox file and then wait until cancelled. Raise ChannelError when the file cannot be used."""
        del accept  # the control API accepts this channel's messages
        try:
            await anyio.to_thread.run_sync(self._prepare)
            self._top = await anyio.to_thread.run_sync(self._mailbox.top)
        except ClawbusError as error:
            raise ChannelError(f"channel {self.name}: {error}", hint=error.hint) from error
        self._log.debug("local_mailbox_ready", path=str(self._mailbox.path))
        self._loop = asyncio.get_running_loop()
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            self._loop = None

    def _prepare(self) -> None:
        """Prepare the mailbox file. It is created before any session: if there are sessions, a missing file is a lost one."""
        self._mailbox.prepare(known=self._sessions.is_dir() and any(self._sessions.iterdir()))

    def _report_loss(self, first: int) -> None:
        self._log.error(
            "mailbox_lost", path=str(self._mailbox.path), first_cursor=first,
            hint="Entries that no client has read are left only in a backup. The sessions still have the answers.",
        )  # fmt: skip

    async def deliver(self, message: Outgoing) -> Receipt:
        """Store one message in the mailbox that its address names. Return a receipt with the cursor.

        Raise PermanentDeliveryError when no mailbox can hold the message, and TransientDeliveryError when the file cannot be
        written now.
        """
        entry = _new_entry(message, self._clock.now_ms())
        try:
            cursor = await self._group.put(entry)
        except ClawbusError as error:
            raise TransientDeliveryError(f"the mailbox cannot be written now: {error}", hint=error.hint) from error
        return Receipt(platform_message_id=str(cursor))

    async def deliver_many(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | DeliveryFailure]:
        """Deliver several messages in one commit. Return a receipt for each, up to the first that fails, and that one's error."""
        entries, refused = self._entries(messages)
        return _results(await self._group.put_many(entries), refused)

    def deliver_inline(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | DeliveryFailure] | None:
        """Do what `deliver_many` does, in the calling thread. Wake waiting clients at once, or at the end of `readers_held`.

        Return None when the channel does not run, or when the file stays busy; the entries may be stored all the same.
        """
        if self._loop is None:
            return None
        entries, refused = self._entries(messages)
        found = self._group.put_here(entries, _INLINE_WAIT_S)
        if found is None:
            return None
        own, stored = found
        held: list[Ticket] | None = getattr(self._held, "tickets", None)
        if held is not None:
            held += stored
        else:
            self._announce_from_thread(stored)
        return _results(own, refused)

    @contextmanager
    def readers_held(self) -> Generator[None]:
        """Return a context manager. What this thread delivers inside it wakes the waiting clients only at its end.

        They are woken even if it ends with an error.
        """
        self._held.tickets = held = list[Ticket]()
        try:
            yield
        finally:
            self._held.tickets = None
            self._announce_from_thread(held)

    def _announce_from_thread(self, stored: Sequence[Ticket]) -> None:
        """Call `_announce` in the event loop, from another thread."""
        loop = self._loop
        if stored and loop is not None:
            with suppress(RuntimeError):  # the event loop has ended, and every waiting client with it
                loop.call_soon_threadsafe(self._announce, stored)

    def _entries(self, messages: Sequence[Outgoing]) -> tuple[list[NewEntry], PermanentDeliveryError | None]:
        """Return the entries of the messages before the first that no mailbox can hold, and the error of that one, or None."""
        entries: list[NewEntry] = []
        for message in messages:
            try:
                entries.append(_new_entry(message, self._clock.now_ms()))
            except PermanentDeliveryError as error:
                return entries, error
        return entries, None

    @property
    def top(self) -> int | None:
        """The highest cursor that was announced to waiting clients; None before the channel runs."""
        return self._top

    async def read(self, mailbox: str, after: int, limit: int = 100) -> list[MailboxEntry]:
        """Return at most `limit` entries above the cursor `after`, oldest first. Only an empty list means that there are no more.

        Raise CursorAheadError or StorageError.
        """
        return await anyio.to_thread.run_sync(once_more, partial(self._mailbox.read, mailbox, after, limit))

    async def wait_new(self, mailbox: str, after: int, timeout_s: float, limit: int = 100) -> list[MailboxEntry]:
        """Like `read`, but wait up to `timeout_s` seconds for the first entry. Return an empty list when none arrived."""

        async def look() -> list[MailboxEntry]:
            # A client that has read everything calls again at once: do not open the file for it.
            known = self._top is not None and after >= self._top
            return [] if known else await self.read(mailbox, after, limit)

        return await self._bells.wait_until(("mailbox", mailbox), look, timeout_s) or []

    async def wait_reply(
        self,
        agent: str,
        session: str,
        message_id: str,
        timeout_s: float,
        after: int | None = None,
        accepted_at: int | None = None,
    ) -> MailboxEntry | None:
        """Return the first final entry that answers this message, or None when none arrived within `timeout_s` seconds.

        An entry answers a message when its in_reply_to, or "answers" in its content, names the message's id. With `after`,
        return the first such entry above that cursor, final or not.

        `accepted_at` saves opening the file: it is the value of `top` before the message was accepted. While `top` has not
        changed since, no entry can answer the message.
        """

        async def look() -> MailboxEntry | None:
            if accepted_at is not None and self._top == accepted_at:
                return None
            look = partial(self._mailbox.first_reply, agent, session, message_id, after)
            return await anyio.to_thread.run_sync(once_more, look)

        return await self._bells.wait_until(("reply", agent, session, message_id), look, timeout_s)

    def _announce(self, stored: Sequence[Ticket]) -> None:
        """Wake the clients that wait for any of these entries."""
        for ticket in stored:
            assert ticket.cursor is not None
            if self._top is not None:
                self._top = max(self._top, ticket.cursor)
            self._bells.ring(("mailbox", ticket.entry.mailbox))
            for message_id in ticket.entry.replied:
                # The waiting clients have found no answer in the mailbox, so a final entry is the first one: hand it over. Only
                # some of them want an entry that is not final: let each look into the file.
                found = ticket.entry.at(ticket.cursor) if ticket.entry.final else None
                self._bells.ring(("reply", ticket.entry.agent, ticket.entry.session, message_id), found)


def _results(tickets: Sequence[Ticket], refused: PermanentDeliveryError | None) -> list[Receipt | DeliveryFailure]:
    """Return a receipt for each entry up to the first that was not stored, and then the error of that one.

    If all were stored, `refused` comes last: the error of the message after them, which got no entry. Raise an error that is
    not a ClawbusError.
    """
    results: list[Receipt | DeliveryFailure] = []
    for ticket in tickets:
        if ticket.cursor is None:
            error = ticket.error
            if isinstance(error, ClawbusError):
                text = f"the mailbox cannot be written now: {error}"
                return [*results, TransientDeliveryError(text, hint=error.hint)]
            raise error or RuntimeError("neither a cursor nor an error")
        results.append(Receipt(platform_message_id=str(ticket.cursor)))
    return results if refused is None else [*results, refused]


def _new_entry(message: Outgoing, now_ms: int) -> NewEntry:
    """Return the mailbox entry for a message. Its fields come from a container, so check each one.

    Raise PermanentDeliveryError for an invalid field.
    """
    mailbox = message.address.platform_id
    if not is_mailbox_name(mailbox):
        raise PermanentDeliveryError(
            f"{mailbox[:MAX_NAME]!r} is not a valid mailbox name.", hint=f"Use 1 to {MAX_NAME} printable characters."
        )
    entry = NewEntry(
        mailbox=mailbox,
        message_out_id=message.message_out_id,
        agent=message.agent,
        session=message.session,
        in_reply_to=message.in_reply_to,
        kind=message.kind,
        thread_id=message.address.thread_id,
        content=message.content,
        delivered_at=now_ms,
        answers=_answers(message.content),
        final=message.final,
        files=json.dumps(message.files.to_json()) if message.files != NONE else None,
    )
    texts = (mailbox, entry.message_out_id, entry.in_reply_to, entry.kind, entry.thread_id, entry.content)
    try:
        "".join(text for text in texts if text is not None).encode("utf-8")
    except UnicodeEncodeError as error:
        raise PermanentDeliveryError("the message holds text that is not Unicode (a lone surrogate).") from error
    return entry


def _answers(content: str) -> tuple[str, ...]:
    """Return the ids in the content's "answers", at most MAX_ANSWERS. Raise PermanentDeliveryError if it is not JSON."""
    try:
        return answered_ids(json.loads(content))[:MAX_ANSWERS]
    except (ValueError, RecursionError) as error:
        raise PermanentDeliveryError(f"the content is not JSON: {error}") from error


class _Bells:
    """Lets tasks wait for a key. Each key with a waiter has one "bell", an event, which goes with the last waiter."""

    def __init__(self) -> None:
        self._bells: dict[Hashable, _Bell] = {}

    def ring(self, key: Hashable, found: object = None) -> None:
        """Wake the waiters of a key. `found`, unless None, is what they wait for: they return it without calling `look`."""
        bell = self._bells.pop(key, None)
        if bell is not None:
            bell.found = found
            bell.rung.set()

    async def wait_until(self, key: Hashable, look: Callable[[], Awaitable[_T]], timeout_s: float) -> _T | None:
        """Call `look`, and again after each ring, until it finds something or a ring brings it. Return that.

        Return None after `timeout_s` seconds.
        """
        deadline = anyio.current_time() + max(timeout_s, 0.0)
        while True:
            # Register the bell before calling `look`: then a commit that `look` just misses rings it.
            bell = self._bells.setdefault(key, _Bell(anyio.Event()))
            bell.waiters += 1
            try:
                found = await look()
                if found:
                    return found
                with anyio.move_on_after(deadline - anyio.current_time()) as scope:
                    await bell.rung.wait()
                if scope.cancelled_caught:
                    return None
                if bell.found is not None:
                    return cast("_T", bell.found)
            finally:
                bell.waiters -= 1
                if not bell.waiters and self._bells.get(key) is bell:
                    del self._bells[key]


@dataclass(slots=True)
class _Bell:
    rung: anyio.Event
    waiters: int = 0
    found: object = None
