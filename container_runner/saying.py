"""Sends messages in the middle of a turn. Each is a separate row that is sent at once and is not an answer.

A row's id follows from the message that the turn works on and from what is said, so a later try that says the same
again sends nothing twice. A later try may work on fewer messages, so the id does not depend on who shares the turn.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from container_runner.asking import insist
from container_runner.providers.protocol import Destination, OutMessage, TurnMessage
from container_runner.replies import Reply, first_from, plan_replies
from container_runner.shared.errors import AnswerInvalidError, AnswerTooLargeError, UnknownDestinationError
from container_runner.shared.outbox import Outbox
from container_runner.shared.sent_files import FileSource
from schema.errors import ClawbusError
from schema.ids import MessageLife, row_id
from schema.json_text import encode
from schema.rows import Address, Kind

MAX_PER_TURN: Final = 1000

Say = Callable[[OutMessage, str | None], Awaitable[str]]


class Saying:
    """Sends the messages of one turn before its end. `note(event, error)` logs a file that cannot be used now."""

    def __init__(
        self,
        outbox: Outbox,
        session: tuple[str, str],
        messages: Sequence[TurnMessage],
        routing: Address | None,
        destinations: Sequence[Destination],
        max_bytes: int,
        note: Callable[[str, ClawbusError], None],
        files: FileSource,
    ) -> None:
        self._outbox = outbox
        self._messages = messages
        self._session = session
        self._life = next(message for message in messages if message.trigger).life(session)
        self._routing = routing
        self._destinations = destinations
        self._max_bytes = max_bytes
        self._note = note
        self._files = files
        self._said: Counter[tuple[MessageLife, str, str]] = Counter()
        # By key and address: the id of the message that later ones with this key edit there.
        self._first: dict[tuple[str, Address | None], str] = {}
        self._count = 0

    async def say(self, message: OutMessage, key: str | None) -> str:
        """Store a message to be sent now and return its id. With a key used before in this turn, it edits that message.

        Raise UnknownDestinationError, AnswerInvalidError or AnswerTooLargeError.
        """
        self._count += 1
        if self._count > MAX_PER_TURN:
            raise AnswerTooLargeError(f"The turn has sent more than {MAX_PER_TURN} messages before its end.")
        content, attached, _ = await insist(lambda: self._files.attach(message.content), self._note)
        message = replace(message, content=content, attached=attached)
        plan = plan_replies([message], self._messages, self._routing, self._destinations)
        if plan.unknown:
            raise UnknownDestinationError(f"{plan.unknown[0][:200]!r} is not a destination here.")
        if any(len(reply.content.encode()) > self._max_bytes for reply in plan.replies):
            raise AnswerTooLargeError(f"A message has more than {self._max_bytes} bytes as JSON.")
        # A request to the host is made once, wherever the turn's messages came from.
        replies = plan.replies[-1:] if message.kind == Kind.SYSTEM else plan.replies
        named = message.to is not None or message.kind == Kind.SYSTEM
        rows = [self._row(reply, key, named=named) for reply in replies]
        for identity, row in rows:
            await insist(lambda one=identity, early=row: self._outbox.add(one, early), self._note)
        if not rows:
            raise AnswerInvalidError("The message has nowhere to go.")
        return rows[0][0]

    def _row(self, reply: Reply, key: str | None, *, named: bool) -> tuple[str, Reply]:
        """Return the row of a reply with its id. `named`: it goes to a place that the agent chose, or to the host."""
        address = _address(reply)
        first = None if named else first_from(self._messages, self._routing, address)
        life = self._life if first is None else first.life(self._session)
        content: dict[str, object] = json.loads(reply.content)
        edited = self._first.get((key, address)) if key is not None else None
        if edited is not None:
            content["edits"] = edited
            reply = replace(reply, content=encode(content))
        content.pop("answers", None)  # the ids of the messages that share the turn
        said = (life, key or "", encode(content))
        self._said[said] += 1
        identity = row_id("n", life, key or "", said[2], str(self._said[said]))
        if key is not None:
            self._first.setdefault((key, address), identity)
        return identity, replace(reply, final=False)


def _address(reply: Reply) -> Address | None:
    if reply.channel_type is None or reply.platform_id is None:
        return None
    return Address(reply.channel_type, reply.platform_id, reply.thread_id)
