"""The operator's verbs about a session as a whole, and its stale runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from daemon.core.stale_plan import Scope, check_scope
from daemon.core.verb import MAX_ID, Verb, check_length
from schema.frozen import frozen

_SESSION: Final = "/v1/sessions/{agent}/{session:path}/"


@frozen
class StopSession(Verb):
    """Ask the session's container for a graceful end, without waiting: {stopping, incarnation}."""

    route: ClassVar[str] = f"{_SESSION}stop"
    wait_s: ClassVar[float] = 0.0


@frozen
class KillSession(Verb):
    """Kill the session's container and wait for the confirmed exit: {killed, incarnation, exit_code}."""

    route: ClassVar[str] = f"{_SESSION}kill"
    wait_s: ClassVar[float] = 600.0


@frozen
class ReleaseSession(Verb):
    """Take the session out of quarantine: {released, was}."""

    route: ClassVar[str] = f"{_SESSION}release"
    wait_s: ClassVar[float] = 0.0


@frozen
class QuarantineSession(Verb):
    """Take the session out of service and kill its container: {quarantined, was, ending, noted}."""

    route: ClassVar[str] = "/v1/repairs/quarantine"


@frozen
class ResetSession(Verb):
    """Kill the container, put out/ aside, release: {moved_to, released, was}. `discard`: also when that loses answers."""

    route: ClassVar[str] = "/v1/repairs/reset"
    wait_s: ClassVar[float] = 600.0

    discard: bool = False


@frozen
class DeleteSession(Verb):
    """Delete the session for good: {deleted, deletion, lost, removed}. `force`: also when it has work."""

    route: ClassVar[str] = "/v1/repairs/delete"
    wait_s: ClassVar[float] = 120.0

    force: bool = False


@frozen
class PreviewStale(Verb):
    """List the session's stale runs: {runs, left, running}. Changes nothing."""

    route: ClassVar[str] = "/v1/stale/preview"

    older_than_ms: int = 0
    max_runs: int = 0

    def __post_init__(self) -> None:
        """Check the limits as for a sweep that is applied."""
        Verb.__post_init__(self)
        check_scope(self.scope, apply=True)

    @property
    def scope(self) -> Scope:
        """The sweep's scope: this session, with the sweep's limits."""
        return Scope(session=(self.agent, self.session), older_than_ms=self.older_than_ms, max_runs=self.max_runs)


@frozen
class ApplyStale(PreviewStale):
    """End the session's stale runs: the report of stale_sweep.Swept. `expected`: the runs that the preview named."""

    route: ClassVar[str] = "/v1/stale/apply"

    expected: Sequence[str] | None = None


@frozen
class UndoStale(Verb):
    """Put the backup of a sweep back: {agent, session, restored, before}. `backup` is the file's name."""

    route: ClassVar[str] = "/v1/stale/undo"

    backup: str = ""

    def __post_init__(self) -> None:
        """Check the backup's name, too."""
        Verb.__post_init__(self)
        check_length("backup", self.backup, MAX_ID)
