"""The router's tables. The first holds what NanoClaw 2.0.64 does with wirings, engage modes, senders and sessions.

Source: nanocoai/nanoclaw src/router.ts (evaluateEngage, routeInbound, deliverToAgent) and src/session-manager.ts. Its words
in ours: pattern `.` is always; drop/accumulate is ignore/context; sender_scope all/known and unknown_sender_policy
public/strict/request_approval are senders anyone/known with unknown refuse/ask; agent-shared is a session with a fixed name.
Four things differ on purpose: a pattern that cannot be read is refused when it is written (NanoClaw lets it match everything);
a stranger's message is no context either where the route admits known senders only; only a mention makes a thread sticky
(in NanoClaw a message that was kept as context did as well); and `shared` is one session in a place with threads, too (NanoClaw
makes that one for each thread). Its command gate is tests/bus/maintenance/test_user_commands.py's, and one message id in
several agents' sessions tests/bus/engine/test_router.py's.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from daemon.core.patterns import Pattern
from daemon.core.people import Grant, People, RoleScope, UserRole
from daemon.core.routing import (
    Directory,
    Engage,
    EventKind,
    Otherwise,
    PlaceEvent,
    RefusalReason,
    Route,
    RoutingDecision,
    RoutingTable,
    Senders,
    SessionMode,
    Unknown,
    decide,
)
from daemon.core.templates import parse

AGENTS = ("andy", "bob")
PEOPLE = People(
    {("chat", "ann"): "ann", ("chat", "eve"): "eve", ("chat", "max"): "max", ("chat", "olga"): "olga", ("chat", "dora"): "dora"},
    {
        "ann": (Grant(UserRole.MEMBER, "andy"),),
        "max": (Grant(UserRole.ADMIN, "andy"),),
        "olga": (Grant(UserRole.OWNER),),
        "eve": (Grant(UserRole.OWNER),),
        "dora": (Grant(UserRole.MEMBER, "andy", RoleScope.DIRECT),),
    },
    frozenset({"eve"}),
)  # fmt: skip


def route(name: str = "r", **keys: Any) -> Route:
    made: dict[str, Any] = {"channel": "chat", "place": "room", "agent": "andy", "senders": Senders.ANYONE, **keys}
    return Route(name, **made)


def event(text: str = "hello", **values: Any) -> PlaceEvent:
    made: dict[str, Any] = {"channel": "chat", "place": "room", "id": "1", "sender": "ann", **values}
    return PlaceEvent(text=text, **made)


def said(decision: RoutingDecision) -> list[str]:
    """`agent/session` of what wakes, `(agent/session)` of context, then the reasons."""
    reached = [
        f"{one.agent}/{one.session}" if one.trigger else f"({one.agent}/{one.session})" for one in decision.targets
    ]
    return [*reached, *(one.reason.value for one in decision.refusals)]


def run(routes: list[Route], happened: PlaceEvent, *mentioned: tuple[str, str, str, str]) -> list[str]:
    return said(decide(Directory(RoutingTable(routes), PEOPLE, frozenset(mentioned)), happened, AGENTS))


class Row(NamedTuple):
    what: str
    routes: list[Route]
    event: PlaceEvent
    found: list[str]
    mentioned: tuple[tuple[str, str, str, str], ...] = ()


ANDY = "andy/chat:room"
BEFORE = (("andy", "chat", "room", "t1"),)
STICKY = route(engage=Engage.STICKY)
NANOCLAW = (
    Row("a place that is wired to nobody", [], event(), ["NO_ROUTE"]),
    Row("a mention there, which registers nothing by itself", [], event(mention=True), ["NO_ROUTE"]),
    Row("pattern . is always", [route()], event(""), [ANDY]),
    Row("no pattern at all is .", [route(engage=Engage.PATTERN)], event("x"), [ANDY]),
    Row("a pattern that matches anywhere", [route(engage=Engage.PATTERN, pattern=Pattern(r"\bbuild\b"))], event("now build it"), [ANDY]),
    Row("a pattern that does not", [route(engage=Engage.PATTERN, pattern=Pattern(r"\bbuild\b"))], event("rebuilding"), ["NOT_ENGAGED"]),
    Row("a pattern ignores mentions", [route(engage=Engage.PATTERN, pattern=Pattern("x"))], event(mention=True), ["NOT_ENGAGED"]),
    Row("a pattern is case-sensitive unless it says so", [route(engage=Engage.PATTERN, pattern=Pattern("(?i)^@andy"))], event("@ANDY go"), [ANDY]),
    Row("a mention", [route(engage=Engage.MENTION)], event(mention=True), [ANDY]),
    Row("no mention", [route(engage=Engage.MENTION)], event("@andy in text is no mention"), ["NOT_ENGAGED"]),
    Row("sticky: the first mention", [STICKY], event(thread="t1", mention=True), [f"{ANDY}:t1"]),
    Row("sticky: what follows in that thread", [STICKY], event(thread="t1"), [f"{ANDY}:t1"], BEFORE),
    Row("sticky: another thread", [STICKY], event(thread="t2"), ["NOT_ENGAGED"], BEFORE),
    Row("sticky: another agent's mention", [replace(STICKY, agent="bob")], event(thread="t1"), ["NOT_ENGAGED"], BEFORE),
    Row("sticky: a place without threads", [STICKY], event(), [ANDY], (("andy", "chat", "room", ""),)),
    Row("sticky: never in a direct chat", [STICKY], event(direct=True), ["NOT_ENGAGED"], (("andy", "chat", "room", ""),)),
    Row("sticky: a mention in a direct chat", [STICKY], event(direct=True, mention=True), [ANDY]),
    Row("sticky: the mention of a refused sender", [replace(STICKY, senders=Senders.KNOWN)], event(thread="t1", mention=True, sender="tom"), ["UNKNOWN_SENDER"]),
    Row("sticky, accumulate: before any mention", [replace(STICKY, otherwise=Otherwise.CONTEXT)], event(thread="t1"), [f"({ANDY}:t1)"]),
    Row("not engaged, drop", [route(engage=Engage.MENTION, otherwise=Otherwise.IGNORE)], event(), ["NOT_ENGAGED"]),
    Row("not engaged, accumulate", [route(engage=Engage.MENTION, otherwise=Otherwise.CONTEXT)], event(), [f"({ANDY})"]),
    Row("engaged and refused is no context", [route(senders=Senders.KNOWN, otherwise=Otherwise.CONTEXT)], event(sender="tom"), ["UNKNOWN_SENDER"]),
    Row("fan-out: each for itself", [route("a"), route("b", agent="bob", engage=Engage.MENTION)], event(), [ANDY, "NOT_ENGAGED"]),
    Row("fan-out: both, the higher priority first", [route("a"), route("b", agent="bob", priority=1)], event(), ["bob/chat:room", ANDY]),
    Row("fan-out: the sender is known to one agent alone", [route("a", senders=Senders.KNOWN), route("b", agent="bob", senders=Senders.KNOWN)], event(), [ANDY, "ROLE_TOO_LOW"]),
    Row("fan-out: one wakes, one accumulates", [route("a"), route("b", agent="bob", engage=Engage.MENTION, otherwise=Otherwise.CONTEXT)], event(), [ANDY, "(bob/chat:room)"]),
    Row("fan-out: each with its own session mode", [route("a", session=SessionMode.SHARED), route("b", agent="bob")], event(thread="t1"), [ANDY, "bob/chat:room:t1"]),
    Row("an agent that is gone", [route("a", agent="gone"), route("b")], event(), [ANDY, "AGENT_GONE"]),
    Row("public", [route(senders=Senders.KNOWN, unknown=Unknown.ADMIT)], event(sender="tom"), [ANDY]),
    Row("public, sender_scope known: one wiring is stricter", [route("a"), route("b", agent="bob", senders=Senders.KNOWN)], event(sender="tom"), [ANDY, "UNKNOWN_SENDER"]),
    Row("strict", [route(senders=Senders.KNOWN)], event(sender="tom"), ["UNKNOWN_SENDER"]),
    Row("strict, no sender at all", [route(senders=Senders.KNOWN)], event(sender=None), ["UNKNOWN_SENDER"]),
    Row("request_approval", [route(senders=Senders.KNOWN, unknown=Unknown.ASK)], event(sender="tom"), ["APPROVAL_PENDING"]),
    Row("known: a member", [route(senders=Senders.KNOWN)], event(), [ANDY]),
    Row("known: a member of another agent", [route(senders=Senders.KNOWN, agent="bob")], event(), ["ROLE_TOO_LOW"]),
    Row("known: an admin of the agent", [route(senders=Senders.KNOWN)], event(sender="max"), [ANDY]),
    Row("known: the same id on another channel", [route(channel="mail", senders=Senders.KNOWN)], event(channel="mail"), ["UNKNOWN_SENDER"]),
    Row("known: a global owner", [route(senders=Senders.KNOWN, agent="bob")], event(sender="olga"), ["bob/chat:room"]),
    Row("shared: a place without threads", [route(session=SessionMode.SHARED)], event(), [ANDY]),
    Row("shared: a direct chat", [route(session=SessionMode.SHARED)], event(thread="t1", direct=True), [ANDY]),
    Row("shared: another place of the channel", [route(place="hall", session=SessionMode.SHARED)], event(place="hall"), ["andy/chat:hall"]),
    Row("per-thread: a place without threads", [route()], event(), [ANDY]),
    Row("per-thread", [route()], event(thread="t1"), [f"{ANDY}:t1"]),
    Row("per-thread: a direct chat has one", [route()], event(thread="t1", direct=True), [ANDY]),
    Row("agent-shared: one for all places", [route(session=parse("main"))], event(thread="t1"), ["andy/main"]),
    Row("agent-shared: and across channels", [route(channel="mail", session=parse("main"))], event(channel="mail"), ["andy/main"]),
)  # fmt: skip
OURS = (
    Row("shared: one for a place with threads", [route(session=SessionMode.SHARED)], event(thread="t1"), [ANDY]),
    Row("a thread that looks like another", [route()], event(thread="\uff541"), [f"{ANDY}:%EF%BD%941"]),
    Row("a place that is equal after normalisation", [route(place="\uff52oom")], event(), ["NO_ROUTE"]),
    Row("a sender that is equal after normalisation", [route(senders=Senders.KNOWN)], event(sender="\uff41nn"), ["UNKNOWN_SENDER"]),
    Row("a sender with a zero-width character", [route(senders=Senders.KNOWN)], event(sender="ann\u200b"), ["BAD_NAME"]),
    Row("a sender with a space at the end", [route()], event(sender="ann "), ["BAD_NAME"]),
    Row("a field with a direction mark", [route(session=parse("x-{body.n}"))], event(fields={"body": {"n": "a\u202eb"}}), ["andy/x-a%E2%80%AEb"]),
    Row("context also asks who writes", [route(engage=Engage.MENTION, otherwise=Otherwise.CONTEXT, senders=Senders.KNOWN)], event(sender="tom"), ["UNKNOWN_SENDER"]),
    Row("a revoked user, where anyone may write", [route()], event(sender="eve"), ["SENDER_REVOKED"]),
    Row("a revoked owner", [route(senders=Senders.OWNER, unknown=Unknown.ADMIT)], event(sender="eve"), ["SENDER_REVOKED"]),
    Row("admin: a member", [route(senders=Senders.ADMIN)], event(), ["ROLE_TOO_LOW"]),
    Row("admin: an admin", [route(senders=Senders.ADMIN)], event(sender="max"), [ANDY]),
    Row("owner: an admin", [route(senders=Senders.OWNER)], event(sender="max"), ["ROLE_TOO_LOW"]),
    Row("a role of a direct chat", [route(senders=Senders.KNOWN)], event(sender="dora", direct=True), [ANDY]),
    Row("is none in a group", [route(senders=Senders.KNOWN)], event(sender="dora"), ["ROLE_TOO_LOW"]),
    Row("a sender that nothing vouches for", [route(senders=Senders.KNOWN)], event(verified=False), ["UNKNOWN_SENDER"]),
    Row("who opens nobody's session", [route(session=SessionMode.SENDER)], event(verified=False), ["NO_SESSION_NAME"]),
    Row("per-sender", [route(session=SessionMode.SENDER)], event(), [f"{ANDY}:@ann"]),
    Row("per-sender is no thread's name", [route()], event(thread="@ann"), [f"{ANDY}:%40ann"]),
    Row("a template", [route(session=parse("pr-{body.n|body.i.n}"))], event(fields={"body": {"i": {"n": 7}}}), ["andy/pr-7"]),
    Row("a template without its field", [route(session=parse("pr-{body.n}"))], event(), ["NO_SESSION_NAME"]),
    Row("a field with path characters", [route(session=parse("x/{body.n}"))], event(fields={"body": {"n": "../.."}}), ["andy/x/..%2F.."]),
    Row("a field that is a folder", [route(session=parse("x/{body.n}"))], event(fields={"body": {"n": ".."}}), ["andy/x/%2E%2E"]),
    Row("an edit wakes nobody", [route()], event(kind=EventKind.EDIT), ["NOT_A_MESSAGE"]),
    Row("a reaction is context", [route(otherwise=Otherwise.CONTEXT)], event(kind=EventKind.REACTION), [f"({ANDY})"]),
    Row("a command needs no mention", [route(engage=Engage.MENTION)], event("/stop", kind=EventKind.COMMAND), [ANDY]),
    Row("one agent, two routes: the one that engages", [route("a", priority=2, engage=Engage.PATTERN, pattern=Pattern("^!deploy"), session=parse("deploys")), route("b")], event("hi"), [ANDY]),
    Row("one agent, two routes: the higher one decides", [route("a", priority=2, engage=Engage.PATTERN, pattern=Pattern("^!deploy"), senders=Senders.OWNER), route("b")], event("!deploy"), ["ROLE_TOO_LOW"]),
    Row("an exact place before a wildcard", [route("a", place="*", session=parse("all")), route("b")], event(), [ANDY]),
    Row("a longer beginning before a shorter", [route("a", place="*", session=parse("all")), route("b", place="ro*", session=parse("ro"))], event(), ["andy/ro"]),
    Row("a wildcard of another channel", [route(channel="mail", place="*")], event(), ["NO_ROUTE"]),
    Row("a name with a direction mark", [route(place="*")], event(place="a\u202eb"), ["BAD_NAME"]),
    Row("a thread with a line end", [route()], event(thread="a\nb"), ["BAD_NAME"]),
    Row("the file's route before a stored one of its name", [route(stored=True, session=parse("stored")), route()], event(), [ANDY]),
)  # fmt: skip


@pytest.mark.parametrize("row", [*NANOCLAW, *OURS], ids=lambda row: row.what)
def test_an_event_is_decided(row: Row) -> None:
    assert run(row.routes, row.event, *row.mentioned) == row.found


def test_every_reason_is_in_a_table() -> None:
    found = {one for row in (*NANOCLAW, *OURS) for one in row.found if one.isupper()}
    assert found == {one.value for one in RefusalReason}


def test_each_refusal_says_why() -> None:
    for row in (*NANOCLAW, *OURS):
        directory = Directory(RoutingTable(row.routes), PEOPLE, frozenset(row.mentioned))
        for refusal in decide(directory, row.event, AGENTS).refusals:
            assert len(refusal.why) > 10
