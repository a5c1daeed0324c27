"""Accepts messages: check, store, wake. Returns only after the row is committed; a refusal stores nothing.

Never opens outbound.db and never waits for a container.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Final

import anyio.to_thread
from cronsim import CronSim, CronSimError

from daemon.channels.protocol import Accepted, Incoming
from daemon.config.agents import Agent
from daemon.core.answer_place import check_address
from daemon.core.answering import Person
from daemon.core.attachments import IntakeLimits, attached, check_attachments, is_repeat, refuse_claimed_paths
from daemon.core.clock import Clock
from daemon.core.command_words import two_words
from daemon.core.errors import (
    ContentError,
    IdConflictError,
    MessageError,
    NotOwnedError,
    UnknownAgentError,
    UnknownSessionError,
)
from daemon.core.events import MessageAccepted, MessageRefused, MessageRequeued
from daemon.core.session_key import SessionKey
from daemon.core.trace import SpanStart, Tracing
from daemon.engine.events import Events
from daemon.engine.held_files import HeldFiles, end_others
from daemon.engine.message_events import question_decided
from daemon.engine.replies import Reply, record_plain_reply, record_reply, reply_in
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.troubles import ACCEPT, WRITE
from daemon.store import messages
from daemon.store.attachments import media_type, place_attachments
from daemon.store.dead_letters import Operator, latest_requeue, requeue_message
from daemon.store.questions import Asked
from schema.errors import ClawbusError, FileBusyError
from schema.frozen import frozen
from schema.handles import Writer
from schema.ids import check_message_id, check_name, check_session, new_id
from schema.instants import to_text
from schema.os_faults import typed_host_errors
from schema.rows import Address, Kind, MessageIn, MessageStatus

NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})
MAX_CRON: Final = 200
_CRON_FIELDS: Final = 5  # cronsim accepts a sixth field, for seconds: that would allow a message every second
SENDER: Final = Operator("sender", "the same id was sent again")
_MAX_PLAIN: Final = 300  # characters of a plain text that may answer a question
_LAST_INSTANT: Final = 253_402_300_799_999  # the end of the year 9999, in epoch milliseconds


class Ingress:
    """Accepts messages for known agents, and publishes an event for each, which wakes its session."""

    def __init__(
        self,
        sessions: Sessions,
        agents: Mapping[str, Agent],
        clock: Clock,
        held_files: HeldFiles,
        *,
        limits: IntakeLimits,
        tracing: Tracing,
        events: Events,
        elsewhere: Mapping[str, str] = NOWHERE,
    ) -> None:
        self.agents = agents
        self._elsewhere = elsewhere  # {agent: role} of the agents that daemons of another role own
        self._sessions = sessions
        self._clock = clock
        self._held_files = held_files
        self._limits = limits
        self._tracing = tracing
        self._events = events

    async def accept(self, incoming: Incoming) -> Accepted:
        """Store one message.

        Raise InvalidNameError, UnknownAgentError, UnknownSessionError, ContentError, AttachmentError, MessageError or
        IdConflictError. Raise StorageError or FileBusyError when it cannot be stored now.
        """
        try:
            return await self._accept(incoming, self._tracing.begin(incoming.traceparent))
        except ClawbusError as error:
            self._events.publish(MessageRefused(self._clock.now_ms(), error.code))
            raise

    async def _accept(self, incoming: Incoming, span: SpanStart) -> Accepted:
        now = self._clock.now_ms()
        key = SessionKey(check_name("agent", incoming.agent), check_session(incoming.session))
        if key.agent not in self.agents:
            if key.agent in self._elsewhere:
                raise NotOwnedError(f"agent {key.agent!r} belongs to the role {self._elsewhere[key.agent]}.")
            known = ", ".join(sorted(self.agents)) or "none"
            raise UnknownAgentError(f"there is no agent {key.agent!r} (known: {known}).")
        known = await self._stored_content(key, incoming)
        if known is not None:
            incoming = replace(incoming, content=known, files=(), to_fetch=None)
        elif incoming.to_fetch is not None:
            incoming = replace(incoming, files=(*incoming.files, *await incoming.to_fetch.fetch()), to_fetch=None)
        if incoming.files:
            with typed_host_errors("the message's files cannot be taken"):
                incoming = await anyio.to_thread.run_sync(with_files, incoming, now, self._limits)
        elif known is None:
            refuse_claimed_paths(incoming.content)
        message = replace(check(incoming, now, self._limits.max_content_bytes), traceparent=span.traceparent)
        if message.not_after is None:
            message = replace(message, not_after=_default_expiry(self.agents[key.agent], message, now))
        # A message from another agent answers no question: questions are for people.
        reply = reply_in(incoming.content) if incoming.relay is None else None
        if reply is not None:
            return await self._answer(key, message, reply, incoming)
        answered = await self._answer_plainly(key, message, incoming)
        if answered is not None:
            return answered
        session = await (self._sessions.create(key) if incoming.create_session else self._sessions.get(key))
        kept = await self._store(session, message, incoming, now)
        if session.deleted:
            session = await self._sessions.get(key)
        session.last_activity = now
        stored = kept.effective
        self._publish(key, kept, span)
        again = stored.id if stored.id != kept.known.id else None
        return Accepted(
            kept.known.id, key.agent, key.session, kept.known.seq, kept.duplicate, _address_of(stored),
            state=stored.status.value, previous=kept.previous, requeued_as=again,
        )  # fmt: skip

    async def _stored_content(self, key: SessionKey, incoming: Incoming) -> object:
        """Return the stored content of a message with files to fetch, if this is a repeat of it, else None."""
        if incoming.to_fetch is None or incoming.message_id is None:
            return None
        try:
            session = await self._sessions.get(key)
        except UnknownSessionError:
            return None
        row = await session.call(partial(_find, session, incoming.message_id))
        stored: object = json.loads(row.content) if row is not None else None
        return stored if is_repeat(incoming.content, stored, incoming.files, incoming.to_fetch.count) else None

    async def _answer(self, key: SessionKey, message: MessageIn, reply: Reply, incoming: Incoming) -> Accepted:
        """Record a reply to a question. It becomes no message: the agent gets it as the question's answer."""
        session = await self._sessions.get(key)
        rule = self.agents[key.agent].answers_from
        work = partial(
            record_reply, session.files, reply, message.id, incoming.address, rule, incoming.person or Person()
        )
        return self._answered(key, message, incoming, *await self._sessions.change(session, work))

    async def _answer_plainly(self, key: SessionKey, message: MessageIn, incoming: Incoming) -> Accepted | None:
        """Record a short text as the answer to a question that is open at its place. Return None if it is an ordinary message."""
        text, person, place = incoming.plain, incoming.person, incoming.address
        if text is None or person is None or place is None or not 0 < len(text) <= _MAX_PLAIN:
            return None
        try:
            session = await self._sessions.get(key)
        except UnknownSessionError:
            return None
        rule = self.agents[key.agent].answers_from
        work = partial(record_plain_reply, session.files, text, message.id, place, rule, person)
        try:
            found = await self._sessions.change(session, work)
        except ClawbusError:
            # The question is closed, so this is a message. Or the file has a problem, which storing the message reports.
            return None
        return self._answered(key, message, incoming, *found) if found is not None else None

    def _answered(self, key: SessionKey, message: MessageIn, incoming: Incoming, asked: Asked, fresh: bool) -> Accepted:
        if fresh:
            self._events.publish(question_decided(key, asked, self._clock.now_ms()))
        return Accepted(
            message.id, key.agent, key.session, 0, not fresh, incoming.address, state=MessageStatus.COMPLETED.value
        )

    def _publish(self, key: SessionKey, kept: Stored, span: SpanStart) -> None:
        now, stored = self._clock.now_ms(), kept.effective
        if kept.requeued:
            self._events.publish(
                MessageRequeued(now, key.agent, key.session, kept.known.id, stored.id, SENDER.name, SENDER.reason)
            )
        # Publish for a duplicate that is still pending as well: sending again repairs a lost wake.
        self._events.publish(
            MessageAccepted(
                now, key.agent, key.session, stored.id, stored.seq, stored.kind, stored.channel_type, stored.trigger,
                kept.duplicate, stored.status is MessageStatus.PENDING, stored.process_after, stored.not_after, span,
            )
        )  # fmt: skip

    async def _store(self, session: Session, message: MessageIn, incoming: Incoming, now: int) -> Stored:
        try:
            return await self._store_in(session, message, incoming, now)
        except UnknownSessionError:
            # The session was deleted while this message waited for its lock: create a new one with that name.
            if not session.deleted or not incoming.create_session:
                raise
            return await self._store_in(await self._sessions.create(session.key), message, incoming, now)

    async def _store_in(self, session: Session, message: MessageIn, incoming: Incoming, now: int) -> Stored:
        key = session.key
        try:
            async with session.lock:
                await self._sessions.activate(session)
                found = await session.call_locked(lambda: store(session, message, incoming, now))
        except (IdConflictError, MessageError, UnknownSessionError):
            raise
        except FileBusyError as error:
            self._sessions.troubles.failed(key, ACCEPT, error, now)
            await self._held_files.check(session)
            if session.held_by:
                raise FileBusyError(
                    f"process {', '.join(session.held_by)} keeps a lock on session {key}'s files;"
                    " the message was not stored.",
                    hint=f"{end_others(session.held_by)} Then send it again, with the same id.",
                    path=error.path,
                ) from error
            if not session.files.write_refused:
                raise
            raise FileBusyError(
                f"another process keeps a lock on session {key}'s inbound.db; the message was not stored.",
                hint="Send it again, with the same id, in a minute: a container that keeps the lock is ended after"
                f" sweep.claim_stuck_s. `clawbus session show {two_words(key.agent, key.session)}` shows its state.",
                path=error.path,
            ) from error
        except ClawbusError as error:
            self._sessions.troubles.failed(key, ACCEPT, error, now)
            raise
        self._sessions.troubles.healed(key, ACCEPT, WRITE)
        return found


