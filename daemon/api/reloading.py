"""The route by which a client makes the daemon reread its configuration, and learns the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Final

from starlette.requests import Request
from starlette.routing import Route

from daemon.api.envelopes import enveloped
from schema.frozen import frozen

ROUTE: Final = "/v1/reload"


@frozen
class Reloaded:
    """What is in force now, and the tables whose changes are not: they need a restart."""

    agents: tuple[str, ...]
    level: str
    restart_needed_for: tuple[str, ...]


def reload_route(reload_now: Callable[[], Awaitable[Reloaded]]) -> Route:
    """Return the route POST /v1/reload. For an unusable configuration it answers with the error of `config check`."""

    async def reload(_: Request) -> object:
        return asdict(await reload_now())

    return Route(ROUTE, enveloped(reload), methods=["POST"])
