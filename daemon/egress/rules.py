"""Decides from the configuration what an agent's request means and whether it is allowed. Pure.

A route is chosen by the first part of the path (`/anthropic/v1/messages`); a proxy request by its host and port.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from daemon.config.egress import Egress, EgressRoute, is_for, split_target, target_of
from daemon.egress.refusals import BadRequestError, NotAllowedError
from schema.frozen import frozen

_SHOWN: Final = 120  # characters of a path in a log line
# Only what a URL may hold (RFC 3986): no control character, quote or backslash that two parsers read differently.
_TARGET: Final = re.compile(rb"[!$&'()*+,\-./0-9:;=?@A-Z_a-z~%\[\]|]*\Z")


@frozen
class Secret:
    """A header that the gate adds. `value` has `{secret}` in it."""

    header: bytes
    value: str
    file: Path


@frozen
class Route:
    """One [egress.routes.NAME] table, ready for use."""

    name: str
    scheme: str
    host: str
    port: int
    base: str
    agents: tuple[str, ...]
    paths: tuple[str, ...]
    api: str
    secret: Secret | None


@frozen
class Target:
    """Where an allowed request goes. `name` is the route's or the connect table's; `route` is None for a proxy request.

    `shown` is what logs say of it: never a query, which may hold a key.
    """

    name: str
    scheme: str
    host: str
    port: int
    path: bytes
    shown: str
    route: Route | None = None


@frozen
class _Hosts:
    name: str
    agents: tuple[str, ...]
    entries: tuple[tuple[str, int], ...]


class Rules:
    """The allow-lists. Every method raises NotAllowedError or BadRequestError."""

    def __init__(self, egress: Egress) -> None:
        self._routes: Mapping[str, Route] = {name: _route(name, table) for name, table in egress.routes.items()}
        self._hosts = tuple(
            _Hosts(name, table.agents, tuple(split_target(entry, wildcard=True) for entry in table.hosts))
            for name, table in egress.connect.items()
        )
        self.private_targets: frozenset[tuple[str, int]] = frozenset(
            split_target(one) for one in egress.private_targets
        )

    def routed(self, agent: str, target: bytes) -> Target:
        """Return where a request for a path goes."""
        path, mark, query = target.partition(b"?")
        _check_path(path)
        name, _, rest = path[1:].decode("ascii").partition("/")
        route = self._routes.get(name)
        if route is None or not is_for(route.agents, agent):
            there = ", ".join(f"/{one}/" for one, r in self._routes.items() if is_for(r.agents, agent))
            raise NotAllowedError(f"there is no route /{name[:_SHOWN]}/ for {agent} (known: {there or 'none'}).")
        rest = f"/{rest}"
        if route.paths and not any(_matches(rest, pattern) for pattern in route.paths):
            raise NotAllowedError(f"the route {name} does not allow the path {rest[:_SHOWN]}.")
        if route.api == "gemini":
            # A client without its own key may still send one as ?key=, which the service would take before the header.
            query = b"&".join(part for part in query.split(b"&") if not part.lower().startswith(b"key="))
        full = f"{route.base}{rest}".encode() + (mark + query if query else b"")
        return Target(name, route.scheme, route.host, route.port, full, f"/{name}{rest}"[:_SHOWN], route)

    def proxied(self, agent: str, url: bytes) -> Target:
        """Return where a plain proxy request (`GET http://host/path`) goes. Nothing is added to it."""
        try:
            parts = urlsplit(url.decode("ascii"))
            host, port = (parts.hostname or "").lower(), parts.port or 80
        except ValueError:
            raise BadRequestError("the request's URL cannot be read.") from None
        if parts.scheme != "http" or not host or parts.username is not None:
            raise BadRequestError("a proxy request needs an http:// URL without a user name; use CONNECT for https.")
        path = parts.path or "/"
        _check_path(path.encode())
        name = self._allowed(agent, host, port)
        full = path + (f"?{parts.query}" if parts.query else "")
        return Target(name, "http", host, port, full.encode(), f"{host}:{port}{path}"[:_SHOWN])

    def tunnel(self, agent: str, authority: bytes) -> Target:
        """Return where a CONNECT goes."""
        try:
            host, port = split_target(authority.decode("ascii"))
        except ValueError:
            raise BadRequestError("CONNECT needs HOST:PORT.") from None
        return Target(self._allowed(agent, host, port), "", host, port, b"", f"{host}:{port}")

    def _allowed(self, agent: str, host: str, port: int) -> str:
        for table in self._hosts:
            if is_for(table.agents, agent) and any(_is_host(host, port, entry) for entry in table.entries):
                return table.name
        raise NotAllowedError(f"{agent} may not reach {host[:_SHOWN]}:{port}.")


def _route(name: str, table: EgressRoute) -> Route:
    scheme, host, port, base = target_of(table.upstream)
    secret = None
    if table.secret_file is not None:
        secret = Secret(table.header.encode(), table.secret_value, table.secret_file)
    return Route(name, scheme, host, port, base, table.agents, table.paths, table.api, secret)


def _is_host(host: str, port: int, entry: tuple[str, int]) -> bool:
    wanted, wanted_port = entry
    if port != wanted_port:
        return False
    return host.endswith(wanted[1:]) if wanted.startswith("*.") else host == wanted


def _matches(path: str, pattern: str) -> bool:
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern


def _check_path(path: bytes) -> None:
    """Refuse what two parsers may read as two different paths: a route's limits must hold at the target, too."""
    decoded = unquote_to_bytes(path)
    segments = decoded.split(b"/")
    if (
        not path.startswith(b"/")
        or not _TARGET.match(path)
        or b"%2f" in path.lower()
        or b"%" in decoded
        or b"\\" in decoded
        or any(byte < 0x20 or byte == 0x7F for byte in decoded)
        # Some servers cut path parameters off first: `..;x` is `..` to them.
        or any(segment.partition(b";")[0] in {b".", b".."} for segment in segments)
        or b"" in segments[1:-1]
    ):
        raise BadRequestError("the path has dot segments, empty segments, encoded slashes or characters no path has.")
