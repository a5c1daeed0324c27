"""A decision of the router among 100,000 places, and the memory that their routes take. No disk, no daemon.

The floor of a decision is one look-up in a dictionary of as many places. The kinds of event are mixed as a busy host has them: woken
always, by a mention, by a pattern, refused as a stranger, and at a place that no route covers.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from typing import Final

from bench.figures import Figure, Of, Result, Target
from bench.settings import Settings
from bench.spread import median
from daemon.config.routes import RouteTable
from daemon.core.people import Grant, People, UserRole
from daemon.core.routing import Directory, PlaceEvent, RoutingTable, decide

_PLACES: Final = 100_000
_EVENTS: Final = 2_000
_BLOCKS: Final = 7
_AGENTS: Final = ("one", "two", "three")
_ENGAGE: Final = ("always", "mention", "mention-sticky", "pattern")
_TEXT: Final = "Good morning, has anybody seen why the nightly build of the shop failed again? It worked on Friday."


def measure(settings: Settings) -> Result:
    """Build the table, then decide on events in blocks beside their floor."""
    places = max(100, int(_PLACES * settings.scale))
    before = _peak_mb()
    directory = _directory(places)
    gc.collect()
    memory = _peak_mb() - before
    events = [_event(number * 7919 % (places + places // 10)) for number in range(_EVENTS)]
    keys = [(one.channel, one.place) for one in events]
    there = dict.fromkeys((("chat", f"room-{number}") for number in range(places)), 1)
    decided = [
        _microseconds(lambda: [decide(directory, one, _AGENTS) for one in events], len(events)) for _ in range(_BLOCKS)
    ]
    looked_up = [_microseconds(lambda: [there.get(one) for one in keys], len(keys)) for _ in range(_BLOCKS)]
    return Result(
        (
            Figure(
                f"processor time of a decision among {places:,} places", median(decided), "us", floor=median(looked_up),
                target=Target(Of.VALUE, 50.0),
            ),
            Figure(f"memory of {places:,} routes", memory, "MB", target=Target(Of.VALUE, 100.0)),
        ),
        notes=("The floor of a decision is one look-up. Memory is the process's peak, with the routes less without.",),
    )  # fmt: skip


def _directory(places: int) -> Directory:
    routes = [
        RouteTable.model_validate(
            {
                "name": f"r{number}",
                "channel": "chat",
                "place": f"room-{number}",
                "agent": _AGENTS[number % 3],
                "engage": (engage := _ENGAGE[number % 4]),
                "pattern": r"(?i)\b(build|deploy)\b" if engage == "pattern" else None,
                "senders": "anyone" if number % 5 else "known",
                "session": "per-thread" if number % 2 else "shop-{thread|'main'}",
            }
        ).route()
        for number in range(places)
    ]
    users = {("chat", f"user-{number}"): f"user-{number}" for number in range(1_000)}
    grants = {name: (Grant(UserRole.MEMBER),) for name in users.values()}
    return Directory(RoutingTable(routes), People(users, grants))


def _event(number: int) -> PlaceEvent:
    return PlaceEvent(
        "chat", f"room-{number}", str(number), _TEXT, thread=f"t{number % 50}", sender=f"user-{number % 1_100}",
        mention=number % 3 == 0,
    )  # fmt: skip


def _microseconds(work: Callable[[], object], count: int) -> float:
    began = time.thread_time()
    work()
    return (time.thread_time() - began) / count * 1e6


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
