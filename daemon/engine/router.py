"""Routes events of places to agents: decides with the pure router, then has the ingress store a message for each agent.

The order is: note where an agent was mentioned, store each message, answer. A crash between any two of these loses
nothing: the platform hands the event in again, and a message's id follows from the event's, so it is stored once.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, cast

import anyio
import structlog

from daemon.channels.protocol import Accepted, Incoming, PlaceMessage, Routed
from daemon.config.agents import Agent
from daemon.config.routes import RouteTable, stored_route
from daemon.core.answering import Person
from daemon.core.clock import Clock
from daemon.core.errors import RequestRefusedError
from daemon.core.events import EventRefused
from daemon.core.pairing import ASK_FOR_MS, MAX_WAITING, Pairing, pairing_code
from daemon.core.people import RoleScope
from daemon.core.routing import (
    Directory,
    EventKind,
    EventRefusal,
    PlaceEvent,
    RefusalReason,
    RouteTarget,
    RoutingTable,
    decide,
)
from daemon.core.user_commands import Command, CommandRule, command_of, generation_name, is_command
from daemon.engine.background import Background
from daemon.engine.earlier_sessions import EarlierSessions
from daemon.engine.events import Events
from daemon.engine.ingress import Ingress
from daemon.engine.sessions import Sessions
from daemon.store import conversations, people
from daemon.store import routes as store
from schema.errors import ClawbusError
from schema.handles import Reader

_RETRY_S: Final = 5.0  # seconds to wait after an error of central.db
_FLUSH_S: Final = 0.25  # seconds between two writes of refusals, so that a flood of them costs few commits
_MAX_PENDING: Final = 1_000
_MAX_EVENT_ID: Final = 500  # characters
_OVERFLOW: Final = store.RefusedKind("*", "*", "", "", "", "MORE")
# Reasons for which the sender matters; one row of the table for each of the others' places.
_ABOUT_SENDERS: Final = frozenset(
    {
        RefusalReason.UNKNOWN_SENDER,
        RefusalReason.APPROVAL_PENDING,
        RefusalReason.ROLE_TOO_LOW,
        RefusalReason.SENDER_REVOKED,
    }
)


class CommandRunner(Protocol):
    """Carries out what people ask of the bus itself."""

    rules: Mapping[str, CommandRule]

    async def run(self, command: Command, message: PlaceMessage, target: RouteTarget, message_id: str) -> Accepted:
        """Carry out a command, once, and return the message that records it."""
        ...


class Router:
    """Built once, called in the event loop. It is the `accept` of channels, so it passes on plain messages as well.

    `doubts` returns whether the clock may be wrong now: then no stranger's request is forgotten.
    """

    def __init__(
        self,
        ingress: Ingress,
        sessions: Sessions,
        configured: Iterable[RouteTable],
        clock: Clock,
        background: Background,
        events: Events,
        channels: Iterable[str],
        doubts: Callable[[], bool] = lambda: False,
    ) -> None:
        self._doubts = doubts
        self.channels = frozenset(channels)
        self._ingress = ingress
        self._sessions = sessions
        self._configured = tuple(configured)
        self._clock = clock
        self._background = background
        self._events = events
        self._directory = Directory()
        self._loaded = False
        self._mentioned: set[store.Mentioned] = set()  # the directory's own
        self._refused: dict[store.RefusedKind, store.RefusedCount] = {}
        self._flushing = False
        self._pairings: dict[tuple[str, str, str, str], Pairing] = {}
        self._earlier = EarlierSessions(sessions, clock)
        self._generations: dict[tuple[str, str], conversations.Generation] = {}
        self._commands: CommandRunner | None = None
        self._after_load: Callable[[], Awaitable[None]] | None = None
        self._log = structlog.get_logger("router")

    def answer_commands_with(self, runner: CommandRunner) -> None:
        """Have people's commands carried out by `runner`, which is built after the router."""
        self._commands = runner

    def follow_changes_with(self, after_load: Callable[[], Awaitable[None]]) -> None:
        """Have `after_load` called, and awaited, whenever the routes were read again."""
        self._after_load = after_load

    @property
    def agents(self) -> Mapping[str, Agent]:
        """The configured agents."""
        return self._ingress.agents

    @property
    def configured(self) -> tuple[RouteTable, ...]:
        """The routes of the configuration."""
        return self._configured

    @property
    def table(self) -> RoutingTable | None:
        """The routes that count; None before the first `load`."""
        return self._directory.table if self._loaded else None

    async def __call__(self, incoming: Incoming) -> Accepted:
        """See Accept: a message for a named session needs no route."""
        return await self._ingress.accept(incoming)

    async def load(self) -> None:
        """Read the directory from central.db: at the start, and after each change."""
        configured = [one.route() for one in self._configured]
        now = self._clock.now_ms()

        def read(
            db: Reader,
        ) -> tuple[Directory, list[str], list[Pairing], dict[tuple[str, str], conversations.Generation]]:
            directory, unusable = store.read_directory(db, configured, stored_route)
            return directory, unusable, people.open_pairings(db, now), conversations.generations(db)

        found = await self._sessions.central(lambda registry: registry.with_file(read))
        self._directory, unusable, pairings, self._generations = found
        self._pairings = {one.key: one for one in pairings}
        self._mentioned = set(self._directory.mentioned)
        self._directory = replace(self._directory, mentioned=self._mentioned)
        self._loaded = True
        for name in unusable:
            self._log.warning("route_unusable", route=name)
        if self._after_load is not None:
            await self._after_load()

    def reload_later(self, configured: Iterable[RouteTable]) -> None:
        """Take over the routes of a configuration that was read again."""
        self._configured = tuple(configured)
        self._background.later(self._load_until_done)

    async def _load_until_done(self) -> None:
        while True:
            try:
                return await self.load()
            except ClawbusError as error:
                self._log.warning("routes_not_loaded", code=error.code, error=str(error), retry_s=_RETRY_S)
            await anyio.sleep(_RETRY_S)

    async def event(self, message: PlaceMessage) -> Routed:
        """See Intake."""
        event = message.event
        if not 0 < len(event.id) <= _MAX_EVENT_ID:
            raise RequestRefusedError(f"an event's id has 1 to {_MAX_EVENT_ID} characters.")
        if self._commands is not None and is_command(event, self._commands.rules):
            event = replace(event, kind=EventKind.COMMAND)
            message = replace(message, event=event)
        decision = decide(self._directory, event, self.agents)
        accepted: list[Accepted] = []
        failure: ClawbusError | None = None
        for target in map(self._current, decision.targets):
            try:
                accepted.append(await self._take(message, target))
            except ClawbusError as error:  # the other agents get it all the same
                failure = failure or error
        if failure is not None:
            raise failure
        refusals = tuple([await self._asked(event, one) for one in decision.refusals])
        for refusal in refusals:
            self._note(event, refusal)
        return Routed(tuple(accepted), refusals)

    def _current(self, target: RouteTarget) -> RouteTarget:
        """Return the target with its session's current generation."""
        generation = self._generations.get((target.agent, target.session), conversations.Generation())
        return replace(target, base=target.session, session=generation_name(target.session, generation.number))

    async def _where_it_was(self, event: PlaceEvent, target: RouteTarget) -> RouteTarget:
        """Return the target with the session that took the event before its conversation began anew, if one did."""
        generation = self._generations.get((target.agent, target.base), conversations.Generation())
        before = await self._earlier.that_took(target.agent, target.base, generation, event_message_id(event))
        return target if before is None else replace(target, session=before)

    async def _take(self, message: PlaceMessage, target: RouteTarget) -> Accepted:
        """Store the event for one agent; or, if it is a command, have the bus answer it."""
        target = await self._where_it_was(message.event, target)
        runner, event = self._commands, message.event
        command = command_of(event, runner.rules) if runner is not None and target.trigger else None
        if runner is None or command is None:
            return await self._store(message, target)
        if command.built_in is not None or not command.allows(target.rank):
            return await runner.run(command, message, target, event_message_id(event))
        values = {"arguments": command.arguments, "sender": event.sender or "", "place": event.place,
                  "thread": event.thread or ""}  # fmt: skip
        text = command.rule.text.render(values) if command.rule.text is not None else event.text
        content = message.content
        known = cast("Mapping[str, object]", content) if isinstance(content, Mapping) else dict[str, object]()
        return await self._store(replace(message, content={**known, "text": text}), target)

    async def _asked(self, event: PlaceEvent, refusal: EventRefusal) -> EventRefusal:
        """Record a stranger's request to be let in, once. Return the refusal with the code of the request."""
        if refusal.reason is not RefusalReason.APPROVAL_PENDING or event.sender is None:
            return refusal
        now = self._clock.now_ms()
        scope = RoleScope.DIRECT if event.direct else RoleScope.GROUP
        wanted = Pairing(
            pairing_code(os.urandom(5)), event.channel, event.sender, refusal.agent, scope, event.place, now,
            now + ASK_FOR_MS,
        )  # fmt: skip
        known = self._pairings.get(wanted.key)
        if known is not None and known.is_refused(now):
            why = f"the sender {event.sender} was refused by {known.decided_by}"
            return replace(refusal, reason=RefusalReason.UNKNOWN_SENDER, why=why)
        if known is None or not known.waits(now):
            ask = partial(people.ask, wanted=wanted, doubted=self._doubts())
            known = await self._sessions.central(lambda registry: registry.with_file(ask))
            if known is None:
                why = f"{MAX_WAITING} strangers of channel {wanted.channel} wait for an approver already"
                return replace(refusal, reason=RefusalReason.UNKNOWN_SENDER, why=why)
            if len(self._pairings) > 2 * MAX_WAITING:  # of those that waited, most have expired
                self._pairings = {
                    key: one for key, one in self._pairings.items() if one.waits(now) or one.is_refused(now)
                }
            self._pairings[known.key] = known
            self._log.warning(
                "pairing_asked", code=known.code, channel=known.channel, sender=known.sender, agent=known.agent,
                place=known.place,
            )  # fmt: skip
        return replace(refusal, code=known.code)

    async def _store(self, message: PlaceMessage, target: RouteTarget) -> Accepted:
        event, now = message.event, self._clock.now_ms()
        has_files = bool(message.files) or message.to_fetch is not None
        at = (target.agent, event.channel, event.place, event.thread or "")
        if target.sticky and not self._directory.was_mentioned(target.agent, event):
            note = partial(store.note_mentioned, at=at, now_ms=now)
            await self._sessions.central(lambda registry: registry.with_file(note))
            self._mentioned.add(at)
            if len(self._mentioned) > 2 * store.MAX_MENTIONED:  # the file has the newest; retention takes the others
                self._background.later(self._load_until_done)
        return await self._ingress.accept(
            Incoming(
                agent=target.agent,
                session=target.session,
                content=message.content,
                message_id=event_message_id(event),
                kind=message.kind,
                address=message.address,
                trigger=target.trigger,
                traceparent=message.traceparent,
                not_after=message.not_after,
                files=message.files,
                to_fetch=message.to_fetch,
                # With files it is more than an answer to a question, which could not keep them.
                plain=event.text if event.kind is EventKind.MESSAGE and not has_files else None,
                person=Person(event.sender if event.verified else None, target.user, target.rank),
                note={"route": target.route, "sender": event.sender, "user": target.user, "why": target.why},
            )
        )

    # --- refusals

    def _note(self, event: PlaceEvent, refusal: EventRefusal) -> None:
        """Count a refusal. It reaches the table within a moment; a crash before that loses the count alone."""
        now = self._clock.now_ms()
        sender = (event.sender or "") if refusal.reason in _ABOUT_SENDERS else ""
        kind = store.RefusedKind(
            event.channel, storable(event.place), storable(sender), refusal.agent, refusal.route, refusal.reason.value
        )
        if kind not in self._refused and len(self._refused) >= _MAX_PENDING:
            kind = _OVERFLOW
        count = self._refused.setdefault(kind, store.RefusedCount(refusal.why, now, now))
        count.times += 1
        count.why, count.last_at = refusal.why, now
        if not self._flushing:
            self._flushing = True
            self._background.later(self._flush_until_none)

    async def _flush_until_none(self) -> None:
        try:
            while self._refused:
                try:
                    await self.flush()
                except ClawbusError as error:
                    self._log.warning("refusals_not_written", code=error.code, error=str(error), retry_s=_RETRY_S)
                    await anyio.sleep(_RETRY_S)
                await anyio.sleep(_FLUSH_S)
        finally:
            self._flushing = False

    async def flush(self) -> None:
        """Write the refusals that were counted, and publish them. Raise ClawbusError; then they are written the next time."""
        counted, self._refused = self._refused, {}
        try:
            await self._sessions.central(
                lambda registry: registry.with_file(partial(store.note_refused, counted=tuple(counted.items())))
            )
        except ClawbusError:
            self._keep(counted)
            raise
        for kind, count in counted.items():
            self._events.publish(
                EventRefused(
                    count.last_at, kind.channel, kind.place, kind.sender, kind.agent, kind.route, kind.reason,
                    count.why, count.times,
                )
            )  # fmt: skip

    def _keep(self, counted: Mapping[store.RefusedKind, store.RefusedCount]) -> None:
        """Put back counts that could not be written, beside those that came meanwhile."""
        for kind, count in counted.items():
            later = self._refused.get(kind)
            if later is not None:
                later.times += count.times
                later.first_at = count.first_at
            elif len(self._refused) < _MAX_PENDING:
                self._refused[kind] = count


def storable(text: str) -> str:
    """Return a name for a refusal, bounded in length, as text that SQLite can hold."""
    return text[:200].encode("utf-8", "backslashreplace").decode("utf-8")


def event_message_id(event: PlaceEvent) -> str:
    """Return the id of the message that an event becomes: the same for the same event, at any time."""
    parts = (event.channel, event.place, event.kind.value, event.id)
    joined = "\0".join(f"{len(one)}:{one}" for one in parts).encode("utf-8", "surrogatepass")
    return "ev-" + base64.b32encode(hashlib.sha256(joined).digest()[:20]).decode().lower()
