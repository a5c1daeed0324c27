"""What the supervisor needs of other parts: the specs of containers, and whoever keeps a session's files. Protocols only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from daemon.engine.sessions import Session
from daemon.engine.supervisor.slots import AgentImage
from daemon.runtimes.protocol import ContainerSpec, Exit
from daemon.store.registry import SessionKey
from daemon.store.session_files import SessionFiles


class Specs(Protocol):
    """What the configuration says of containers, as it is now."""

    def make(self, key: SessionKey, incarnation: str) -> ContainerSpec:
        """Return the spec of a session's next container. Raises UnknownAgentError, DataFolderError."""
        ...

    def prepare(self, key: SessionKey, files: SessionFiles) -> None:
        """Make what a runner expects in a session's files: in a thread, while no container of it runs."""
        ...

    def images(self) -> Collection[AgentImage]:
        """Return the images that agents' containers are made from."""
        ...

    def max_containers(self, agent: str) -> int | None:
        """Return how many containers an agent may have at once; None without a limit of its own."""
        ...


class SessionKeeper(Protocol):
    """Whoever reads and settles a session's files for its container."""

    async def after_exit(self, session: Session, incarnation: str, reason: str, exit_: Exit) -> bool:
        """Do all that a confirmed exit entails; return whether the incarnation had claimed anything.

        When it raises, it is called again.
        """
        ...

    async def why_it_may_go(self, session: Session) -> str | None:
        """Return why a running session may lose its slot to one that waits: "idle", another reason, or None."""
        ...

    async def drain(self, session: Session, incarnation: str) -> bool:
        """Tell the incarnation to claim nothing more; return whether it works on nothing."""
        ...
