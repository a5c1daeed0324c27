"""Host names to addresses, in threads of their own: one lookup a name at a time, however many sends ask for it.

A lookup cannot be cancelled. In a shared pool, the threads of a name server that does not answer for one name would be
missing for all others; here such a name keeps one thread, and further requests for it fail at once.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from daemon.core.clock import Clock
from schema.os_faults import is_exhausted, probe

HUNG_S: Final = 4.0  # seconds after which later callers no longer wait for a lookup
FAILED_S: Final = 1.0  # seconds during which a failed lookup is the answer to everybody
MAX_LOOKUPS: Final = 256  # the most lookups under way; each has a thread
MAX_OF_ONE: Final = 64  # the most of these for one asker, such as an agent that may reach any name below a domain

# For whom the present task looks up names; empty for the daemon itself.
_asker: Final[ContextVar[str]] = ContextVar("asker", default="")

GetAddrInfo = Callable[..., Sequence[tuple[Any, ...]]]


def lookups_are_of(asker: str) -> None:
    """Let the lookups of this task, and of those that it starts, count as this asker's."""
    _asker.set(asker)


@dataclass(slots=True)
class _Lookup:
    began: float
    asker: str
    done: anyio.Event = field(default_factory=anyio.Event)
    addresses: tuple[str, ...] = ()
    error: OSError | None = None
    ended: float | None = None


def _system(*arguments: Any, **more: Any) -> Sequence[tuple[Any, ...]]:
    return socket.getaddrinfo(*arguments, **more)


class Resolver:
    """Built once. Methods are called in the event loop."""

    def __init__(self, clock: Clock, getaddrinfo: GetAddrInfo = _system) -> None:
        self._clock = clock
        self._getaddrinfo = getaddrinfo
        self._lookups: dict[str, _Lookup] = {}  # under way, or failed a moment ago

    async def resolve(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a name, best first. Raise OSError. The caller bounds the wait."""
        if _is_address(host):
            return (host,)
        lookup = self._lookups.get(host)
        now = self._clock.monotonic()
        if lookup is not None and lookup.ended is not None and now - lookup.ended > FAILED_S:
            lookup = None
        if lookup is None:
            lookup = self._begin(host, now)
        elif lookup.ended is None and now - lookup.began > HUNG_S:
            raise OSError(f"the lookup of {host} has not finished after {now - lookup.began:.0f} s")
        await lookup.done.wait()
        if lookup.error is not None:
            raise OSError(f"the lookup of {host} failed: {lookup.error}") from lookup.error
        return lookup.addresses

    def _begin(self, host: str, now: float) -> _Lookup:
        under_way = {name: one for name, one in self._lookups.items() if one.ended is None}
        if len(under_way) >= MAX_LOOKUPS:
            raise OSError(f"{len(under_way)} lookups of other names have not finished")
        asker = _asker.get()
        if asker and sum(one.asker == asker for one in under_way.values()) >= MAX_OF_ONE:
            raise OSError(f"{MAX_OF_ONE} lookups of other names for {asker} have not finished")
        lookup = _Lookup(now, asker)
        loop = asyncio.get_running_loop()

        def finish(addresses: tuple[str, ...], error: OSError | None) -> None:
            lookup.addresses, lookup.error, lookup.ended = addresses, error, self._clock.monotonic()
            if error is None:  # the next send asks again: an address may have changed
                self._lookups.pop(host, None)
            lookup.done.set()

        def work() -> None:
            found: tuple[str, ...] = ()
            problem: OSError | None = None
            try:
                rows = self._getaddrinfo(host, None, type=socket.SOCK_STREAM)
                found = tuple(dict.fromkeys(str(row[4][0]) for row in rows))
                problem = None if found else OSError("it has no address")
            except OSError as error:
                # A lookup that lacks a descriptor says that there is no such name.
                found_now = probe(Path("/"))
                problem = found_now if found_now is not None and is_exhausted(found_now.errno) else error
            except Exception as error:  # noqa: BLE001 - a name that cannot be encoded; the waiting callers must get it
                problem = OSError(f"{type(error).__name__}: {error}")
            with suppress(RuntimeError):  # the loop is closed: no task waits any more
                loop.call_soon_threadsafe(finish, found, problem)

        # A daemon thread: a lookup that hangs must not keep the process from ending.
        thread = threading.Thread(target=work, name=f"look up {host[:60]}", daemon=True)
        self._lookups = {**under_way, host: lookup}
        try:
            thread.start()
        except RuntimeError as error:  # the host has no room for a thread; a later send asks again
            del self._lookups[host]
            raise OSError(errno.EAGAIN, f"the lookup of {host} cannot start: {error}") from error
        return lookup


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
