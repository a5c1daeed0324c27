"""Where an agent may write: the operator's tables first, then the exact places that routes send to it."""

from __future__ import annotations

from daemon.core.destinations import MAX_DESTINATIONS, DestinationSource, NamedPlace, destinations_of
from daemon.core.routing import Route

OPS = NamedPlace("ops", "local", "ops-room", "Ops", DestinationSource.CONFIG)


def names(*routes: Route, listed: tuple[NamedPlace, ...] = (), from_routes: bool = True) -> dict[str, str]:
    found = destinations_of("echo", listed, routes, from_routes=from_routes)
    return {one.name: f"{one.channel}:{one.place}" for one in found}


def test_a_route_s_place_has_the_route_s_name() -> None:
    assert names(Route("team", "local", "kitchen", "echo")) == {"team": "local:kitchen"}


def test_routes_of_other_agents_and_routes_of_many_places_give_none() -> None:
    assert names(Route("a", "local", "x", "other"), Route("b", "local", "x*", "echo")) == {}


def test_a_place_that_is_listed_or_routed_twice_has_one_name() -> None:
    routes = Route("z", "local", "kitchen", "echo"), Route("a", "local", "kitchen", "echo", priority=5)
    assert names(*routes, Route("r", "local", "ops-room", "echo"), listed=(OPS,)) == {
        "ops": "local:ops-room", "a": "local:kitchen",
    }  # fmt: skip


def test_a_name_that_is_taken_gets_a_number() -> None:
    found = names(Route("ops", "local", "kitchen", "echo"), Route("ops-2", "local", "hall", "echo"), listed=(OPS,))
    assert found == {"ops": "local:ops-room", "ops-2": "local:kitchen", "ops-2-2": "local:hall"}


def test_a_route_does_not_take_the_name_of_the_session_s_own_place() -> None:
    assert names(Route("here", "local", "kitchen", "echo")) == {"here-2": "local:kitchen"}


def test_routes_can_be_left_out() -> None:
    assert names(Route("team", "local", "kitchen", "echo"), listed=(OPS,), from_routes=False) == {
        "ops": "local:ops-room"
    }


def test_the_list_is_bounded() -> None:
    many = [Route(f"r{number:04}", "local", f"p{number}", "echo") for number in range(MAX_DESTINATIONS + 10)]
    found = names(*many, listed=(OPS,))
    assert len(found) == MAX_DESTINATIONS
    assert list(found)[:2] == ["ops", "r0000"]
