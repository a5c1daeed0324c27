"""The router: which agents an event goes to, in which session, and whether it wakes them. Pure.

Each agent decides by itself, so one event may reach several. For one agent, its routes that cover the place are tried from
the highest priority down, an exact place before one that ends in `*`: the first that engages decides. If none engages,
the first that keeps context does. Who may write is asked after that, so a refused sender leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from daemon.core.patterns import Pattern
from daemon.core.people import RANK, People, UserRole
from daemon.core.place_names import escape, fitted, name_fault, session_name
from daemon.core.templates import MissingFieldError, Template
from schema.errors import InvalidNameError
from schema.frozen import frozen
from schema.ids import check_session

ANYWHERE: Final = "*"
MAX_WILDCARDS: Final = 1_000  # routes of one channel whose place ends in `*`: each is tested for every event


class EventKind(StrEnum):
    """What happened at the place."""

    MESSAGE = "message"
    EDIT = "edit"
    REACTION = "reaction"
    COMMAND = "command"  # the platform says that it is a command for us


class Engage(StrEnum):
    """When a route wakes its agent."""

    ALWAYS = "always"
    MENTION = "mention"
    STICKY = "mention-sticky"  # a mention, and then whatever follows in the thread; in a direct chat only mentions
    PATTERN = "pattern"


class Otherwise(StrEnum):
    """What happens to a message that does not wake the agent."""

    IGNORE = "ignore"
    CONTEXT = "context"  # the agent reads it with the next message that wakes it


class Senders(StrEnum):
    """Which senders a route admits. A revoked user is never admitted."""

    ANYONE = "anyone"
    KNOWN = "known"  # has a role for this agent in this kind of place
    ADMIN = "admin"
    OWNER = "owner"


class Unknown(StrEnum):
    """What happens to a sender who is not a known user, on a route that does not admit anyone."""

    REFUSE = "refuse"
    ASK = "ask"  # an approver is asked; the sender gets a code to name
    ADMIT = "admit"


class SessionMode(StrEnum):
    """The session rules that are not templates."""

    SHARED = "shared"  # one for the place
    THREAD = "per-thread"  # one for each thread of a group; the place's own without a thread and in a direct chat
    SENDER = "per-sender"


class RefusalReason(StrEnum):
    """Why an event reached no agent, or not this one."""

    NO_ROUTE = "NO_ROUTE"
    BAD_NAME = "BAD_NAME"
    NOT_ENGAGED = "NOT_ENGAGED"
    NOT_A_MESSAGE = "NOT_A_MESSAGE"
    UNKNOWN_SENDER = "UNKNOWN_SENDER"
    APPROVAL_PENDING = "APPROVAL_PENDING"
    ROLE_TOO_LOW = "ROLE_TOO_LOW"
    SENDER_REVOKED = "SENDER_REVOKED"
    AGENT_GONE = "AGENT_GONE"
    NO_SESSION_NAME = "NO_SESSION_NAME"


@frozen
class PlaceEvent:
    """Something that happened at a place, as a channel hands it in.

    `id` is the platform's own id of the event: the same id at the same place is the same event. `sender` is the platform's
    id of a person, and counts only with `verified`: the platform or a signature vouches for it. `direct`: a conversation
    with one person. `fields` are what templates may use beside the event's own values.
    """

    channel: str
    place: str
    id: str
    text: str = ""
    kind: EventKind = EventKind.MESSAGE
    thread: str | None = None
    sender: str | None = None
    verified: bool = True
    direct: bool = False
    mention: bool = False
    reply_to: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict[str, object])


@frozen
class Route:
    """A place's way to an agent. `place` may end in `*`. `session` is a mode or a template; `stored`: not from the file."""

    name: str
    channel: str
    place: str
    agent: str
    engage: Engage = Engage.ALWAYS
    pattern: Pattern | None = None
    otherwise: Otherwise = Otherwise.IGNORE
    senders: Senders = Senders.KNOWN
    unknown: Unknown = Unknown.REFUSE
    session: SessionMode | Template = SessionMode.THREAD
    priority: int = 0
    stored: bool = False

    @property
    def claim(self) -> tuple[str, str, str, int]:
        """The key that no two routes may share: otherwise it would be chance which of them decides."""
        return self.channel, self.place, self.agent, self.priority


@frozen
class RouteTarget:
    """An agent that the event goes to. `why` explains that to an operator."""

    route: str
    agent: str
    session: str
    trigger: bool
    user: str | None
    rank: int
    sticky: bool
    why: str
    base: str = ""  # the session as the route names it, before anyone started it over


@frozen
class EventRefusal:
    """Why the event reached no agent (`agent` and `route` empty), or not this one."""

    reason: RefusalReason
    why: str
    agent: str = ""
    route: str = ""
    code: str | None = None  # with APPROVAL_PENDING: what the sender tells an approver


