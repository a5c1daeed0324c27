"""Collects what does not work at present (host, runtime, images, channels), since when, and why."""

from __future__ import annotations

from typing import Any

from daemon.engine.delivery import Delivery
from daemon.engine.held_files import HeldFiles
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor


class Problems:
    """The current problems. `channels`: the channels that do not run, each as {name: (since epoch ms, why)}."""

    def __init__(self, sessions: Sessions, supervisor: Supervisor, delivery: Delivery, held_files: HeldFiles) -> None:
        self._sessions = sessions
        self._supervisor = supervisor
        self._delivery = delivery
        self._held_files = held_files
        self.channels: dict[str, tuple[int, str]] = {}

    async def refresh(self) -> None:
        """Look up again who holds the locks that block work on sessions, before a report names them."""
        await self._held_files.check_all()

    async def check(self, session: Session) -> None:
        """Look up again who holds a lock on one session's files."""
        await self._held_files.check(session)

    def degraded(self) -> list[dict[str, Any]]:
        """Return what does not work now, as {what, since, why}; for storage also {code, resource}."""
        sessions, storage = self._sessions, self._sessions.storage
        found = [
            *_entries("registry", sessions.registry_problem),
            *(_entries("central.db", sessions.central_problem) if sessions.registry_problem is None else ()),
            *(
                {**one, "code": storage.code, "resource": storage.resource}
                for one in _entries("storage", storage.problem)
            ),
            *_entries("disk", storage.low),
            *_entries("runtime", self._supervisor.unavailable),
            *_entries("image", self._supervisor.image_problem),
        ]
        for name, problem in {**self._delivery.problems(), **self.channels}.items():
            found += _entries(f"channel {name}", problem)
        return found


def _entries(what: str, problem: tuple[int, str] | None) -> list[dict[str, Any]]:
    return [{"what": what, "since": problem[0], "why": problem[1]}] if problem is not None else []
