"""The channel `agent`: hands a row of one agent to another by storing it as a message in that agent's session.

It is the ordinary delivery: an intent in the asker's inbound.db, the message in the receiver's, the receipt in the asker's. The
message's id follows from the row's, so a crash between any two of them stores it once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, cast

import anyio.to_thread

from daemon.channels.protocol import Accepted, Capabilities, Incoming, Outgoing, Receipt
from daemon.config.agents import Agent
from daemon.config.models import AgentMessages
from daemon.core import relays
from daemon.core.attachments import Attachment
from daemon.core.clock import Clock
from daemon.core.destinations import AGENT_CHANNEL
from daemon.core.errors import (
    AgentHopLimitError,
    AttachmentError,
    ContentError,
    IdConflictError,
    MessageError,
    NotOwnedError,
    PermanentDeliveryError,
    TransientDeliveryError,
    UnknownAgentError,
    UnknownSessionError,
)
from daemon.core.place_names import chained_name, session_name
from daemon.core.relays import Bucket, Relay, Root
from daemon.core.sent_files import SentFiles
from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.store import relays as store
from schema.errors import ClawbusError, InvalidNameError, StorageError
from schema.frozen import frozen
from schema.handles import Reader
from schema.os_faults import typed_host_errors
from schema.rows import Address

T = TypeVar("T")

_FINAL: Final = (
    AttachmentError,
    ContentError,
    IdConflictError,
    InvalidNameError,
    MessageError,
    NotOwnedError,
    UnknownAgentError,
    UnknownSessionError,
)
_MAX_PAIRS: Final = 10_000
# Fields that name things of the sender's own session.
_DROPPED: Final = frozenset({"answer_to", "attachments", "answers", "edits", "files"})
_ENDLESS: Final = "The agents passed this on to each other too often, and were stopped."


@frozen
class AgentChannelParts:
    """What the channel works with. `accept` is the ingress. `poke` has a session's answers delivered soon."""

    sessions: Sessions
    agents: Mapping[str, Agent]
    limits: AgentMessages
    clock: Clock
    accept: Callable[[Incoming], Awaitable[Accepted]]
    poke: Callable[[Session], object]


