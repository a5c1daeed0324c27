"""Sends messages in the middle of a turn. Each is a separate row that is sent at once and is not an answer.

A row's id follows from the message that the turn works on and from what is said, so a later try that says the same
again sends nothing twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from container_runner.asking import insist
from container_runner.providers.protocol import Destination, OutMessage, TurnMessage
from container_runner.replies import Reply, plan_replies
from container_runner.shared.errors import AnswerInvalidError, AnswerTooLargeError, UnknownDestinationError
from container_runner.shared.outbox import Outbox
from container_runner.shared.sent_files import FileSource
from schema.errors import ClawbusError
from schema.ids import row_id
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
        self._life = next(message for message in messages if message.trigger).life(session)
        self._routing = routing
        self._destinations = destinations
        self._max_bytes = max_bytes
        self._note = note
        self._files = files
        self._said: Counter[tuple[str, str]] = Counter()
        self._first: dict[str, str] = {}  # by key: the id of the message that later ones with this key edit
        self._count = 0

    async def say(self, message: OutMessage, key: str | None) -> str:
        """Store a message to be sent now and return its id. With a key used before in this turn, it edits that message.

        Raise UnknownDestinationError, AnswerInvalidError or AnswerTooLargeError.
        """
        self._count += 1
        if self._count > MAX_PER_TURN:
            raise AnswerTooLargeError(f"The turn has sent more than {MAX_PER_TURN} messages before its end.")
        edited = self._first.get(key) if key is not None else None
        if edited is not None:
            message = replace(message, content={**message.content, "edits": edited})
        content, attached = await insist(lambda: self._files.attach(message.content), self._note)
        message = replace(message, content=content, attached=attached)
        plan = plan_replies([message], self._messages, self._routing, self._destinations)
        if plan.unknown:
            raise UnknownDestinationError(f"{plan.unknown[0][:200]!r} is not a destination here.")
        if any(len(reply.content.encode()) > self._max_bytes for reply in plan.replies):
            raise AnswerTooLargeError(f"A message has more than {self._max_bytes} bytes as JSON.")
        # A request to the host is made once, wherever the turn's messages came from.
        replies = plan.replies[-1:] if message.kind == Kind.SYSTEM else plan.replies
        ids = [self._id(reply, key, place) for place, reply in enumerate(replies)]
        for identity, reply in zip(ids, replies, strict=True):
            early = replace(reply, final=False)
            await insist(lambda one=identity, row=early: self._outbox.add(one, row), self._note)
        if not ids:
            raise AnswerInvalidError("The message has nowhere to go.")
        if key is not None:
            self._first.setdefault(key, ids[0])
        return ids[0]

    def _id(self, reply: Reply, key: str | None, place: int) -> str:
        said = (f"{place}:{key or ''}", reply.content)
        self._said[said] += 1
        return row_id("n", self._life, *said, str(self._said[said]))
