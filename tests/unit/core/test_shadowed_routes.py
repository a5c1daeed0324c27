"""Which routes no event can reach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.core.patterns import Pattern
from daemon.core.route_rules import bounded, diagnose_pairings, diagnose_routes
from daemon.core.routing import (
    Directory,
    Engage,
    EventKind,
    Otherwise,
    PlaceEvent,
    Route,
    RoutingTable,
    Senders,
    decide,
)
from daemon.core.shadowed_routes import shadowed_routes

ALL = Route("all", "local", "*", "a", priority=1, senders=Senders.ANYONE)
ROOM = Route("room", "local", "room", "a", senders=Senders.ANYONE)
PATTERN = Pattern("x")

SHADOWED = {
    "every message of every place": (ALL, ROOM),
    "the beginning of a place": (replace(ALL, place="ro*"), ROOM),
    "a place that covers more": (replace(ALL, place="r*"), replace(ROOM, place="ro*")),
    "the same place": (replace(ROOM, name="first", priority=1), ROOM),
    "the same engagement": (replace(ALL, engage=Engage.MENTION), replace(ROOM, engage=Engage.MENTION)),
    "more than the same": (replace(ALL, engage=Engage.STICKY), replace(ROOM, engage=Engage.MENTION)),
    "the same pattern": (
        replace(ALL, engage=Engage.PATTERN, pattern=PATTERN), replace(ROOM, engage=Engage.PATTERN, pattern=Pattern("x"))),
    "both keep context": (replace(ALL, otherwise=Otherwise.CONTEXT), replace(ROOM, otherwise=Otherwise.CONTEXT)),
}  # fmt: skip
REACHED = {
    "the exact place comes first": (replace(ALL, priority=0), ROOM),
    "another agent": (replace(ALL, agent="b"), ROOM),
    "another channel": (replace(ALL, channel="other"), ROOM),
    "another place": (replace(ALL, place="hall*"), ROOM),
    "less engages": (replace(ALL, engage=Engage.MENTION), ROOM),
    "another pattern": (
        replace(ALL, engage=Engage.PATTERN, pattern=Pattern("y")), replace(ROOM, engage=Engage.PATTERN, pattern=PATTERN)),
    "the later one keeps context": (ALL, replace(ROOM, otherwise=Otherwise.CONTEXT)),
}  # fmt: skip


def found(*routes: Route) -> list[tuple[str, str]]:
    return [(one.name, by.name) for one, by in shadowed_routes(routes)]


@pytest.mark.parametrize("case", SHADOWED)
def test_a_route_that_another_always_decides_before(case: str) -> None:
    first, later = SHADOWED[case]
    assert found(first, later) == found(later, first) == [(later.name, first.name)]
    place = later.place.rstrip("*") + ("x" if later.place.endswith("*") else "")
    directory = Directory(RoutingTable([first, later]))
    events = [
        PlaceEvent("local", place, "1", text, kind, thread="t", mention=mention)
        for kind in EventKind for text in ("x", "y") for mention in (True, False)
    ]  # fmt: skip
    for event in events:
        assert later.name not in [one.route for one in decide(directory, event, {"a"}).targets], event


@pytest.mark.parametrize("case", REACHED)
def test_a_route_that_some_event_reaches(case: str) -> None:
    assert found(*REACHED[case]) == []


def test_a_finding_names_a_route_that_a_command_can_remove() -> None:
    shadowed = [("room", "all")]
    assert [one.command for one in diagnose_routes([], shadowed, frozenset({"room"}))] == ["clawbus route remove room"]
    assert [one.command for one in diagnose_routes([], shadowed, frozenset({"all"}))] == ["clawbus route remove all"]
    assert list(diagnose_routes([("room", "broken")], shadowed, frozenset())) == []
    (one,) = diagnose_routes([("room", "there is no agent a")], shadowed, frozenset({"room"}))
    assert (one.code, one.evidence) == ("ROUTE_BROKEN", ("There is no agent a.",))


def test_many_findings_are_cut() -> None:
    many = bounded(diagnose_pairings([(f"C{number}", "x", "gone") for number in range(50)], frozenset({"a"})))
    assert len(many) == 20
    assert many[-1].evidence[-1].startswith("And 30 more")
