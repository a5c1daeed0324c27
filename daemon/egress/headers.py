"""Selects the headers that pass the gate in each direction. Pure.

The gate drops hop-by-hop headers, as RFC 9110, section 7.6.1, requires of a proxy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from daemon.egress.rules import Target

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
    }
)  # fmt: skip
# A client without a key of its own sends a placeholder in one of these. On a route the gate drops them.
_CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie"})
_SHORTEST_KEY: Final = 8  # a shorter word may be in any header by chance
_ADDED_BY_PROXIES: Final = (b"forwarded", b"x-forwarded-", b"x-real-ip", b"via")


def request_headers(
    headers: Iterable[tuple[bytes, bytes]], target: Target, secret: tuple[bytes, bytes] | None
) -> Headers:
    """Return what the target gets: our Host, the secret's header, and those of the client's headers that may pass.

    `secret` is a header's name, in lower case, and its value. Content-Length or Transfer-Encoding stays, so that the body
    is framed as the client framed it.
    """
    given = [(name.lower(), value) for name, value in headers]
    dropped = _HOP_BY_HOP | _named_by_connection(given) | {b"host", b"expect"}
    if target.route is not None:
        dropped |= _CREDENTIALS
    if target.route is not None and target.route.api != "plain":
        dropped |= {b"accept-encoding"}
    if secret is not None:
        dropped |= {secret[0]}
    kept = [pair for pair in given if pair[0] not in dropped and not pair[0].startswith(_ADDED_BY_PROXIES)]
    if any(name == b"transfer-encoding" for name, _ in given):
        kept = [pair for pair in kept if pair[0] != b"content-length"]
        kept.append((b"transfer-encoding", b"chunked"))
    if target.route is not None and target.route.api != "plain":
        kept.append((b"accept-encoding", b"identity"))  # the meter cannot read a compressed answer
    return [(b"host", _host(target)), *kept, *((secret,) if secret is not None else ())]


def response_headers(
    headers: Iterable[tuple[bytes, bytes]], target: Target, secret: tuple[bytes, bytes] | None
) -> Headers:
    """Return what the client gets. Drop every header that contains the secret, with or without its scheme (`Bearer`).

    On a route, rewrite a redirect to the path that the container uses. If it leads off the route, replace the Location by
    `x-clawbus-egress: removed-location`.
    """
    given = [(name.lower(), value) for name, value in headers]
    dropped = _HOP_BY_HOP | _named_by_connection(given)
    if any(name == b"transfer-encoding" for name, _ in given):
        dropped |= {b"content-length"}
    kept: Headers = []
    for name, value in given:
        if name in dropped or (secret is not None and _shows(secret[1], value)):
            continue
        if name in {b"location", b"content-location"} and target.route is not None:
            here = _location(value, target)
            kept.append((name, here) if here is not None else (b"x-clawbus-egress", b"removed-location"))
        else:
            kept.append((name, value))
    return kept


def _location(value: bytes, target: Target) -> bytes | None:
    """Return a Location as the container must request it, or None if the route does not cover it."""
    route = target.route
    try:
        parts = urlsplit(value.decode("ascii"))
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if route is None:
        return value
    if parts.scheme or parts.netloc:
        wanted = port or (443 if (parts.scheme or route.scheme) == "https" else 80)
        if (parts.scheme or route.scheme, host, wanted) != (route.scheme, route.host, route.port):
            return None
    elif not value.startswith(b"/"):
        return value  # relative to the path of the request, which begins with the route's name
    if not parts.path.startswith(f"{route.base}/"):
        return None
    query = f"?{parts.query}" if parts.query else ""
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    return f"/{route.name}{parts.path.removeprefix(route.base)}{query}{fragment}".encode("ascii")


def _shows(secret: bytes, value: bytes) -> bool:
    """Return whether the value contains the secret's header value, or the key in it: its last word, unless that is short."""
    key = secret.rpartition(b" ")[2]
    return secret in value or (len(key) >= _SHORTEST_KEY and key in value)


def _host(target: Target) -> bytes:
    name = f"[{target.host}]" if ":" in target.host else target.host
    default = {"https": 443, "http": 80}.get(target.scheme)
    return (name if target.port == default else f"{name}:{target.port}").encode("ascii")


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
        # A client that names Content-Length here wants us and the target to disagree about where the body ends.
        if token.strip().lower() not in {b"content-length", b"host"}
    )
