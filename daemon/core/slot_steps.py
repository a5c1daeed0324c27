"""The steps of a deploy and of a start in a slot: each returns the next state. Pure.

Every step is one new state, written in one step by the daemon that holds the data folder's lock. So after a crash the state
is the one before or the one after a step, and `serving` names one slot in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from daemon.core.deploy_errors import DeployCooldownError, DeployRefusedError, DeployRunningError, NotServingError
from daemon.core.slots import BLUE, GATES, KEPT, Deploy, Gate, SlotState, other
from schema.frozen import frozen

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


def breach_at_start(state: SlotState, slot: str, release: str, boot: str) -> str | None:
    """Return why the start of this daemon is itself a breach of the bake, or None. `state` is the one before `claim`."""
    deploy = state.active
    if deploy is None or deploy.to_slot != slot:
        return None
    if release != deploy.to_release:
        return f"the slot's link was moved: release {release[:12] or 'none'} has passed no gate"
    if deploy.stopped or deploy.boot != boot:
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


def refuse_deploy(state: SlotState, release: str, now: int, *, force: bool) -> None:
    """Raise DeployRefusedError where a deploy of the release may not begin now."""
    refuse_second(state)
    if release == state.release:
        raise DeployRefusedError(f"release {release[:12]} serves already.")
    until = state.cooldown.get(release, 0)
    # A clock that was set back must not lock a release out: no cooldown is longer than an hour.
    if now < until <= now + 3_600_000 and not force:
        raise DeployCooldownError(
            f"release {release[:12]} failed lately; it is refused for {(until - now) // 1000 + 1} s more."
        )


def begin(state: SlotState, deploy: Deploy, now: int, *, force: bool) -> SlotState:
    """Return the state with a new deploy. Raise DeployRefusedError."""
    refuse_deploy(state, deploy.to_release, now, force=force)
    if state.serving != deploy.from_slot:
        raise DeployRefusedError(f"slot {state.serving} serves, not {deploy.from_slot}.")
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


def cut_over(
    state: SlotState, now: int, pace_ms: Mapping[str, int] | None = None, degraded: Iterable[str] | None = None
) -> SlotState:
    """Return the state in which the new slot serves: the one step that moves the work.

    The bake reads the rest: `pace_ms` are the limits of the release's pace, `degraded` is what does not work already.
    """
    deploy = state.active
    if deploy is None or state.serving != deploy.from_slot:
        raise NotServingError("no deploy is ready for its cutover.")
    moved = deploy.with_gate("cutover", status="running", since=now)
    limit = dict(deploy.gate("bake").limit)
    if pace_ms:
        limit["p95_ms"] = dict(pace_ms)
    if degraded is not None:
        limit["degraded_before"] = sorted(degraded)
    moved = moved.with_gate("bake", limit=limit)
    return replace(state, serving=deploy.to_slot, release=deploy.to_release, epoch=state.epoch + 1, deploy=moved)


def failed(state: SlotState, gate: str, reason: str, now: int, measured: Mapping[str, Any] | None = None) -> SlotState:
    """Return the state after a gate before the cutover failed: the same slot keeps serving."""
    deploy = state.active
    if deploy is None:
        return state
    ended = deploy.with_gate(gate, status="fail", ended=now, reason=reason, measured=dict(measured or {}))
    return finished(state, replace(ended, reason=f"{gate}: {reason}"), "failed", now)


def aborted(state: SlotState, gate: str, by: str, now: int) -> SlotState:
    """Return the state after an operator ended the deploy in this gate, before the cutover: the same slot keeps serving."""
    deploy = state.active
    if deploy is None:
        return state
    ended = deploy.with_gate(gate, status="skipped", ended=now, reason=f"aborted by {by}")
    return finished(state, replace(ended, reason=f"aborted by {by} in {gate}"), "aborted", now)


def is_reversible(state: SlotState) -> bool:
    """Return whether the deploy under way may go back."""
    return state.active is not None and not state.active.no_rollback


def roll_back(
    state: SlotState,
    reason: str,
    now: int,
    cooldown_ms: int,
    measured: Mapping[str, Any] | None = None,
    *,
    barred: str = "",
) -> SlotState:
    """Return the state in which the prior slot serves again, the cooldown included, or the deploy is unhealthy.

    Without a way back the new slot goes on, marked unhealthy: with `no_rollback`, and where nobody could take over
    (`barred` says why). `returned` ends the gate `rollback`.
    """
    deploy = state.active
    if deploy is None or state.serving != deploy.to_slot:
        raise NotServingError("no deploy is past its cutover.")
    breached = "bake" if deploy.gate("cutover").status == "pass" else "cutover"
    marked = deploy.with_gate(breached, status="fail", ended=now, reason=reason, measured=dict(measured or {}))
    marked = replace(marked, reason=f"{breached}: {reason}")
    cool = {**state.cooldown, deploy.to_release: now + cooldown_ms}
    if deploy.no_rollback:
        marked = marked.with_gate("rollback", status="skipped", ended=now, reason="--no-rollback")
        return finished(replace(state, cooldown=cool), marked, "unhealthy", now)
    if barred:
        marked = marked.with_gate("rollback", status="fail", since=now, ended=now, reason=barred)
        marked = replace(marked, reason=f"{marked.reason}; rollback: {barred}")
        return finished(replace(state, cooldown=cool), marked, "unhealthy", now)
    marked = marked.with_gate("rollback", status="running", since=now)
    back = replace(
        state, serving=deploy.from_slot, release=deploy.from_release, epoch=state.epoch + 1, cooldown=cool
    )  # fmt: skip
    return finished(back, marked, "rolled_back", now)


def returned(deploy: Deploy, now: int) -> Deploy:
    """Return a deploy whose prior slot's daemon is ready again: the rollback, where one is under way, has passed and ends it."""
    gate = deploy.gate("rollback")
    if gate.status != "running" or gate.since is None:
        return deploy
    end = max(now, gate.since)
    passed = deploy.with_gate("rollback", status="pass", ended=end, measured={"took_ms": end - gate.since})
    return replace(passed, ended_at=end)