@frozen
class RoutingDecision:
    """What happens to one event: the agents that it goes to, and the refusals."""

    targets: tuple[RouteTarget, ...] = ()
    refusals: tuple[EventRefusal, ...] = ()


class RoutingTable:
    """The routes, arranged by place. `routes` are those that count; of two with one name, the file's does."""

    __slots__ = ("_exact", "_wildcards", "routes")

    def __init__(self, routes: Iterable[Route]) -> None:
        by_name: dict[str, Route] = {}
        for route in sorted(routes, key=lambda one: one.stored):
            by_name.setdefault(route.name, route)
        self.routes: Mapping[str, Route] = by_name
        self._exact: dict[tuple[str, str], tuple[Route, ...]] = {}
        self._wildcards: dict[str, tuple[Route, ...]] = {}
        for route in by_name.values():
            if route.place.endswith(ANYWHERE):
                self._wildcards[route.channel] = (*self._wildcards.get(route.channel, ()), route)
            else:
                key = (route.channel, route.place)
                self._exact[key] = (*self._exact.get(key, ()), route)

    def covering(self, channel: str, place: str) -> Sequence[Route]:
        """Return the routes that cover a place, those that decide first in front."""
        found = self._exact.get((channel, place), ())
        wild = tuple(one for one in self._wildcards.get(channel, ()) if place.startswith(one.place[:-1]))
        if len(found) + len(wild) < 2:
            return found or wild
        return sorted((*found, *wild), key=_order)


def _order(route: Route) -> tuple[int, int, str]:
    # A longer beginning is the more exact place.
    exact = len(route.place) if route.place.endswith(ANYWHERE) else 1_000_000
    return -route.priority, -exact, route.name


def decides_before(first: Route, second: Route) -> bool:
    """Return whether `first` is asked before `second` at every place that both cover."""
    return _order(first) < _order(second)


@frozen
class Directory:
    """What decides about events: routes, people, and where agents were mentioned, as (agent, channel, place, thread)."""

    table: RoutingTable = field(default_factory=lambda: RoutingTable(()))
    people: People = field(default_factory=People)
    mentioned: AbstractSet[tuple[str, str, str, str]] = frozenset()

    def was_mentioned(self, agent: str, event: PlaceEvent) -> bool:
        """Return whether the agent was mentioned before at the event's place and thread."""
        return (agent, event.channel, event.place, event.thread or "") in self.mentioned


def decide(directory: Directory, event: PlaceEvent, agents: Container[str]) -> RoutingDecision:
    """Return what happens to an event when these agents are configured. Never raise."""
    for what in ("place", "thread", "sender"):
        value: str | None = getattr(event, what)
        fault = name_fault(value) if value is not None else None
        if fault is not None:
            return _nobody(RefusalReason.BAD_NAME, f"the {what}'s name {fault}")
    routes = directory.table.covering(event.channel, event.place)
    if not routes:
        return _nobody(RefusalReason.NO_ROUTE, f"no route covers the place {event.place} on {event.channel}")
    by_agent: dict[str, list[Route]] = {}
    for route in routes:
        by_agent.setdefault(route.agent, []).append(route)
    outcomes = [_for_agent(own, event, directory, agents) for own in by_agent.values()]
    return RoutingDecision(
        tuple(one for one in outcomes if isinstance(one, RouteTarget)),
        tuple(one for one in outcomes if isinstance(one, EventRefusal)),
    )


def _nobody(reason: RefusalReason, why: str) -> RoutingDecision:
    return RoutingDecision(refusals=(EventRefusal(reason, why),))


def _for_agent(
    routes: Sequence[Route], event: PlaceEvent, directory: Directory, agents: Container[str]
) -> RouteTarget | EventRefusal:
    first = routes[0]
    if first.agent not in agents:
        return _refused(first, RefusalReason.AGENT_GONE, f"there is no agent {first.agent}")
    for route in routes:
        why = _engages(route, event, directory)
        if why is not None:
            return _admitted(route, event, directory.people, why, trigger=True)
    for route in routes:
        if route.otherwise is Otherwise.CONTEXT:
            return _admitted(
                route, event, directory.people, "does not engage the agent; kept as context", trigger=False
            )
    if event.kind in (EventKind.EDIT, EventKind.REACTION):
        return _refused(
            first, RefusalReason.NOT_A_MESSAGE, f"an {event.kind} wakes no agent, and the route keeps no context"
        )
    return _refused(first, RefusalReason.NOT_ENGAGED, f"{_wanted(first)}, and the route keeps no context")


def _refused(route: Route, reason: RefusalReason, why: str) -> EventRefusal:
    return EventRefusal(reason, why, route.agent, route.name)


