"""Shows where a message came from that an agent works on it, on channels that can: a typing sign.

A sign is a courtesy. It is not recorded, not repeated when it fails, and holds nothing up. It begins with the claim, is renewed
while the container makes progress, and ends with the turn. A daemon that starts in mid-turn shows none for that turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup, TaskStatus

from daemon.channels.protocol import Typing, TypingChannel
from daemon.core.clock import Clock
from daemon.core.events import (
    ContainerExited,
    MessageClaimed,
    MessageDeadLettered,
    MessageDeferred,
    MessageExpired,
    MessageRetried,
    MessageSettled,
    SessionEvent,
    Subscriptions,
    TurnStopped,
)
from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.store.outbound import heartbeat_at
from schema.errors import StorageError
from schema.os_faults import typed_host_errors
from schema.rows import Address

RENEW_S: Final = 10.0
_FRESH_MS: Final = 60_000  # a container that is silent this long is not shown as working
_SEND_S: Final = 5.0
_MAX: Final = 16  # signs under way at once

Ended = MessageSettled | MessageRetried | MessageDeadLettered | MessageDeferred | MessageExpired | TurnStopped
Place = tuple[SessionKey, Address]


@dataclass(eq=False, slots=True)
class _Open:
    """A sign that is shown: for which messages, and an event that is set when none of them is worked on any more."""

    about: str
    messages: set[str] = field(default_factory=set[str])
    ended: anyio.Event = field(default_factory=anyio.Event)


class TypingSigns:
    """Built once. `find` returns a session's object without reading a file."""

    def __init__(
        self,
        channels: Mapping[str, object],
        find: Callable[[SessionKey], Session | None],
        clock: Clock,
        events: Subscriptions,
        renew_s: float = RENEW_S,
    ) -> None:
        self._channels = {name: one for name, one in channels.items() if isinstance(one, TypingChannel)}
        self._find = find
        self._clock = clock
        self._renew_s = renew_s
        self._open: dict[Place, _Open] = {}
        self._tasks: TaskGroup | None = None
        self._log = structlog.get_logger("typing")
        events.subscribe(MessageClaimed, self._claimed)
        for kind in get_args(Ended):
            events.subscribe(kind, self._ended)
        events.subscribe(ContainerExited, self._exited)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Show signs until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    def _claimed(self, event: MessageClaimed) -> None:
        address = event.address
        channel = self._channels.get(address.channel_type) if address is not None else None
        if address is None or channel is None or self._tasks is None or not channel.shows_typing(address):
            return
        place = SessionKey(event.agent, event.session), address
        sign = self._open.get(place)
        if sign is None:
            if len(self._open) >= _MAX:
                return
            sign = self._open[place] = _Open(event.message_id)
            self._tasks.start_soon(self._show, channel, place, sign, name=f"typing {place[0]}")
        sign.messages.add(event.message_id)

    def _ended(self, event: Ended) -> None:
        for place in self._places(event):
            sign = self._open[place]
            sign.messages.discard(event.message_id)
            if not sign.messages:
                self._open.pop(place).ended.set()

    def _exited(self, event: ContainerExited) -> None:
        for place in self._places(event):
            self._open.pop(place).ended.set()

    def _places(self, event: SessionEvent) -> list[Place]:
        return [place for place in self._open if place[0] == (event.agent, event.session)]

    async def _show(self, channel: TypingChannel, place: Place, sign: _Open) -> None:
        """Show one sign, renew it while the container makes progress, and take it away."""
        key, address = place
        shown = Typing(address, key.agent, key.session, sign.about, on=True)
        while not sign.ended.is_set():
            if await self._progresses(key):
                await self._send(channel, shown)
            with anyio.move_on_after(self._renew_s):
                await sign.ended.wait()
        await self._send(channel, Typing(address, key.agent, key.session, sign.about, on=False))

    async def _progresses(self, key: SessionKey) -> bool:
        session = self._find(key)
        if session is None:
            return False
        try:
            with typed_host_errors("the heartbeat cannot be read"):
                at = await anyio.to_thread.run_sync(heartbeat_at, session.files.folder)
        except StorageError:
            return False
        return at is not None and self._clock.now_ms() - at < _FRESH_MS

    async def _send(self, channel: TypingChannel, sign: Typing) -> None:
        try:
            with anyio.fail_after(_SEND_S):
                await channel.typing(sign)
        except Exception as error:  # noqa: BLE001 - the next sign may succeed; no sign ever matters
            self._log.debug("typing_failed", agent=sign.agent, session=sign.session, error=f"{type(error).__name__}")
