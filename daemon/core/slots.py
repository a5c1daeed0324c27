"""Decides which slot serves and what a deploy may do next: records and transitions, pure. The file is `deploy/state.json`.

Every step of a deploy is one new state, written in one step by the daemon that holds the data folder's lock. So after a
crash the state is the one before or the one after a step, and `serving` names one slot in both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from daemon.core.deploy_errors import DeployCooldownError, DeployRefusedError, DeployRunningError, NotServingError
from daemon.core.deploy_pace import Pace

BLUE: Final = "blue"
GREEN: Final = "green"
SLOTS: Final = (BLUE, GREEN)
GATES: Final = ("preflight", "warm", "callback_probe", "drain", "cutover", "bake", "rollback")
FAILURE_ACTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "preflight": "refuse; nothing was started",
        "warm": "block the cutover; the standby stays",
        "callback_probe": "block the release",
        "drain": "hold: the serving daemon takes new work again",
        "cutover": "roll back",
        "bake": "roll back",
        "rollback": "an operator decides",
    }
)
Status = Literal["pending", "running", "pass", "fail", "skipped"]
DEPLOY_STATES: Final = ("running", "passed", "failed", "aborted", "rolled_back", "unhealthy")
UNKNOWN: Final = "unknown"  # the result for a standing condition that could not be checked
KEPT: Final = 20  # finished deploys that the state keeps


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate of one deploy. Times are epoch milliseconds."""

    name: str
    status: Status = "pending"
    since: int | None = None
    ended: int | None = None
    measured: Mapping[str, Any] = field(default_factory=dict[str, Any])
    limit: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Deploy:
    """One deploy. `state`: running, passed, failed or aborted (both before the cutover), rolled_back, unhealthy (no way back)."""

    id: str
    from_slot: str
    from_release: str
    to_slot: str
    to_release: str
    started_at: int
    gates: tuple[Gate, ...]
    state: str = "running"
    ended_at: int | None = None
    reason: str = ""
    no_rollback: bool = False
    boot: str = ""  # the machine's boot in which the new slot's daemon was started last
    stopped: bool = False  # the baking daemon was asked to stop, so its next start is not a breach
    reported: bool = False  # the trace of the whole deploy was handed to the telemetry

    def gate(self, name: str) -> Gate:
        """Return one gate."""
        return next(one for one in self.gates if one.name == name)

    def with_gate(self, name: str, **changes: Any) -> Deploy:
        """Return the deploy with one gate changed."""
        return replace(self, gates=tuple(replace(one, **changes) if one.name == name else one for one in self.gates))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state != "running"

    @property
    def is_cut_over(self) -> bool:
        """Whether the new slot was made the serving one."""
        return self.gate("cutover").since is not None


@dataclass(frozen=True, slots=True)
class SlotState:
    """What deploy/state.json holds. `cooldown` is {release: epoch milliseconds until which it is refused}."""

    epoch: int = 0
    serving: str | None = None
    release: str | None = None
    deploy: Deploy | None = None
    cooldown: Mapping[str, int] = field(default_factory=dict[str, int])
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def active(self) -> Deploy | None:
        """The deploy under way, or None."""
        return self.deploy if self.deploy is not None and not self.deploy.is_over else None


def as_json(state: SlotState) -> dict[str, Any]:
    """Return the content of state.json."""
    return asdict(state)


def from_json(found: Mapping[str, Any]) -> SlotState:
    """Return the state. Raise TypeError, ValueError or LookupError for what is none.

    Fields that this release does not know are left out: after a rollback it reads what a later one wrote.
    """
    values = _known(SlotState, found)
    if found and not {"epoch", "serving"} <= values.keys():
        raise LookupError("it names neither epoch nor slot")
    if values.get("deploy") is not None:
        raw = _known(Deploy, values["deploy"])
        raw["gates"] = tuple(Gate(**_known(Gate, one)) for one in raw["gates"])
        values["deploy"] = Deploy(**raw)
    values["history"] = tuple(values.get("history", ()))
    state = SlotState(**values)
    if state.serving not in (None, *SLOTS) or type(state.epoch) is not int:
        raise ValueError("the slot or the epoch is none")
    return state


def _known(record: type[SlotState | Deploy | Gate], found: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(record)}
    return {name: value for name, value in dict(found).items() if name in names}


def other(slot: str) -> str:
    """Return the other slot."""
    return GREEN if slot == BLUE else BLUE


