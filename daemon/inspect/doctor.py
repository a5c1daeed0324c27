"""Examines the host, every session and every doubtful run, and reports problems. Changes nothing.

`host_facts.py` reads what the host shows, `session_facts.py` what a session shows; rules in `core` judge them.

While a daemon runs, some problems last only for a moment. They are reported only if a second look finds them too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from daemon.config.models import Config
from daemon.config.policies import read_limits
from daemon.core.clock import Clock
from daemon.core.daemon_status import DaemonStatus
from daemon.core.diagnoses import diagnose_host, diagnose_run, diagnose_session
from daemon.core.diagnosis import Diagnosis
from daemon.core.errors import UnknownSessionError
from daemon.core.facts import ClockFacts, Container, DaemonState, Failing, HostFacts, SessionFacts
from daemon.inspect.central_reading import (
    CentralSeen,
    Key,
    folder_of,
    incarnations_of,
    read_central,
    without_registry,
)
from daemon.inspect.containers import RuntimeSeen, context_of, install_id_of, look_at_runtime
from daemon.inspect.host_facts import host_facts, is_busy
from daemon.inspect.idle_check import IdleSessions
from daemon.inspect.lock_owners import container_processes, foreign_holders
from daemon.inspect.reading import read_suspect_runs
from daemon.inspect.route_findings import route_findings
from daemon.inspect.session_facts import run_facts, session_facts
from daemon.store.agent_words import agent_words
from schema.errors import SchemaTooNewError
from schema.layout import SessionFolder

BUDGET_S: Final = 60.0  # for all sessions; a few seconds do where the daemon has recorded which are idle
SECOND_LOOK_S: Final = 1.5  # the pause before the second look
# Findings that a running daemon ends by itself within moments.
_PASSING: Final = frozenset(
    {
        *("GHOST_RUN", "LOST_ACK", "STALE_RUN", "CONTRADICTION", "GHOST_CONTAINER", "ORPHANED_CONTAINER"),
        *("HOT_JOURNAL", "UNREGISTERED", "SESSION_FAILING", "FILES_UNREADABLE", "STUCK_CLAIM", "CONTAINER_RESTARTED"),
        *("RESTART_POLICY", "FILE_LOCKED", "STANDBY_ABSENT"),
    }
)

LookAtRuntime = Callable[[Config, str | None], RuntimeSeen]


@dataclass(slots=True)
class Examination:
    """The result. `not_examined` is the number of sessions that there was no time for."""

    at: int
    daemon: DaemonState
    diagnoses: list[Diagnosis] = field(default_factory=list[Diagnosis])
    sessions: int = 0
    runs: int = 0
    not_examined: int = 0
    host: HostFacts | None = None

    @property
    def healthy(self) -> bool:
        """Whether no problem was found."""
        return not self.diagnoses


class Doctor:
    """Examines one data folder. `ask` asks the daemon for its status, `runtime` lists the containers.

    `config_faults`: why the configuration is broken; `config` then has only the parts that could be read.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        ask: Callable[[], DaemonStatus],
        *,
        runtime: LookAtRuntime = look_at_runtime,
        budget_s: float = BUDGET_S,
        config_faults: tuple[str, ...] = (),
    ) -> None:
        self._config = config
        self._clock = clock
        self._ask = ask
        self._runtime = runtime
        self._budget_s = budget_s
        self._config_faults = config_faults

    def examine(self, session: Key | None = None, *, pause: Callable[[float], None] = time.sleep) -> Examination:
        """Examine everything; or with `session` only that one and the host. Raise DataFolderError, UnknownSessionError.

        While the daemon runs, look a second time at findings that may be temporary.
        """
        first = self._look(session)
        if first.daemon is not DaemonState.UP or not any(one.code in _PASSING for one in first.diagnoses):
            return first
        pause(SECOND_LOOK_S)
        return _both(first, self._look(session, first))

    def _look(self, only: Key | None, first: Examination | None = None) -> Examination:
        """Examine the host, and every session or one. After a `first` examination, look only at sessions with temporary findings."""
        now = self._clock.now_ms()
        deadline = self._clock.monotonic() + self._budget_s
        status = self._ask()
        try:
            central = read_central(self._config.data_dir)
        except SchemaTooNewError as error:
            central = without_registry(self._config.data_dir, error)
        listing = self._runtime(self._config, install_id_of(self._config.data_dir, central.install_id))
        host = host_facts(self._config, now, status, central, listing)
        host = replace(host, config_faults=self._config_faults)
        if first is not None and first.host is not None:
            host = replace(host, clock=_further(host.clock, first.host.clock))
        found = Examination(now, status.state)
        of_sessions: list[Diagnosis] = []
        failing, near = _failing(status), _near_limits(status)
        keys = central.known() if only is None else [key for key in central.known() if key == only]
        keys += [key for key in _strays_only(listing, central) if only in (None, key)]
        if only is not None and not keys:
            raise UnknownSessionError(f"there is no session {'/'.join(only)}.")
        idle = None
        if first is not None:
            again = _passing(first)
            keys = [key for key in keys if key in again]
        elif only is None:
            # Work of an agent that is gone rests until it is due, and is nothing's business before.
            lost = {key for key in keys if host.lost(key[0]) and _is_due(central.sessions.get(key))}
            idle = self._idle(central, listing, now, {*failing, *near, *lost})
        for key in keys:
            recorded = idle is not None and idle.is_recorded(key)
            if not recorded and self._clock.monotonic() > deadline:
                continue
            found.sessions += 1
            if idle is not None and idle.covers(key):
                continue
            by_daemon = SessionFacts(*key, failing=failing.get(key, ()), near_limit=near.get(key))
            told, clock, runs = self._session(key, host, central, listing, by_daemon)
            found.runs += runs
            of_sessions += told
            host = replace(host, clock=_further(host.clock, clock))
        found.not_examined = len(keys) - found.sessions
        of_routes = route_findings(self._config, now) if only is None and not self._config_faults else []
        found.diagnoses = [*diagnose_host(host), *of_routes, *of_sessions]
        found.host = host
        return found

    def _idle(self, central: CentralSeen, listing: RuntimeSeen, now: int, asked: set[Key]) -> IdleSessions:
        with_container = {(one.agent, one.session) for one in listing.containers or ()}
        return IdleSessions(self._config.data_dir, central, read_limits(self._config), now, with_container | asked)

    def _session(
        self, key: Key, host: HostFacts, central: CentralSeen, listing: RuntimeSeen, by_daemon: SessionFacts
    ) -> tuple[list[Diagnosis], ClockFacts, int]:
        folder = folder_of(self._config.data_dir, key)
        incarnations = incarnations_of(self._config.data_dir, key)
        context = context_of(listing, key, incarnations, host.now, synced=host.daemon is DaemonState.UP)
        live = central.live.get(key)
        listed = [one for one in listing.containers or () if (one.agent, one.session) == key]
        own = next((one for one in listed if _is_recorded(one, live)), None)
        strays = tuple(one for one in listed if one is not own)
        if central.missing or central.error is not None:
            strays = ()  # without central.db nobody knows which containers are supervised
        row = central.sessions.get(key)
        if row is None and not folder.root.is_dir():
            facts = SessionFacts(*key, registered=False, containers=strays)
            return diagnose_session(host, facts), ClockFacts(), 0
        runs = read_suspect_runs(folder, context, read_limits(self._config))
        seen = session_facts(key, folder, row, live, own, strays, context, runs)
        facts = replace(seen.facts, failing=by_daemon.failing, near_limit=by_daemon.near_limit, folder=str(folder.root))
        if is_busy(*facts.errors, *(one.code for one in facts.failing)):
            containers = (
                facts.live.container_id if facts.live is not None else None,
                *(one.container_id for one in listed),
            )
            ours = container_processes(self._config, containers) | {host.holder_pid or 0}
            facts = replace(facts, lock_holders=foreign_holders((folder.inbound_db, folder.outbound_db), ours))
        told = [
            _with_words(folder, one, facts.crashing) if one.code == "MESSAGE_RETRYING" else one
            for one in diagnose_session(host, facts)
        ]
        # Do not believe the files of a quarantined session.
        if seen.facts.quarantined_at is None:
            of_runs = (diagnose_run(host, seen.facts, run) for run in run_facts(runs, context))
            told += [_with_words(folder, one, one.message_id) for one in of_runs if one is not None]
        return told, seen.clock, sum(run.message.trigger or run.evidence.claimed for run in runs.runs)


