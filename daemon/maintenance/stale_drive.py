"""A whole stale sweep, step by step, over whatever gives access to the sessions: a running daemon, or the files alone.

preview -> gates -> per session: backup, transaction, verification -> the running list -> a canary. Each step is reported. It
keeps no state, so it can end anywhere and be run again: each session is one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from daemon.core.repair_errors import CanaryFailedError, StaleNotVerifiedError
from daemon.core.run_state import Life
from daemon.core.session_verbs import ApplyStale, PreviewStale
from daemon.core.stale_plan import Scope, Skipped, SkipReason, check_left, check_scope, in_scope
from daemon.core.verb import Verb
from daemon.store.dead_letters import Operator
from schema.errors import ClawbusError

Key = tuple[str, str]
Tell = Callable[[Mapping[str, Any]], None]
CANARY_SESSION: Final = "canary"


class StaleAccess(Protocol):
    """How a sweep reaches the sessions. Dictionaries hold only what JSON can hold."""

    source: str  # `daemon` or `files`

    def sessions(self) -> Sequence[Key]:
        """Return every session."""
        ...

    def execute(self, verb: Verb) -> dict[str, Any]:
        """Carry out PreviewStale, ApplyStale or UndoStale of one session."""
        ...

    def canary(self, agent: str, wait_s: float) -> dict[str, Any] | None:
        """Send a message to the agent's canary session and wait for its answer: {message_id, answered, error}.

        Return None if no agent can be asked.
        """
        ...


@dataclass(slots=True)
class Report:
    """What was found and done so far. Show it even when the sweep ended early."""

    applied: bool
    source: str
    sessions: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    left: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    swept: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    unreadable: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    still_running: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    canary: dict[str, Any] | None = None
    steps: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {name: getattr(self, name) for name in Report.__dataclass_fields__}


def _never(_: Key) -> bool:
    return False


class StaleSweep:
    """One sweep. `report` is complete after `run`, and partial when `run` raises. `tell` is called with each step.

    No run is stale in a session that `is_idle`.
    """

    def __init__(
        self,
        access: StaleAccess,
        scope: Scope,
        tell: Tell,
        *,
        apply: bool,
        is_idle: Callable[[Key], bool] = _never,
    ) -> None:
        check_scope(scope, apply=apply)
        self._access = access
        self._scope = scope
        self._tell = tell
        self._is_idle = is_idle if scope.session is None else _never
        self.report = Report(apply, access.source)

    def run(self, operator: Operator, *, canary_s: float | None) -> Report:
        """Preview the sweep and, with `apply`, carry it out. Raise the refusals that the module describes."""
        found = self._preview()
        if not self.report.applied:
            return self.report
        self._check()
        for key, runs in found.items():
            if runs:
                self._apply(key, operator, runs)
        if self.report.swept:
            self._look_at_running(sorted(found))
            if canary_s is not None:
                self._canary(sorted({agent for agent, _ in (key for key, runs in found.items() if runs)}), canary_s)
        return self.report

    def _verb(self, verb: type[PreviewStale], key: Key, **more: Any) -> PreviewStale:
        limits = {"older_than_ms": self._scope.older_than_ms, "max_runs": self._scope.max_runs}
        return verb(*key, **limits, **more)

    def _step(self, name: str, **more: Any) -> None:
        step = {"step": name, **more}
        self.report.steps.append(step)
        self._tell(step)

    def _preview(self) -> dict[Key, list[str]]:
        keys = in_scope(self._scope, self._access.sessions())
        found: dict[Key, list[str]] = {}
        for key in keys:
            if self._is_idle(key):
                continue
            try:
                seen = self._access.execute(self._verb(PreviewStale, key))
            except ClawbusError as error:
                code = getattr(error, "remote_code", error.code)
                unreadable = {"agent": key[0], "session": key[1], "code": code, "error": str(error), "fix": error.hint}
                self.report.unreadable.append(unreadable)
                continue
            self.report.runs += seen["runs"]
            self.report.left += seen["left"]
            found[key] = [str(one["run"]) for one in seen["runs"]]
        self.report.sessions = len(keys)
        self._step("preview", sessions=len(keys), runs=len(self.report.runs), left=len(self.report.left),
                   unreadable=len(self.report.unreadable))  # fmt: skip
        return found

    def _check(self) -> None:
        """Check the gates over the whole scope, before anything in it is changed."""
        left = [
            Skipped(one["agent"], one["session"], one["run"], SkipReason(one["gate"]), one["why"])
            for one in self.report.left
        ]
        left += [
            Skipped(one["agent"], one["session"], "its files", SkipReason.DOUBTFUL, f"{one['code']}: {one['error']}")
            for one in self.report.unreadable
        ]
        check_left(left, len(self.report.runs), self._scope)
        self._step("gates", passed=True)

    def _apply(self, key: Key, operator: Operator, runs: Sequence[str]) -> None:
        swept = self._access.execute(
            self._verb(ApplyStale, key, by=operator.name, reason=operator.reason, expected=list(runs))
        )
        self.report.swept.append(swept)
        backup = swept["backup"]
        self._step(
            "backup", session="/".join(key), path=backup["path"], rows=backup["rows"], verified=backup["verified"]
        )
        self._step("sweep", session="/".join(key), runs=len(swept["swept"]))
        self._step("verify", session="/".join(key), sampled=swept["sampled"])

    def _look_at_running(self, keys: Sequence[Key]) -> None:
        """Check that only live runs are listed as running. Name those that the sweep left because of their age."""
        young = {one["run"] for one in self.report.left if one["gate"] == SkipReason.YOUNG}
        for key in keys:
            running = self._access.execute(self._verb(PreviewStale, key))["running"]
            self.report.still_running += [{"agent": key[0], "session": key[1], **one} for one in running]
        dead = [
            one for one in self.report.still_running
            if one["life"] == Life.GONE and one["run"] not in young
        ]  # fmt: skip
        self._step("running", listed=len(self.report.still_running), not_alive=len(dead))
        if dead:
            names = ", ".join(f"{one['run']} of {one['agent']}/{one['session']}" for one in dead[:3])
            raise StaleNotVerifiedError(f"{names} are listed as running, and their containers are gone.")

    def _canary(self, agents: Sequence[str], wait_s: float) -> None:
        for agent in agents[:1]:
            self.report.canary = self._access.canary(agent, wait_s)
            if self.report.canary is None:
                self._step("canary", skipped="no daemon runs; send one when it does")
                return
            self._step("canary", agent=agent, **self.report.canary)
            if not self.report.canary["answered"]:
                why = self.report.canary["error"] or f"no answer within {wait_s:g} s"
                raise CanaryFailedError(f"a canary message to {agent}/{CANARY_SESSION} did not come through: {why}")