# --- the start of a daemon in a slot, under the data folder's lock


def claim(state: SlotState, slot: str, release: str, now: int, boot: str) -> SlotState:
    """Return the state with this daemon serving. Raise NotServingError when the other slot is the recorded one.

    A deploy that the former daemon had not brought to its cutover ends here. A new slot's second start in the same boot
    that was not requested is a breach (`breach_at_start`).
    """
    if state.serving not in (None, slot):
        raise NotServingError(f"slot {state.serving} serves, not {slot}.")
    fresh = replace(state, serving=slot, release=release, epoch=max(1, state.epoch))
    deploy = state.active
    if deploy is None:
        return fresh
    if deploy.to_slot != slot:
        return finished(fresh, replace(deploy, reason="the serving daemon ended during the deploy"), "failed", now)
    return replace(fresh, deploy=replace(deploy, boot=boot, stopped=False))


def served(state: SlotState, now: int) -> SlotState:
    """Return the state after the new slot's daemon is ready: the cutover has passed, and the bake begins, or begins again."""
    deploy = state.active
    if deploy is None or not deploy.is_cut_over:
        return state
    cutover = deploy.gate("cutover")
    if cutover.status == "running":
        took = max(0, now - (cutover.since or now))
        deploy = deploy.with_gate("cutover", status="pass", ended=now, measured={"took_ms": took})
    return replace(state, deploy=deploy.with_gate("bake", status="running", since=now))


def breach_at_start(state: SlotState, slot: str, boot: str) -> str | None:
    """Return why the start of this daemon is itself a breach of the bake, or None. `state` is the one before `claim`."""
    deploy = state.active
    if deploy is None or deploy.to_slot != slot or deploy.stopped or deploy.boot != boot:
        return None  # `boot` is empty until the new daemon's first start
    return "the new daemon ended and was started again"


def stopped(state: SlotState) -> SlotState:
    """Return the state after an orderly stop that somebody asked for."""
    deploy = state.active
    return replace(state, deploy=replace(deploy, stopped=True)) if deploy is not None and deploy.is_cut_over else state


# --- a deploy


def refuse_second(state: SlotState) -> None:
    """Raise DeployRunningError while a deploy is under way."""
    if state.active is not None:
        raise DeployRunningError(f"deploy {state.active.id} is under way.")


def begin(state: SlotState, deploy: Deploy, now: int, *, force: bool) -> SlotState:
    """Return the state with a new deploy. Raise DeployRefusedError."""
    refuse_second(state)
    if state.serving != deploy.from_slot:
        raise DeployRefusedError(f"slot {state.serving} serves, not {deploy.from_slot}.")
    until = state.cooldown.get(deploy.to_release, 0)
    # A clock that was set back must not lock a release out: no cooldown is longer than an hour.
    if now < until <= now + 3_600_000 and not force:
        raise DeployCooldownError(
            f"release {deploy.to_release[:12]} failed lately; it is refused for {(until - now) // 1000 + 1} s more."
        )
    return replace(state, deploy=deploy)


def new_deploy(
    identity: str,
    state: SlotState,
    to_release: str,
    now: int,
    limits: Mapping[str, Mapping[str, Any]],
    *,
    no_rollback: bool,
) -> Deploy:
    """Return a deploy from the serving slot to the other one."""
    serving = state.serving or BLUE
    gates = tuple(Gate(name, limit=dict(limits.get(name, {}))) for name in GATES)
    return Deploy(
        identity, serving, state.release or "", other(serving), to_release, now, gates, no_rollback=no_rollback
    )


def check_schema(prior: Mapping[str, int], new: Mapping[str, int], *, no_rollback: bool) -> str | None:
    """Return why the new release may not take over these files, or None.

    A release that writes a newer schema leaves files that the prior one refuses to open, so there is no way back.
    """
    older = sorted(name for name, version in prior.items() if new.get(name, 0) < version)
    if older:
        return f"the release cannot read the files: {', '.join(older)} would go back to an older schema"
    newer = sorted(name for name, version in new.items() if version > prior.get(name, version))
    if newer and not no_rollback:
        return (
            f"the release changes the schema of {', '.join(newer)}, so the prior one could not take over again;"
            " --no-rollback accepts that"
        )
    return None