def _address_of(stored: MessageIn) -> Address | None:
    if stored.channel_type is None or stored.platform_id is None:
        return None
    return Address(stored.channel_type, stored.platform_id, stored.thread_id)


def with_files(incoming: Incoming, now: int, limits: IntakeLimits) -> Incoming:
    """Return the message with its id chosen and its files named in its content. Raise AttachmentError, InvalidNameError."""
    check_attachments(incoming.files, limits)
    identity = check_message_id(incoming.message_id) if incoming.message_id is not None else new_id(now)
    content = attached(incoming.content, identity, incoming.files, media_type)
    return replace(incoming, message_id=identity, content=content)


def check(incoming: Incoming, now: int, max_content_bytes: int) -> MessageIn:
    """Check a message and return its row, without a seq. Raise as `Ingress.accept` does."""
    try:
        content = json.dumps(incoming.content, ensure_ascii=False, allow_nan=False)
        size = len(content.encode("utf-8"))
    except UnicodeEncodeError as error:
        half = f"U+{ord(str(error.object)[error.start]):04X}"
        raise ContentError(
            f"content has half a character ({half}), which UTF-8 cannot encode.",
            hint="Send the whole character, or U+FFFD in its place.",
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ContentError(f"content is not JSON: {error}.") from error
    if size > max_content_bytes:
        raise ContentError(f"content has {size} bytes; the limit is {max_content_bytes}.")
    if incoming.kind not in {kind.value for kind in Kind}:
        raise MessageError(f"kind {incoming.kind!r} is unknown.", hint=f"Use one of {', '.join(Kind)}.")
    if incoming.recurrence is not None:
        check_recurrence(incoming.recurrence)
    if incoming.process_after is not None:
        check_instant("process_after", incoming.process_after)
    if incoming.not_after is not None:
        check_instant("not_after", incoming.not_after)
    elif incoming.stop_late:
        raise MessageError("stop_late needs a not_after.", hint="Also name the time after which no answer is wanted.")
    address = incoming.address
    if address is not None:
        check_address(address)
    return MessageIn(
        id=check_message_id(incoming.message_id) if incoming.message_id is not None else new_id(now),
        seq=0,
        kind=incoming.kind,
        timestamp=to_text(now),
        status=MessageStatus.PENDING,
        content=content,
        process_after=incoming.process_after,
        recurrence=incoming.recurrence,
        trigger=incoming.trigger,
        channel_type=address.channel_type if address else None,
        platform_id=address.platform_id if address else None,
        thread_id=address.thread_id if address else None,
        on_wake=incoming.on_wake,
        not_after=incoming.not_after,
        stop_late=incoming.stop_late,
        relay=incoming.relay,
    )


def check_recurrence(expression: str) -> None:
    """Raise MessageError unless the expression has cron's five fields and fires at some time."""
    fields = len(expression.split())
    if fields != _CRON_FIELDS or len(expression) > MAX_CRON:
        raise MessageError(
            f"recurrence {expression[:MAX_CRON]!r} has {fields} fields; a cron expression has five: minute, hour, day of"
            " month, month, day of week."
        )
    try:
        next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise MessageError(f"recurrence {expression!r} is not a cron expression that fires: {error}.") from error


def check_instant(name: str, instant: int) -> None:
    """Raise MessageError unless the text columns can hold this instant (epoch milliseconds)."""
    try:
        to_text(instant)
    except OverflowError as error:
        raise MessageError(f"{name} {instant} is not an instant in the years 1 to 9999.") from error


def check_expiry(not_after: int | None, due: int) -> None:
    """Raise MessageError if a message would expire before it is due (both epoch milliseconds)."""
    if not_after is not None and not_after <= due:
        raise MessageError(
            f"not_after {to_text(not_after)} is not later than the time at which the message is due.",
            hint="Name a later time, or none.",
        )


def _default_expiry(agent: Agent, message: MessageIn, now: int) -> int | None:
    """Return when a message expires if its sender gave no expiry: epoch milliseconds, or None for never."""
    if not agent.expire_after_s:
        return None
    wanted = max(now, message.process_after or 0) + int(agent.expire_after_s * 1000)
    return wanted if wanted <= _LAST_INSTANT else None


@frozen
class Stored:
    """The result of storing. `known` is the message with the requested id, `effective` the one that the agent works on.

    They differ if the known message failed or was cancelled, and was requeued, now (`requeued`) or earlier.
    """

    known: MessageIn
    effective: MessageIn
    duplicate: bool = False
    requeued: bool = False

    @property
    def previous(self) -> str | None:
        """How the message with the requested id had ended before another one did its work, or None."""
        requeued = self.effective.id != self.known.id
        return self.known.status.value if self.duplicate and requeued else None


def store(session: Session, message: MessageIn, incoming: Incoming, now: int) -> Stored:
    """Write the row, its history and the session's route in one transaction.

    If the message with this id has failed, requeue it as an operator would: its sender still wants it done.
    """
    with session.files.inbound() as db, db.transaction():
        known = messages.find(db, message.id)
        if known is not None:
            if (known.content, known.kind) != (message.content, message.kind):
                raise IdConflictError(f"message id {message.id!r} was used for other content in {session.key}.")
            kept = _known(db, known, message, now)
        else:
            check_expiry(message.not_after, max(now, message.process_after or 0))
            stored = replace(message, seq=messages.next_even_seq(db))
            if incoming.files:
                place_attachments(session.files.folder, stored.id, incoming.files)
            messages.insert(db, stored, now, detail=incoming.note)
            kept = Stored(stored, stored)
        if incoming.address is not None and incoming.trigger and not kept.duplicate:
            messages.set_routing(db, incoming.address)
    if kept.effective.trigger and (kept.requeued or not kept.duplicate):
        session.files.ring()
    return kept


def _find(session: Session, message_id: str) -> MessageIn | None:
    with session.files.inbound() as db:
        return messages.find(db, message_id)


def _known(db: Writer, known: MessageIn, message: MessageIn, now: int) -> Stored:
    """Return the message that a repeated id stands for; requeue it if it failed."""
    latest = latest_requeue(db, known)
    if latest.status is not MessageStatus.FAILED:
        return Stored(known, latest, duplicate=True)
    check_expiry(message.not_after, now)
    again = requeue_message(db, latest, SENDER, now, not_after=message.not_after)
    return Stored(known, again, duplicate=True, requeued=True)
