"""Finds routes that can never decide, because another route of the same agent always does before them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daemon.core.routing import ANYWHERE, Engage, Otherwise, Route, decides_before


def shadowed_routes(routes: Iterable[Route]) -> Iterator[tuple[Route, Route]]:
    """Yield each route that no event can reach, with the route that takes all of them. `routes` have different names.

    Each route is compared with those of its own place and with those that end in `*` and begin its place.
    """
    by_place: dict[tuple[str, str, str], list[Route]] = {}
    # (agent, channel) -> the lengths of the prefixes that routes with `*` name.
    lengths: dict[tuple[str, str], set[int]] = {}
    every = tuple(routes)
    for route in every:
        by_place.setdefault((route.agent, route.channel, route.place), []).append(route)
        if route.place.endswith(ANYWHERE):
            lengths.setdefault((route.agent, route.channel), set()).add(len(route.place) - 1)
    for route in every:
        for place in _covering(route.place, lengths.get((route.agent, route.channel), ())):
            other = next(
                (one for one in by_place.get((route.agent, route.channel, place), ()) if _takes_all(one, route)), None
            )
            if other is not None:
                yield route, other
                break


def _covering(place: str, lengths: Iterable[int]) -> Iterator[str]:
    """Yield the place itself, and each place with `*` that covers it and begins with this many characters."""
    yield place
    beginning = place[:-1] if place.endswith(ANYWHERE) else place
    for length in lengths:
        if length <= len(beginning) and f"{beginning[:length]}{ANYWHERE}" != place:
            yield f"{beginning[:length]}{ANYWHERE}"


def _takes_all(first: Route, later: Route) -> bool:
    """Return whether `first` decides about every event that could reach `later`."""
    if first is later or not decides_before(first, later):
        return False
    same = first.engage is later.engage and _text(first) == _text(later)
    more = first.engage is Engage.ALWAYS or (first.engage is Engage.STICKY and later.engage is Engage.MENTION)
    if not (same or more):
        return False
    # What wakes no agent goes to the first route that keeps context.
    return later.otherwise is not Otherwise.CONTEXT or first.otherwise is Otherwise.CONTEXT


def _text(route: Route) -> str | None:
    return route.pattern.text if route.pattern is not None else None
