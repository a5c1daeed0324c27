"""Which agents and channels other daemons of this host own, each with a data folder of its own. The kernel keeps the record.

A daemon with a role holds an abstract unix socket for each name that it owns. Nobody can remove it, and it ends with the
process, so a crash leaves nothing that keeps another daemon from starting. All names are in /proc/net/unix. A name alone
proves nothing: the process in it must be this user's, and hold the socket.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from daemon.core.deploy_errors import DuplicateOwnershipError
from schema.frozen import frozen
from schema.os_faults import passes

_PREFIX: Final = "clawbus-owner"
_WANTS: Final = "wants"
_OWNS: Final = "owns"
_LISTING: Final = Path("/proc/net/unix")
_FIELDS: Final = 8
Id = tuple[str, str]  # (kind, name)


@frozen
class Owner:
    """A daemon that owns an id, or is about to (`state`). `digest` is the id's."""

    state: str
    role: str
    install: str
    pid: int
    digest: str


class HostOwners:
    """What this daemon owns beside the others of its host and user. Built once for a daemon with a role."""

    def __init__(self, role: str, install_id: str) -> None:
        self._role, self._install = role, _digest(install_id)
        self._held: dict[Id, socket.socket] = {}

    def hold(self, ids: Collection[Id]) -> None:
        """Own exactly these ids from now on.

        It says first what it wants and looks then, so of two daemons that start at once at least one sees the other.
        Raise DuplicateOwnershipError when a daemon of another role owns or wants one of them (what was held is still
        held), and OSError.
        """
        fresh = [one for one in ids if one not in self._held]
        wanted: list[socket.socket] = []
        try:
            for one in fresh:
                wanted.append(self._bind(_WANTS, one))  # noqa: PERF401 - what was bound is closed, whatever the next one does
            self._refuse(fresh, (_WANTS, _OWNS))
            for one in fresh:
                self._held[one] = self._bind(_OWNS, one)
        finally:
            for one in wanted:
                one.close()
        for one in [one for one in self._held if one not in ids]:
            self._held.pop(one).close()

    def check(self, one: Id) -> None:
        """Raise DuplicateOwnershipError when a daemon of another role owns the id, and OSError."""
        self._refuse([one], (_OWNS,))

    def duplicates(self) -> list[str]:
        """Return what this daemon holds and one with another data folder owns too, whatever its role. Raise OSError."""
        owned = {one.digest for one in self._others() if one.state == _OWNS}
        return sorted(f"{kind} {name}" for kind, name in tuple(self._held) if _digest(f"{kind}/{name}") in owned)

    def close(self) -> None:
        """Own nothing any more. Safe to call twice."""
        while self._held:
            self._held.popitem()[1].close()

    def _refuse(self, ids: Collection[Id], states: Collection[str]) -> None:
        by_digest = {_digest(f"{kind}/{name}"): (kind, name) for kind, name in ids}
        for one in self._others():
            if one.role != self._role and one.state in states and one.digest in by_digest:
                kind, name = by_digest[one.digest]
                raise DuplicateOwnershipError(
                    f"{kind} {name!r} is owned by a daemon with the role {one.role} (process {one.pid}), which serves another"
                    " data folder.",
                    hint="Leave it in one group of [ownership], in both configurations; then reload that daemon, or end it.",
                )

    def _others(self) -> Iterator[Owner]:
        """Yield what daemons of this user with other data folders own or want."""
        for line in _LISTING.read_text(encoding="utf-8", errors="replace").splitlines():
            found = line.split(maxsplit=_FIELDS - 1)
            if len(found) == _FIELDS and found[-1].startswith(f"@{_PREFIX}/{os.getuid()}/"):
                owner = _parsed(found[-1])
                if owner is not None and owner.install != self._install and _holds(owner.pid, found[-2]):
                    yield owner

    def _bind(self, state: str, one: Id) -> socket.socket:
        parts = (_PREFIX, os.getuid(), state, self._role, self._install, os.getpid(), _digest("/".join(one)))
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bound.bind("\0" + "/".join(map(str, parts)))
        except OSError:
            bound.close()
            raise
        return bound


def _parsed(name: str) -> Owner | None:
    try:
        _, _, state, role, install, pid, digest = name.split("/")
        return Owner(state, role, install, int(pid), digest)
    except ValueError:
        return None


def _holds(pid: int, inode: str) -> bool:
    """Return whether the process has the socket open. Only this user's processes can be asked. Raise OSError when this host cannot tell."""
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError as error:
        if passes(error):
            raise  # a daemon that cannot be looked at now may own it all the same
        return False
    for one in descriptors:
        with suppress(OSError):  # it was closed meanwhile
            if os.readlink(one) == f"socket:[{inode}]":  # noqa: PTH115 - the link's own text
                return True
    return False


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