def _is_due(row: Mapping[str, Any] | None) -> bool:
    return row is not None and row["next_due_at"] is not None


def _with_words(folder: SessionFolder, one: Diagnosis, message_id: str | None) -> Diagnosis:
    """Add the last words of the agent in this message's turn to the finding's evidence."""
    words = agent_words(folder, message_id) if message_id is not None else []
    if not words:
        return one
    return replace(one, evidence=(*one.evidence, f"The agent's last words ({words[-1].kind}): {words[-1].text}"))


def _passing(found: Examination) -> frozenset[Key]:
    """Return the sessions with a finding that may be temporary."""
    return frozenset(
        (one.agent, one.session)
        for one in found.diagnoses
        if one.code in _PASSING and one.agent is not None and one.session is not None
    )


def _both(first: Examination, second: Examination) -> Examination:
    """Merge two examinations. Keep a temporary finding only if both have it; take the sessions without any from the first."""
    again = _passing(first)
    seen = {_subject(one) for one in first.diagnoses}
    kept = [one for one in second.diagnoses if one.code not in _PASSING or _subject(one) in seen]
    others = [one for one in first.diagnoses if one.session is not None and (one.agent, one.session) not in again]
    return replace(
        first,
        at=second.at,
        daemon=second.daemon,
        diagnoses=[*kept, *others],
        not_examined=first.not_examined + second.not_examined,
        host=second.host,
    )