def _wanted(route: Route) -> str:
    match route.engage:
        case Engage.PATTERN:
            return "the text does not match the route's pattern"
        case Engage.STICKY:
            return "the agent is not mentioned, and was not before in this thread"
        case _:
            return "the agent is not mentioned"


def _engages(route: Route, event: PlaceEvent, directory: Directory) -> str | None:
    """Return why the event wakes the route's agent, or None."""
    if event.kind is EventKind.COMMAND:
        return "is a command"
    if event.kind is not EventKind.MESSAGE:
        return None
    match route.engage:
        case Engage.ALWAYS:
            return "every message engages"
        case Engage.PATTERN:
            return "the text matches the pattern" if route.pattern is None or route.pattern.search(event.text) else None
        case Engage.MENTION:
            return "the agent is mentioned" if event.mention else None
        case Engage.STICKY:
            if event.mention:
                return "the agent is mentioned"
            before = not event.direct and directory.was_mentioned(route.agent, event)
            return "the agent was mentioned before in this thread" if before else None


_WANTED_RANK: Final[Mapping[Senders, int]] = MappingProxyType(
    {
        Senders.ANYONE: 0,
        Senders.KNOWN: RANK[UserRole.MEMBER],
        Senders.ADMIN: RANK[UserRole.ADMIN],
        Senders.OWNER: RANK[UserRole.OWNER],
    }
)


def _admitted(
    route: Route, event: PlaceEvent, people: People, why: str, *, trigger: bool
) -> RouteTarget | EventRefusal:
    sender = event.sender if event.verified else None
    user = people.user_of(event.channel, sender)
    if user is not None and user in people.revoked:
        return _refused(route, RefusalReason.SENDER_REVOKED, f"the sender {sender} was revoked")
    rank = people.rank(user, route.agent, direct=event.direct)
    if rank < _WANTED_RANK[route.senders]:
        refusal = _unwelcome(route, event, sender, user)
        if refusal is not None:
            return refusal
    session = _session(route, event, user)
    if isinstance(session, EventRefusal):
        return session
    sticky = trigger and route.engage is Engage.STICKY and not event.direct
    return RouteTarget(route.name, route.agent, session, trigger, user, rank, sticky, why)


def _unwelcome(route: Route, event: PlaceEvent, sender: str | None, user: str | None) -> EventRefusal | None:
    """Return why a sender without the role is refused, or None if the route admits the sender anyway."""
    where = "a direct chat" if event.direct else "a group"
    if user is not None:
        wanted = "no role" if route.senders is Senders.KNOWN else f"no role {route.senders} or higher"
        return _refused(
            route, RefusalReason.ROLE_TOO_LOW, f"the user {user} has {wanted} for agent {route.agent} in {where}"
        )
    if route.unknown is Unknown.ADMIT:
        return None
    if sender is None:
        what = "names no sender" if event.sender is None else f"names {event.sender}, and nothing vouches for that"
        return _refused(route, RefusalReason.UNKNOWN_SENDER, f"the event {what}")
    if route.unknown is Unknown.ASK:
        return _refused(
            route, RefusalReason.APPROVAL_PENDING, f"the sender {sender} is not a known user; an approver is asked"
        )
    return _refused(route, RefusalReason.UNKNOWN_SENDER, f"the sender {sender} is not a known user")


def _session(route: Route, event: PlaceEvent, user: str | None) -> str | EventRefusal:
    try:
        match route.session:
            case SessionMode.SHARED:
                return session_name(event.channel, event.place)
            case SessionMode.THREAD:
                if event.thread is None or event.direct:
                    return session_name(event.channel, event.place)
                return session_name(event.channel, event.place, event.thread)
            case SessionMode.SENDER:
                if event.sender is None or not event.verified:
                    why = "there is one session per sender, and nothing vouches for one"
                    return _refused(route, RefusalReason.NO_SESSION_NAME, why)
                return fitted(f"{escape(event.channel)}:{escape(event.place)}:@{escape(event.sender)}")
            case _:
                if not route.session.has_fields:
                    return check_session(route.session.text)
                return fitted(route.session.render(values_of(event, user), escape))
    except (MissingFieldError, InvalidNameError) as error:
        return _refused(route, RefusalReason.NO_SESSION_NAME, f"no session can be named: {error}")


EVENT_VALUES: Final = frozenset(("channel", "place", "thread", "sender", "user", "kind", "text", "event", "body"))


def values_of(event: PlaceEvent, user: str | None) -> Mapping[str, object]:
    """Return what a template may use."""
    return {
        **event.fields,
        "channel": event.channel,
        "place": event.place,
        "thread": event.thread,
        "sender": event.sender if event.verified else None,
        "user": user,
        "kind": event.kind.value,
        "text": event.text,
    }
