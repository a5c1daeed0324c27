"""TCP addresses to listen on: read from the configuration, judged, bound. Used by every listener of ours.

Never resolves a name: another machine decides what it resolves to, and may change that tomorrow.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final, cast
from urllib.parse import urlsplit

from daemon.core.errors import ListenError

_BACKLOG: Final = 1024


def split_listen(listen: str) -> tuple[str, int]:
    """Return (address, port) of `HOST:PORT` or `[V6]:PORT`; `localhost` is 127.0.0.1. Raise ValueError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError("must be ADDRESS:PORT, for example 127.0.0.1:8650 or [::1]:8650")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare == "localhost":
        return "127.0.0.1", int(port)
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        # A name could resolve to anything, and to something else tomorrow.
        raise ValueError("must be an IP address (or localhost), not another host name") from None
    if address.version == 6 and bare == host:
        raise ValueError("write an IPv6 address in brackets, for example [::1]:8650")
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Return whether an IP address is this machine's own, so that no other machine can reach it."""
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def bind_tcp(listen: str) -> socket.socket:
    """Return a listening socket. Raise ListenError with the system's reason: a port that is taken, no such address."""
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # getaddrinfo for numbers alone: it knows what to do with a link-local address's %zone.
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4]
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {listen}: {error.strerror or error}.") from error
    except BaseException:
        sock.close()
        raise
    return sock


def bound_address(sock: socket.socket) -> tuple[str, int]:
    """Return (host, port) of a bound socket: the port that the system chose if 0 was requested."""
    return cast("tuple[str, int]", sock.getsockname()[:2])


def docker_address_fault(url: str) -> str | None:
    """Return what is wrong with the address of a Docker engine, or None."""
    try:
        parts = urlsplit(url)
        scheme, host, _ = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host = "", None
    if scheme == "unix" and url.startswith("unix:///") and len(url) > len("unix:///"):
        return None
    if scheme in {"tcp", "http", "https"} and host:
        return None
    if scheme == "ssh":
        return "ssh:// is not supported; forward the socket (`ssh -L /run/remote.sock:/var/run/docker.sock HOST`) and name it"
    return "must be unix:///PATH or tcp://HOST:PORT"
