"""Lists runs and finds one by its id, each with its verdict, from the files and the runtime's listing. Read-only.

A run is one message in one incarnation, `MESSAGE@INCARNATION`; an unclaimed run has only its message's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from daemon.config.models import Config
from daemon.config.policies import read_limits
from daemon.core.clock import Clock
from daemon.core.errors import UnknownMessageError, UnknownSessionError
from daemon.core.run_evidence import RunRead, RuntimeContext
from daemon.core.short_ids import is_part, means
from daemon.inspect.central_reading import CentralSeen, Key, folder_of, incarnations_of, read_central
from daemon.inspect.containers import RuntimeSeen, context_of, install_id_of, look_at_runtime
from daemon.inspect.doctor import LookAtRuntime
from daemon.inspect.finding import sessions_with, the_only
from daemon.inspect.idle_check import IdleSessions
from daemon.inspect.reading import RunsRead, read_newest_runs, read_runs_of
from schema.frozen import frozen
from schema.layout import SessionFolder

BUDGET_S: Final = 60.0


@frozen
class RunQuery:
    """Which runs to list. `status` is the actual or the listed one; `since` (epoch ms) limits the last change."""

    session: Key | None = None
    agent: str | None = None
    status: str | None = None
    stale: bool = False
    since: int | None = None
    limit: int = 50


@frozen
class Found:
    """One message's runs, and where they were found. `wanted` is the run that was asked for.

    `incarnations` are the session's rows in central.db, by id.
    """

    key: Key
    folder: SessionFolder
    incarnations: Mapping[str, Mapping[str, Any]]
    runs: RunsRead
    wanted: RunRead


class Runs:
    """Reads runs of one data folder. `synced`: a daemon runs on it."""

    def __init__(self, config: Config, clock: Clock, *, synced: bool, runtime: LookAtRuntime = look_at_runtime) -> None:
        self._config = config
        self._clock = clock
        self._synced = synced
        self._central: CentralSeen = read_central(config.data_dir)
        self.install_id = install_id_of(config.data_dir, self._central.install_id)
        self.listing: RuntimeSeen = runtime(config, self.install_id)

    def newest(self, query: RunQuery) -> dict[str, Any]:
        """Return {runs, total, not_examined, errors, runtime_error}: the newest matching runs, newest first.

        Raise UnknownSessionError, DataFolderError.
        """
        deadline = self._clock.monotonic() + BUDGET_S
        keys = [key for key in self._keys(query.session) if query.agent in (None, key[0])]
        # Stale runs exist only in sessions that are not idle; other runs exist in all of them.
        idle = self._idle() if query.stale and query.session is None else None
        matching: list[tuple[Key, RunRead]] = []
        errors: list[dict[str, Any]] = []
        examined = 0
        for key in keys:
            recorded = idle is not None and idle.is_recorded(key)
            if not recorded and self._clock.monotonic() > deadline:
                continue
            examined += 1
            if idle is not None and idle.covers(key):
                continue
            folder = folder_of(self._config.data_dir, key)
            # Few of the newest messages may match the filter, so read more of them.
            depth = query.limit if query.status is None and not query.stale else max(query.limit, 1000)
            context = self._context(key, incarnations_of(self._config.data_dir, key))
            read = read_newest_runs(folder, depth, context, read_limits(self._config))
            errors += [{"agent": key[0], "session": key[1], "error": text} for text in read.errors]
            matching += [(key, run) for run in read.runs if _matches(run, query)]
        matching.sort(key=lambda found: found[1].at, reverse=True)
        return {
            "runs": [summary(key, run) for key, run in matching[: query.limit]],
            "total": len(matching),
            "not_examined": len(keys) - examined,
            "errors": errors[:50],
            "runtime_error": self.listing.error,
        }

    def find(self, identity: str, session: Key | None = None) -> Found:
        """Return the run of this id, or the latest run of this message.

        Raise UnknownMessageError, UnknownSessionError, AmbiguousIdError, DataFolderError.
        """
        keys = self._keys(session)
        message_id, incarnation = identity, None
        holders, unread = sessions_with(self._config.data_dir, keys, identity)
        if not holders and "@" in identity:  # an id may contain an @ itself
            message_id, _, incarnation = identity.rpartition("@")
            holders, unread = sessions_with(self._config.data_dir, keys, message_id)
        key = the_only(holders, "a message", message_id, unread=unread)
        return self._found(key, message_id, incarnation)

    def _found(self, key: Key, message_id: str, incarnation: str | None) -> Found:
        folder, incarnations = folder_of(self._config.data_dir, key), incarnations_of(self._config.data_dir, key)
        runs = read_runs_of(folder, [message_id], self._context(key, incarnations), read_limits(self._config))
        named = [run for run in runs.runs if incarnation is None or _is_of(run, incarnation)]
        if not named:
            told = ", ".join(run.run_id for run in runs.runs) or "; ".join(runs.errors)
            raise UnknownMessageError(
                f"message {message_id!r} has no run in incarnation {incarnation!r}.", hint=f"Its runs: {told}."
            )
        claimed = [run for run in named if run.evidence.incarnation is not None]
        return Found(key, folder, incarnations, runs, (named if named[-1].evidence.latest else claimed)[-1])

    def _keys(self, session: Key | None) -> list[Key]:
        known = self._central.known()
        if session is None:
            return known
        if session not in known:
            raise UnknownSessionError(f"there is no session {'/'.join(session)}.")
        return [session]

    def _context(self, key: Key, incarnations: Mapping[str, Mapping[str, Any]]) -> RuntimeContext:
        return context_of(self.listing, key, incarnations, self._clock.now_ms(), synced=self._synced)

    def _idle(self) -> IdleSessions:
        with_container = {(one.agent, one.session) for one in self.listing.containers or ()}
        config = self._config
        return IdleSessions(config.data_dir, self._central, read_limits(config), self._clock.now_ms(), with_container)


def summary(key: Key, run: RunRead) -> dict[str, Any]:
    """Return one run as lists show it. Times are epoch ms, durations ms."""
    seen, verdict = run.evidence, run.verdict
    ended = verdict.since if verdict.status.value not in ("waiting", "running") else None
    return {
        "run_id": run.run_id,
        "agent": key[0],
        "session": key[1],
        "message_id": seen.message_id,
        "incarnation": seen.incarnation,
        "status": verdict.status.value,
        "listed": verdict.listed.value,
        "stale": verdict.stale,
        "confidence": verdict.confidence.value,
        "reasons": [{"code": reason.code, "text": reason.text} for reason in verdict.reasons],
        "decided_by": verdict.decided_by.value,
        "at": run.at,
        "accepted_at": run.message.accepted_at,
        "claimed_at": seen.claimed_at,
        "ended_at": ended,
        "duration_ms": _duration(seen.claimed_at, ended if ended is not None else seen.now),
        "tries": run.message.tries,
        "kind": run.message.kind,
        "text": run.message.text,
    }


def verdict_of(run: RunRead) -> Mapping[str, Any]:
    """Return the verdict as JSON values."""
    verdict = run.verdict
    return {
        "status": verdict.status.value,
        "listed": verdict.listed.value,
        "stale": verdict.stale,
        "confidence": verdict.confidence.value,
        "decided_by": verdict.decided_by.value,
        "inconsistent": verdict.inconsistent,
        "lacks": [source.value for source in verdict.lacks],
        "reasons": [{"code": reason.code, "text": reason.text} for reason in verdict.reasons],
        "since": verdict.since,
    }


def _is_of(run: RunRead, incarnation: str) -> bool:
    """Return whether a run belongs to this incarnation, given as a whole id or a short one."""
    whole = run.evidence.incarnation
    return whole == incarnation or (whole is not None and is_part(incarnation) and means(incarnation, whole))


def _duration(start: int | None, end: int | None) -> int | None:
    return max(0, end - start) if start is not None and end is not None else None


def _matches(run: RunRead, query: RunQuery) -> bool:
    if run.evidence.incarnation is None and not run.message.trigger:
        return False  # not a run: it wakes no agent (a notice of the host, `send --context`), and none has claimed it
    if query.status is not None and query.status not in (run.verdict.status.value, run.verdict.listed.value):
        return False
    if query.stale and not run.verdict.stale:
        return False
    return query.since is None or run.at >= query.since