class AgentChannel:
    """Built by the daemon itself: no table of the configuration makes one, and nothing comes in from outside."""

    def __init__(self, parts: AgentChannelParts) -> None:
        self.capabilities = Capabilities(deduplicates=True, threads=True, files=True)
        self._parts = parts
        self._buckets: dict[tuple[str, str], Bucket] = {}

    async def deliver(self, message: Outgoing) -> Receipt:
        """Store the row as a message of the other agent. Raise TransientDeliveryError or PermanentDeliveryError."""
        try:
            return Receipt((await self._hand_over(message)).message_id)
        except (PermanentDeliveryError, TransientDeliveryError):
            raise
        except _FINAL as error:
            raise PermanentDeliveryError(str(error), hint=error.hint) from error
        except ClawbusError as error:
            raise TransientDeliveryError(f"{error.code}: {error}") from error

    async def _hand_over(self, message: Outgoing) -> Accepted:
        asker = SessionKey(message.agent, message.session)
        session = await self._parts.sessions.get(asker)
        sent = await session.call(
            partial(_reading, session, lambda db: store.why_sent(db, message.in_reply_to, message.address))
        )
        if sent.answers is not None:
            return await self._answer(message, sent.answers, sent.before or sent.answers)
        to = message.address.platform_id
        if to not in self._parts.agents:
            raise UnknownAgentError(f"there is no agent {to!r} in this daemon's configuration.")
        relay = relays.question((message.agent, message.session), sent.cause, sent.before)
        if relay.hops > self._parts.limits.max_hops:
            await self._tell_root(relay.root)
            way = " -> ".join((*relay.path, to))
            raise AgentHopLimitError(
                f"it was passed on {relay.hops - 1} times, and agent_messages.max_hops allows no more: {way}."
            )
        self._pace(message.agent, to)
        target = SessionKey(to, await self._session_for(asker, to))
        return await self._store(message, target, Address(AGENT_CHANNEL, *asker), relay, trigger=True)

    async def _session_for(self, asker: SessionKey, to: str) -> str:
        """Return the name of the session in which `to` is asked: a chain's older, escaped name while there is such a session."""
        name, older = chained_name(AGENT_CHANNEL, *asker), session_name(AGENT_CHANNEL, *asker)
        if name != older and await self._parts.sessions.look_up(SessionKey(to, older)) is not None:
            return older
        return name

    async def _answer(self, message: Outgoing, asked: Relay, before: Relay) -> Accepted:
        """Return the row to the session that asked: as a message whose answers go where that session's question came from."""
        self._pace(message.agent, asked.agent)
        target = SessionKey(asked.agent, asked.session)
        session = await self._parts.sessions.get(target)
        if await session.call(partial(_reading, session, lambda db: store.is_of_another_life(db, asked.cause))):
            raise PermanentDeliveryError(
                f"the session {target} that asked was deleted; the one of this name now did not ask.",
                hint="Nobody waits for this answer: `clawbus dead drop` it.",
            )
        place = await session.call(partial(_reading, session, lambda db: store.place_of(db, asked.cause)))
        relay = relays.answer(asked, (message.agent, message.session), before)
        # A mid-turn message wakes nobody: it is read together with the answer. Otherwise each would cost the asker a turn.
        return await self._store(message, target, place, relay, trigger=message.final)

    async def _store(
        self, message: Outgoing, target: SessionKey, place: Address | None, relay: Relay, *, trigger: bool
    ) -> Accepted:
        files: tuple[Attachment, ...] = ()
        if message.files.files:
            with typed_host_errors("the message's files cannot be read"):
                files = await anyio.to_thread.run_sync(_read_files, message.files)
        return await self._parts.accept(
            Incoming(
                agent=target.agent,
                session=target.session,
                content=_content(message),
                message_id=relayed_id(message.key),
                address=place,
                trigger=trigger,
                create_session=not relay.reply,
                traceparent=message.traceparent,
                note={"from_agent": message.agent, "from_session": message.session, "hops": relay.hops},
                relay=relay.to_text(),
                files=files,
            )
        )

    def _pace(self, sender: str, to: str) -> None:
        """Raise TransientDeliveryError while this pair of agents has used up its messages: the row waits, and is not lost."""
        if len(self._buckets) > _MAX_PAIRS:
            self._buckets.clear()
        limits = self._parts.limits
        bucket = self._buckets.setdefault((sender, to), Bucket(limits.per_minute, limits.burst))
        wait_s = bucket.wait_s(self._parts.clock.monotonic())
        if wait_s:
            raise TransientDeliveryError(
                f"{sender} has sent {to} more than agent_messages.per_minute allows, {limits.per_minute:g}.",
                retry_after_s=wait_s,
                paced=True,
            )

    async def _tell_root(self, root: Root) -> None:
        """Notify the person whose message began the chain that it has ended. Repeating the call sends no second notice."""
        session = await self._parts.sessions.look_up(SessionKey(root.agent, root.session))
        if session is None or root.message is None:
            return
        identity = root.message

        def tell(now: int) -> bool:
            with session.files.inbound() as db:
                return store.tell_root(db, identity, AgentHopLimitError.code, _ENDLESS, now)

        if await self._parts.sessions.change(session, tell):
            self._parts.poke(session)


def relayed_id(key: str) -> str:
    """Return the id of the message that a row becomes at the other agent: the same for the same row."""
    return "ag-" + base64.b32encode(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:20]).decode().lower()


def _read_files(sent: SentFiles) -> tuple[Attachment, ...]:
    """Read the host's own copies; they are within limits.max_attachment_bytes. Raise StorageError."""
    try:
        return tuple(Attachment(one.name, Path(one.path).read_bytes()) for one in sent.files)
    except OSError as error:
        raise StorageError(f"a file of the message cannot be read: {error.strerror}.") from error


def _content(message: Outgoing) -> dict[str, object]:
    content: object = json.loads(message.content)
    if not isinstance(content, dict):
        return {"text": content if isinstance(content, str) else message.content, "from_agent": message.agent}
    fields = cast("dict[str, object]", content)
    return {**{key: one for key, one in fields.items() if key not in _DROPPED}, "from_agent": message.agent}


def _reading(session: Session, read: Callable[[Reader], T]) -> T:
    with session.files.inbound() as db:
        return read(db)