def cut_over(state: SlotState, now: int, pace_ms: Mapping[str, int] | None = None) -> SlotState:
    """Return the state in which the new slot serves: the one step that moves the work.

    `pace_ms` are the limits of the release's pace, which the bake reads.
    """
    deploy = state.active
    if deploy is None or state.serving != deploy.from_slot:
        raise NotServingError("no deploy is ready for its cutover.")
    moved = deploy.with_gate("cutover", status="running", since=now)
    if pace_ms:
        moved = moved.with_gate("bake", limit={**deploy.gate("bake").limit, "p95_ms": dict(pace_ms)})
    return replace(state, serving=deploy.to_slot, release=deploy.to_release, epoch=state.epoch + 1, deploy=moved)


def failed(state: SlotState, gate: str, reason: str, now: int, measured: Mapping[str, Any] | None = None) -> SlotState:
    """Return the state after a gate before the cutover failed: the serving slot goes on."""
    deploy = state.active
    if deploy is None:
        return state
    ended = deploy.with_gate(gate, status="fail", ended=now, reason=reason, measured=dict(measured or {}))
    return finished(state, replace(ended, reason=f"{gate}: {reason}"), "failed", now)


def aborted(state: SlotState, gate: str, by: str, now: int) -> SlotState:
    """Return the state after an operator ended the deploy in this gate, before the cutover: the serving slot goes on."""
    deploy = state.active
    if deploy is None:
        return state
    ended = deploy.with_gate(gate, status="skipped", ended=now, reason=f"aborted by {by}")
    return finished(state, replace(ended, reason=f"aborted by {by} in {gate}"), "aborted", now)


def roll_back(state: SlotState, reason: str, now: int, cooldown_ms: int) -> SlotState:
    """Return the state in which the prior slot serves again, the cooldown included, or the deploy is unhealthy.

    Without a way back (`no_rollback`) the new slot goes on, marked unhealthy.
    """
    deploy = state.active
    if deploy is None or state.serving != deploy.to_slot:
        raise NotServingError("no deploy is past its cutover.")
    breached = "bake" if deploy.gate("cutover").status == "pass" else "cutover"
    marked = deploy.with_gate(breached, status="fail", ended=now, reason=reason)
    cool = {**state.cooldown, deploy.to_release: now + cooldown_ms}
    if deploy.no_rollback:
        marked = marked.with_gate("rollback", status="skipped", ended=now, reason="--no-rollback")
        return finished(
            replace(state, cooldown=cool), replace(marked, reason=f"{breached}: {reason}"), "unhealthy", now
        )
    marked = marked.with_gate("rollback", status="pass", since=now, ended=now)
    back = replace(
        state, serving=deploy.from_slot, release=deploy.from_release, epoch=state.epoch + 1, cooldown=cool
    )  # fmt: skip
    return finished(back, replace(marked, reason=f"{breached}: {reason}"), "rolled_back", now)


def passed(state: SlotState, now: int, measured: Mapping[str, Any]) -> SlotState:
    """Return the state after the bake."""
    deploy = state.active
    if deploy is None:
        return state
    done = deploy.with_gate("bake", status="pass", ended=now, measured=dict(measured))
    return finished(state, done.with_gate("rollback", status="skipped"), "passed", now)


def finished(state: SlotState, deploy: Deploy, outcome: str, now: int) -> SlotState:
    """Return the state with a deploy that is over."""
    gates = tuple(
        replace(one, status="skipped") if one.status == "pending"
        else replace(one, status="fail", ended=now, reason=one.reason or deploy.reason) if one.status == "running"
        else one
        for one in deploy.gates
    )  # fmt: skip
    over = replace(deploy, gates=gates, state=outcome, ended_at=now)
    line = {
        "id": over.id,
        "from": over.from_release,
        "to": over.to_release,
        "state": outcome,
        "at": now,
        "reason": over.reason,
    }
    return replace(state, deploy=over, history=(*state.history, line)[-KEPT:])


# --- the standby


@dataclass(frozen=True, slots=True)
class Seen:
    """What a standby observes: for how many seconds the lock has been free, and its holder not ready (0 if neither)."""

    lock_free_s: float = 0.0
    not_ready_s: float = 0.0


