"""Asks a person on behalf of a running turn: writes the question and waits until the host records how it ended.

The host ends a question at its deadline. The runner's own, later deadline is only for a question that the host never saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import anyio
from anyio import to_thread

from container_runner.providers.protocol import TurnMessage
from container_runner.shared.errors import InboundUnreadableError
from container_runner.shared.outbox import Outbox
from container_runner.shared.reply import Reply
from container_runner.watch import InboundWatch
from schema.errors import ClawbusError
from schema.ids import row_id
from schema.os_faults import typed_host_errors
from schema.questions import Decision, Outcome, Question, key_of, to_content
from schema.rows import Address, Kind

_GRACE_S: Final = 30.0  # how much later the runner's deadline is: the host may be restarting at its own
_RETRY_S: Final = 0.5

_T = TypeVar("_T")


class Asking:
    """Asks the questions of one turn. `note(event, error)` logs that a file cannot be used now."""

    def __init__(
        self,
        outbox: Outbox,
        watch: InboundWatch,
        session: tuple[str, str],
        messages: Sequence[TurnMessage],
        routing: Address | None,
        note: Callable[[str, ClawbusError], None],
    ) -> None:
        self._outbox = outbox
        self._watch = watch
        # A question is about the turn's first trigger. A retry of a failed turn runs each trigger alone, so only the first
        # one's retry asks the same question again.
        self._about = next(message for message in messages if message.trigger)
        self._life = self._about.life(session)
        self._routing = routing
        self._note = note
        self._asked: Counter[str] = Counter()

    async def ask(self, question: Question, key: str | None) -> Decision | None:
        """Ask, and return how the question ended. A question that only notifies returns None as soon as it is stored."""
        identity = row_id("q", self._life, self._numbered(key or key_of(question), named=key is not None))
        reply = self._reply(to_content(identity, question))
        await insist(lambda: self._outbox.add(identity, reply), self._note)
        if question.notify:
            return None
        found = await self._decided(identity, question.timeout_s + _GRACE_S)
        # An earlier try may have asked it with a later deadline: the host, which has that one, ends the question.
        while found is None and await insist(lambda: self._outbox.is_asked(identity), self._note):
            found = await self._decided(identity, _GRACE_S)
        return found or Decision(Outcome.TIMEOUT, question.default)

    async def _decided(self, identity: str, seconds: float) -> Decision | None:
        """Return how the question ended, or None if it did not within these seconds."""
        deadline = anyio.current_time() + seconds
        while (left := deadline - anyio.current_time()) > 0:
            mark = self._watch.pokes
            found = await insist(lambda: self._outbox.decision(identity), self._note)
            if found is not None:
                return found
            await self._watch.after(mark, left)
        return None

    def _numbered(self, key: str, *, named: bool) -> str:
        """Return the key for the question's id. A question without a key gets a number, so that its repetitions differ."""
        if named:
            return f"k:{key}"
        self._asked[key] += 1
        return f"{self._asked[key]}:{key}"

    def _reply(self, content: str) -> Reply:
        about, routing = self._about, self._routing
        if about.channel_type is not None and about.platform_id is not None:
            address: Address | None = Address(about.channel_type, about.platform_id, about.thread_id)
        else:
            address = routing
        return Reply(
            kind=Kind.SYSTEM,
            content=content,
            in_reply_to=about.id,
            channel_type=address.channel_type if address else None,
            platform_id=address.platform_id if address else None,
            thread_id=address.thread_id if address else None,
            final=False,
        )


async def insist(work: Callable[[], _T], note: Callable[[str, ClawbusError], None]) -> _T:
    """Repeat `work` in a worker thread until the files can be used. The end of the turn cancels this."""
    while True:
        try:
            return await _in_thread(work)
        except InboundUnreadableError as error:
            note("write_delayed", error)
            await anyio.sleep(_RETRY_S / 10)
        except ClawbusError as error:
            note("write_delayed", error)
            await anyio.sleep(_RETRY_S)


async def _in_thread(work: Callable[[], _T]) -> _T:
    with typed_host_errors("the files cannot be used"):
        return await to_thread.run_sync(work)


Ask = Callable[[Question, str | None], Awaitable[Decision | None]]