def passed(state: SlotState, now: int, measured: Mapping[str, Any]) -> SlotState:
    """Return the state after the bake."""
    deploy = state.active
    if deploy is None:
        return state
    done = deploy.with_gate("bake", status="pass", ended=now, measured=dict(measured))
    return finished(state, done.with_gate("rollback", status="skipped"), "passed", now)


def finished(state: SlotState, deploy: Deploy, outcome: str, now: int) -> SlotState:
    """Return the state with a deploy that is over. A rollback may still be under way: it ends with `returned`."""
    gates = tuple(
        replace(one, status="skipped") if one.status == "pending"
        else replace(one, status="fail", ended=now, reason=one.reason or deploy.reason)
        if one.status == "running" and one.name != "rollback"
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


@frozen
class Seen:
    """What a standby observes: for how many seconds the lock has been free, and its holder not ready (0 if neither)."""

    lock_free_s: float = 0.0
    not_ready_s: float = 0.0


def may_go_back(state: SlotState, slot: str) -> bool:
    """Return whether the slot's standby may take the folder back from the deploy's new slot."""
    deploy = state.active
    return deploy is not None and deploy.from_slot == slot and deploy.is_cut_over and not deploy.no_rollback


def standby_step(state: SlotState, slot: str, seen: Seen, cutover_s: float, unready_s: float) -> str | None:
    """Return what the standby must do: `serve`, `roll_back`, `end_holder`; None: go on waiting.

    `serve`: this slot is the recorded one. `roll_back`: the new slot's daemon does not run. `end_holder`: a daemon that
    must not or cannot serve holds the lock. A new daemon may take `cutover_s` seconds to serve, and be gone or unready for
    `unready_s` in the bake.
    """
    if state.serving in (None, slot):
        return "end_holder" if seen.not_ready_s > cutover_s else "serve"
    deploy = state.active
    if deploy is None or not may_go_back(state, slot):
        return None
    limit_s = unready_s if deploy.gate("cutover").status == "pass" else cutover_s
    if seen.lock_free_s > limit_s and not deploy.stopped:
        return "roll_back"
    return "end_holder" if seen.not_ready_s > limit_s else None