def standby_step(state: SlotState, slot: str, seen: Seen, cutover_s: float, unready_s: float) -> str | None:
    """Return what the standby must do: `serve`, `roll_back`, `end_holder`; None: go on waiting.

    `serve`: this slot is the recorded one. `roll_back`: the new slot's daemon does not run. `end_holder`: a daemon that
    must not or cannot serve holds the lock. A new daemon may take `cutover_s` seconds to serve, and be gone or unready for
    `unready_s` in the bake.
    """
    if state.serving in (None, slot):
        return "end_holder" if seen.not_ready_s > cutover_s else "serve"
    deploy = state.active
    if deploy is None or deploy.from_slot != slot or not deploy.is_cut_over or deploy.no_rollback:
        return None
    limit_s = unready_s if deploy.gate("cutover").status == "pass" else cutover_s
    if seen.lock_free_s > limit_s and not deploy.stopped:
        return "roll_back"
    return "end_holder" if seen.not_ready_s > limit_s else None


# --- the bake


@dataclass(frozen=True, slots=True)
class Health:
    """What a bake checks. `degraded` is {what: why} as in `status`; `late` names loops without progress."""

    dead_letters: int = 0
    quarantined: int = 0
    spawn_failures: int = 0
    degraded: Mapping[str, str] = field(default_factory=dict[str, str])
    late: tuple[str, ...] = ()
    stuck: int = 0  # agents of this release that made no progress and were ended
    pace: Mapping[str, Pace] = field(default_factory=dict[str, Pace])


_HOSTS: Final = frozenset({"runtime", "disk", "storage"})


def judge(baseline: Health, now: Health) -> tuple[str | None, list[str]]:
    """Return the breach, or None, and what is wrong and not the release's doing.

    A receiver that is down, a full disk and an engine that does not answer are others' troubles, and what they cause is
    not held against the release: it would fail in the same way under the prior one.
    """
    excused = [f"{what}: {why}" for what, why in now.degraded.items() if what in _HOSTS or what.startswith("channel ")]
    receiver = any(what.startswith("channel ") for what in now.degraded)
    host = any(what in _HOSTS for what in now.degraded)
    if now.late:
        return f"no progress: {', '.join(now.late)}", excused
    own = {what: why for what, why in now.degraded.items() if what not in _HOSTS and not what.startswith("channel ")}
    for what, why in own.items():
        if what not in baseline.degraded:
            return f"{what}: {why}", excused
    if now.quarantined > baseline.quarantined and not host:
        return f"{now.quarantined - baseline.quarantined} sessions were quarantined", excused
    if now.spawn_failures > baseline.spawn_failures and not host:
        return f"{now.spawn_failures - baseline.spawn_failures} containers could not be started", excused
    if now.stuck > baseline.stuck and not host:
        return f"{now.stuck - baseline.stuck} agents made no progress and were ended", excused
    if now.dead_letters > baseline.dead_letters and not receiver and not host:
        return f"{now.dead_letters - baseline.dead_letters} new dead letters", excused
    return None, excused


def raise_baseline(baseline: Health, now: Health) -> Health:
    """Return the baseline of the next check: what others' troubles caused stays excused after they have ended."""
    if any(what in _HOSTS for what in now.degraded):
        return replace(
            baseline,
            dead_letters=now.dead_letters,
            quarantined=now.quarantined,
            spawn_failures=now.spawn_failures,
            stuck=now.stuck,
        )
    if any(what.startswith("channel ") for what in now.degraded):
        return replace(baseline, dead_letters=now.dead_letters)
    return baseline


# --- the verdict


def verdict(state: SlotState) -> tuple[str, int]:
    """Return (verdict, exit code) of the latest deploy: pass 0; fail, aborted and rolled_back 1; hold 75."""
    deploy = state.deploy
    if deploy is None or deploy.state == "passed":
        return "pass", 0
    if not deploy.is_over:
        return "hold", 75
    return (deploy.state if deploy.state in {"aborted", "rolled_back"} else "fail"), 1


def runtime_verdict(state: SlotState, standing: Collection[str]) -> tuple[str, int]:
    """Return (verdict, exit code) of what serves now. `standing` are the results of the standing conditions.

    An abort proves nothing against what serves, so after one only the standing conditions count. A condition that could
    not be checked is `unknown`: it is never a pass.
    """
    deploy = state.deploy
    word, code = ("pass", 0) if deploy is not None and deploy.state == "aborted" else verdict(state)
    if word == "pass" and "fail" in standing:
        return "fail", 1
    return (UNKNOWN, 75) if word == "pass" and UNKNOWN in standing else (word, code)
