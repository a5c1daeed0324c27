"""Carries out what people ask of the bus in a chat: /help, /status, /stop, /new, /approve, /refuse.

The effect comes first, then one transaction in the session: the command as a finished message, and the answer. A crash between
the two has the platform hand the command in again, and each effect can be repeated without doing more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from daemon.channels.protocol import Accepted, PlaceMessage
from daemon.core.clock import Clock
from daemon.core.errors import (
    NotAnApproverError,
    PairingClosedError,
    RequestRefusedError,
    UnknownMessageError,
    UnknownUserError,
    UserRefusedError,
)
from daemon.core.message_verbs import CancelMessage
from daemon.core.people_verbs import DecidePairing
from daemon.core.repair_errors import MessageFinishedError
from daemon.core.routing import RouteTarget
from daemon.core.session_key import SessionKey
from daemon.core.user_commands import BuiltIn, Command, CommandRule, help_text
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.maintenance.daemon_executor import DaemonExecutor
from daemon.store import conversations, host_messages, messages
from daemon.store.transitions import change_status
from schema.instants import to_text
from schema.rows import Kind, MessageIn, MessageStatus

_MAX_STOPPED: Final = 100
# What the person who decides is told. Any other error is the host's: the command is handed in again.
_NOT_DECIDED: Final = (NotAnApproverError, PairingClosedError, RequestRefusedError, UnknownUserError, UserRefusedError)


class UserCommands:
    """Executes people's commands. `look` is called for a session that has an answer to deliver."""

    def __init__(
        self,
        sessions: Sessions,
        executor: DaemonExecutor,
        clock: Clock,
        look: Callable[[SessionKey], None],
        rules: Mapping[str, CommandRule],
    ) -> None:
        self.rules = rules
        self._sessions = sessions
        self._executor = executor
        self._clock = clock
        self._look = look

    async def run(self, command: Command, message: PlaceMessage, target: RouteTarget, message_id: str) -> Accepted:
        """Carry out one command of the bus, once, and return the message that records it. When it raises, nothing is stored."""
        session = await self._sessions.create(SessionKey(target.agent, target.session))
        # The answer to /new is kept where it was asked: asked again, the event finds it in the first generation.
        home = session
        if command.built_in is BuiltIn.NEW and target.base != target.session:
            home = await self._sessions.create(SessionKey(target.agent, target.base))
        known = await home.call(partial(_find, home, message_id))
        if known is not None:
            return _accepted(home.key, known, duplicate=True)
        if not command.allows(target.rank):
            text = f"/{command.name} needs another role here."
        else:
            text = await self._effect(command, message, target, session, message_id)
        row = await self._sessions.change(home, partial(_record, home, message, target, message_id, text))
        self._look(home.key)
        return _accepted(home.key, row, duplicate=False)

    async def _effect(
        self, command: Command, message: PlaceMessage, target: RouteTarget, session: Session, message_id: str
    ) -> str:
        """Carry out the command and return the answer for its sender."""
        match command.built_in:
            case BuiltIn.HELP:
                return help_text(self.rules, target.rank)
            case BuiltIn.STATUS:
                said = await session.call(partial(_status, session, self._clock.now_ms()))
                limited = self._executor.budgets.exceeded(session.key.agent) is not None
                return f"The limit for today is reached. {said}" if limited else said
            case BuiltIn.STOP:
                return await self._stop(session, target, message)
            case BuiltIn.NEW:
                return await self._begin_anew(target, message_id)
            case BuiltIn.APPROVE | BuiltIn.REFUSE:
                return await self._decide(command, target)
            case None:
                raise NotImplementedError(command.name)

    async def _stop(self, session: Session, target: RouteTarget, message: PlaceMessage) -> str:
        running = await session.call(partial(_unfinished, session, self._clock.now_ms()))
        by = f"/stop of {target.user or message.event.sender or 'somebody'}"[:200]
        stopped = 0
        for identity in running[:_MAX_STOPPED]:
            verb = CancelMessage(session.key.agent, session.key.session, by=by, id=identity)
            try:
                await self._executor.execute(verb)
                stopped += 1
            except (MessageFinishedError, UnknownMessageError):  # it ended meanwhile
                continue
        left = len(running) - _MAX_STOPPED
        if left > 0:
            more = f"{left} more {'waits' if left == 1 else 'wait'}"
            return f"Stopped {stopped} messages; {more}. Write /stop again to stop them too."
        return "Stopped." if stopped else "The agent is not working on anything."

    async def _begin_anew(self, target: RouteTarget, message_id: str) -> str:
        now = self._clock.now_ms()
        begin = partial(conversations.begin, key=(target.agent, target.base), by=message_id, now=now)
        await self._sessions.central(lambda registry: registry.with_file(begin))
        await self._executor.router.load()
        return "A new conversation begins with your next message."

    async def _decide(self, command: Command, target: RouteTarget) -> str:
        code, approve = command.arguments.split(" ")[0], command.built_in is BuiltIn.APPROVE
        try:
            done = await self._executor.execute(
                DecidePairing(
                    by=target.user or "user", code=code[:20], approve=approve, approver=target.user or "nobody"
                )
            )
        except _NOT_DECIDED as error:
            return str(error)
        return f"{done['sender']} is now {done['name']}." if done["name"] else f"{done['sender']} was refused."


def _find(session: Session, message_id: str) -> MessageIn | None:
    with session.files.inbound() as db:
        return messages.find(db, message_id)


def _unfinished(session: Session, now: int) -> list[str]:
    """Return what the agent works on, or would next: a claim may not have been noted yet."""
    with session.files.inbound() as db:
        due = [one.id for one in messages.pending(db, now) if one.trigger and (one.process_after or 0) <= now]
        return list(dict.fromkeys([*(one.message_id for one in messages.open_attempts(db)), *due]))


def _status(session: Session, now: int) -> str:
    with session.files.inbound() as db:
        running = len({one.message_id for one in messages.open_attempts(db)})
        left = len(messages.pending(db, now))
    if session.quarantined is not None:
        return "The session is held back; the operator knows why."
    if running:
        waiting = max(0, left - running)
        return f"The agent is working. {waiting} more {'message waits' if waiting == 1 else 'messages wait'}."
    return f"{left} {'message waits' if left == 1 else 'messages wait'}." if left else "The agent is resting."


def _record(
    session: Session, message: PlaceMessage, target: RouteTarget, message_id: str, text: str, now: int
) -> MessageIn:
    """Store the command as a finished message, and its answer, in one transaction."""
    address = message.address
    with session.files.inbound() as db, db.transaction():
        row = MessageIn(
            id=message_id,
            seq=messages.next_even_seq(db),
            kind=Kind.CHAT,
            timestamp=to_text(now),
            status=MessageStatus.PENDING,
            content=json.dumps(message.content, ensure_ascii=False),
            trigger=False,
            channel_type=address.channel_type,
            platform_id=address.platform_id,
            thread_id=address.thread_id,
        )
        detail = {"route": target.route, "sender": message.event.sender, "user": target.user, "command": True}
        messages.insert(db, row, now, detail=detail)
        change_status(db, message_id, MessageStatus.COMPLETED, "completed", now, detail={"by": "the bus"})
        host_messages.say(db, row, address, text, now)
    return row


def _accepted(key: SessionKey, row: MessageIn, *, duplicate: bool) -> Accepted:
    state = MessageStatus.COMPLETED.value
    return Accepted(row.id, key.agent, key.session, row.seq, duplicate, state=state)
