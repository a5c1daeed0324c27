"""Protocols that the supervisor depends on: container specs, and the keeper of a session's files."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.supervisor.slots import AgentImage
from daemon.runtimes.protocol import ContainerSpec, Exit
from daemon.store.session_files import SessionFiles


class Specs(Protocol):
    """Container specs, made from the current configuration."""

    def make(self, key: SessionKey, incarnation: str) -> ContainerSpec:
        """Return the spec of a session's next container. Raise UnknownAgentError or DataFolderError. Call it in a worker thread."""
        ...

    def named_files(self, agent: str) -> Collection[str]:
        """Return the files and folders of the host that the agent's table names. Does no I/O."""
        ...

    def prepare(self, key: SessionKey, files: SessionFiles) -> None:
        """Prepare a session's files for a runner. Call it in a worker thread, while no container of the session runs."""
        ...

    def images(self) -> Collection[AgentImage]:
        """Return the images that agents' containers run."""
        ...

    def max_containers(self, agent: str) -> int | None:
        """Return how many containers an agent may have at once; None if the agent has no limit of its own."""
        ...


class SessionKeeper(Protocol):
    """Reads and settles a session's files on behalf of the supervisor."""

    async def after_exit(self, session: Session, incarnation: str, reason: str, exit_: Exit) -> bool:
        """Do everything that follows a confirmed exit. Return whether the incarnation had claimed anything.

        If it raises, the supervisor calls it again.
        """
        ...

    async def why_it_may_go(self, session: Session) -> str | None:
        """Return why a running session may give up its slot to a waiting one: "idle" or another reason; None if it may not."""
        ...

    async def drain(self, session: Session, incarnation: str) -> bool:
        """Ask the incarnation to stop claiming messages. Return whether it is now working on none."""
        ...