def _failing(status: DaemonStatus) -> dict[Key, tuple[Failing, ...]]:
    """Return the failing work that the daemon reports, by session."""
    found: dict[Key, tuple[Failing, ...]] = {}
    for one in (status.live or {}).get("troubles") or ():
        key = (str(one["agent"]), str(one["session"]))
        failing = Failing(
            str(one["code"]), str(one["sentence"]), int(one["since"]), int(one["times"]), one.get("resource")
        )
        found[key] = (*found.get(key, ()), failing)
    return found


def _near_limits(status: DaemonStatus) -> dict[Key, str]:
    """Return the daemon's sentence about an out/ or home/ folder that is near its limit, by session."""
    told = (status.live or {}).get("near_limits") or ()
    return {(str(one["agent"]), str(one["session"])): str(one["sentence"]) for one in told}


def _strays_only(listing: RuntimeSeen, central: CentralSeen) -> list[Key]:
    """Return the sessions that only a running container shows."""
    known = set(central.known())
    return sorted({(one.agent, one.session) for one in listing.containers or ()} - known)


def _is_recorded(one: Container, live: Mapping[str, Any] | None) -> bool:
    """Return whether central.db records exactly this container; another one may carry the same labels."""
    return (
        live is not None
        and live["id"] == one.incarnation
        and live.get("container_id") in {None, one.container_id}
    )  # fmt: skip


def _further(one: ClockFacts, other: ClockFacts) -> ClockFacts:
    """Return the stronger of two pieces of evidence for a clock jump: a waiting message beats a date."""
    if (other.message_id is not None, other.ahead_ms) <= (one.message_id is not None, one.ahead_ms):
        return one
    return replace(other, jumped_at=one.jumped_at, by_ms=one.by_ms)


def _subject(one: Diagnosis) -> tuple[str | None, ...]:
    """Return what makes two findings the same."""
    return one.code, one.agent, one.session, one.message_id, one.incarnation
