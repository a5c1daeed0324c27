"""Asks a server's Redis which runs its queue or its state still names: such a run continues when the server starts again.

It sends only SCAN, HSCAN, AUTH and SELECT, so it changes nothing there. No error contains the address's password.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, cast
from urllib.parse import unquote, urlsplit

from daemon.inngest.errors import SweepQueueAliveError

_TIMEOUT_S: Final = 10.0
_LONGEST_S: Final = 120.0
_BATCH: Final = b"1000"
_LONGEST_REPLY: Final = 64 * 1024 * 1024
_ULID: Final = re.compile(rb"[0-7][0-9A-HJKMNP-TV-Z]{25}")
# The queue's items are the fields of one hash; every other mention of a run that could revive it is in a key's name.
_ITEMS: Final = b"queue:item"

_Reply = bytes | int | list["_Reply"] | None


def runs_in_redis(uri: str, keys: Iterable[str]) -> frozenset[str]:
    """Return those of these runs that Redis still names. Raise SweepQueueAliveError when it cannot be queried."""
    wanted = {key.encode() for key in keys}
    if not wanted:
        return frozenset()
    parts = urlsplit(uri)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise SweepQueueAliveError(
            "--redis-uri is not an address.", hint="Give redis://HOST:6379, as the server has it."
        )
    where = f"{parts.hostname}:{_port(uri)}"
    try:
        with socket.create_connection((parts.hostname, _port(uri)), _TIMEOUT_S) as plain:
            made = _secured(plain, parts.hostname) if parts.scheme == "rediss" else plain
            with made.makefile("rwb") as stream:
                found = _named(cast("BinaryIO", stream), uri, wanted)
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise SweepQueueAliveError(f"Redis at {where} cannot be asked what it still holds: {error}") from error
    return frozenset(key.decode() for key in found)


def _port(uri: str) -> int:
    try:
        return urlsplit(uri).port or 6379
    except ValueError as error:
        raise SweepQueueAliveError("--redis-uri has a port that is not a number.") from error


def _secured(plain: socket.socket, host: str) -> socket.socket:
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


def _named(stream: BinaryIO, uri: str, wanted: set[bytes]) -> set[bytes]:
    parts = urlsplit(uri)
    if parts.password:
        user = (unquote(parts.username).encode(),) if parts.username else ()
        _ask(stream, b"AUTH", *user, unquote(parts.password).encode())
    database = parts.path.strip("/")
    if database:
        _ask(stream, b"SELECT", database.encode())
    found: set[bytes] = set()
    hashes: list[bytes] = []
    for names in _scanned(stream, b"SCAN"):
        for name in names:
            found |= wanted.intersection(_ULID.findall(name))
            if name.endswith(_ITEMS):
                hashes.append(name)
    for name in hashes:
        for texts in _scanned(stream, b"HSCAN", name):
            for text in texts:
                found |= wanted.intersection(_ULID.findall(text))
    return found


def _scanned(stream: BinaryIO, *command: bytes) -> Iterator[list[bytes]]:
    cursor, ends = b"0", time.monotonic() + _LONGEST_S
    while True:
        reply = _ask(stream, *command, cursor, b"COUNT", _BATCH)
        if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[0], bytes):
            raise ValueError("it does not answer as Redis does.")
        yield [one for one in cast("list[object]", reply[1] or []) if isinstance(one, bytes)]
        cursor = reply[0]
        if cursor == b"0":
            return
        if time.monotonic() > ends:
            raise ValueError(f"it has too many keys to read within {_LONGEST_S:g} s.")


def _ask(stream: BinaryIO, *words: bytes) -> _Reply:
    stream.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(one), one) for one in words))
    stream.flush()
    return _reply(stream)


def _reply(stream: BinaryIO, depth: int = 0) -> _Reply:
    line = stream.readline(_LONGEST_REPLY)
    if not line.endswith(b"\r\n") or depth > 3:
        raise ValueError("the connection ended.")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise ValueError(rest.decode("ascii", "replace")[:200])
    if kind == b"+":
        return rest
    size = int(rest)
    if kind == b":":
        return size
    if size > _LONGEST_REPLY or kind not in b"$*":
        raise ValueError("it does not answer as Redis does.")
    if size < 0:
        return None
    if kind == b"*":
        return [_reply(stream, depth + 1) for _ in range(size)]
    text = stream.read(size + 2)
    if len(text) != size + 2:
        raise ValueError("the connection ended.")
    return text[:-2]
