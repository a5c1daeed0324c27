"""Runs a deploy in the daemon that serves: the gates and the cutover in the old daemon, the bake in the new one.

The command line only asks for a deploy, so it may be killed at any time. Each step is on disk before it has an effect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread
import structlog

from daemon.config.models import Config
from daemon.core.bake import Health, judge, raise_baseline
from daemon.core.clock import Clock
from daemon.core.deploy_errors import DeployRefusedError, SlotStateError
from daemon.core.deploy_pace import judge_pace, pace_json, pace_limits
from daemon.core.slot_steps import (
    aborted,
    begin,
    cut_over,
    failed,
    is_reversible,
    new_deploy,
    passed,
    refuse_second,
    returned,
    roll_back,
    served,
)
from daemon.core.slots import Deploy, SlotState, as_json, other
from daemon.deploy.gates import GateFailedError, callback_probe, preflight, warm
from daemon.deploy.releases import Releases
from daemon.deploy.slot_record import SlotRecord
from daemon.deploy.stage_log import log_end, log_gate
from daemon.deploy.standby_client import StandbyClient
from schema.errors import ClawbusError, StorageError
from schema.frozen import frozen
from schema.ids import new_id

_ANSWER_S: Final = 10.0  # how long an operator's verb waits for what it needs
_RECORD_S: Final = 5.0  # seconds between two looks at the record of slots while no deploy is under way
_BACK: Final = "`clawbus deploy rollback` goes back."


class Engine(Protocol):
    """The part of the running bus that a deploy uses."""

    def hold(self) -> None:
        """Start no container and no send until `resume`. The bus still accepts messages."""
        ...

    def resume(self) -> None:
        """End the hold."""
        ...

    def in_flight(self) -> dict[str, int]:
        """Return the number of operations under way in the daemon, by kind. They must end before a cutover."""
        ...

    def carried(self) -> int:
        """Return the number of running agents. A cutover hands them over and ends none."""
        ...

    def health(self) -> Health:
        """Return the figures that a bake checks."""
        ...

    def report(self, deploy: Deploy, at: int) -> None:
        """Publish a deploy that is over."""
        ...

    def seen(self, state: SlotState) -> None:
        """Pass the state of slots on to the metrics."""
        ...


@frozen
class Place:
    """Where this daemon serves, and how it hands over. `leave` stops the daemon and makes it the standby."""

    config: Config
    slot: str
    clock: Clock
    leave: Callable[[], None]
    release: str = ""
    epoch: int = 0

    @property
    def data_dir(self) -> Path:
        """The data folder."""
        return self.config.data_dir


class Conductor:
    """Carries out the deploys of a daemon that serves from a slot. `run` works until cancelled."""

    def __init__(self, place: Place, engine: Engine) -> None:
        self._place = place
        self._config = place.config.deploy
        self._engine = engine
        self._clock = place.clock
        self._record = SlotRecord(place.data_dir, engine.seen)
        self._wanted = anyio.Event()
        self._settled = anyio.Event()  # set once the end of `_carry_out` is recorded
        self._scope: anyio.CancelScope | None = None
        self._aborted: tuple[str, str] | None = None  # the deploy whose abort was asked for, and by whom
        self._log = structlog.get_logger("deploy")

    # --- requests of an operator

    async def status(self) -> dict[str, Any]:
        """Return the state of slots as JSON. Raise SlotStateError or StorageError."""
        return as_json(await self._record.read())

    async def start(self, release: str, *, force: bool, no_rollback: bool) -> dict[str, Any]:
        """Begin a deploy of a release that the other slot points at. Raise DeployRefusedError or UnknownReleaseError."""
        refuse_second(await self._record.read())
        found, manifest = await anyio.to_thread.run_sync(self._releases().usable, release)
        slots = await anyio.to_thread.run_sync(self._releases().slots)
        target, now = other(self._place.slot), self._clock.now_ms()
        if slots.get(target) != found.short:
            raise DeployRefusedError(f"slot {target} does not point at {found.short}.")

        def begun(state: SlotState) -> SlotState:
            deploy = new_deploy(new_id(now), state, manifest.release, now, self._limits(), no_rollback=no_rollback)
            return begin(state, deploy, now, force=force)

        self._settled = anyio.Event()
        try:
            return as_json(await self._record.change(begun))
        finally:
            self._wanted.set()  # also after a reported failure: a deploy that is on disk anyway must be carried out

    async def abort(self, by: str) -> dict[str, Any]:
        """End a deploy before its cutover; the same slot keeps serving. Raise DeployRefusedError."""
        deploy = (await self._record.read()).active
        if deploy is None or deploy.is_cut_over:
            raise DeployRefusedError("no deploy is before its cutover.", hint=_BACK if deploy is not None else None)
        self._aborted = deploy.id, by
        if self._scope is not None:
            self._scope.cancel()
        with anyio.move_on_after(_ANSWER_S):
            await self._settled.wait()
        state = await self._record.read()
        if state.deploy is None or (state.deploy.id, state.deploy.state) != (deploy.id, "aborted"):
            raise _too_late(state)
        return as_json(state)

    async def rollback(self, by: str) -> dict[str, Any]:
        """Return to the prior release during the bake. Raise DeployRefusedError."""
        deploy = (await self._record.read()).active
        if deploy is None or not deploy.is_cut_over:
            raise DeployRefusedError(
                "no deploy is in its bake.",
                hint="To return to the prior release, deploy it: `clawbus deploy start RELEASE`."
            )  # fmt: skip
        if deploy.no_rollback:
            raise DeployRefusedError(
                "this deploy has no way back (--no-rollback): the prior release cannot read what this one wrote.",
                hint="Deploy a corrected release: `clawbus deploy start RELEASE`, when this deploy is over.",
            )
        barred = await self._barred(min(_ANSWER_S, self._config.cutover_s))
        if barred:
            slot = deploy.from_slot
            raise DeployRefusedError(
                f"{barred}, so nothing would serve afterwards.",
                hint=f"Start it (`systemctl start clawbus@{slot}`), then repeat the command.",
            )
        await self._breach(f"asked for by {by}", {})
        state = await self._record.read()
        if state.deploy is None or state.deploy.state != "rolled_back":
            raise _too_late(state)
        return as_json(state)

    # --- the work

    async def run(self) -> None:
        """Finish the bake that this daemon's start began, if any. Then carry out deploys as operators ask for them."""
        deploy = (await self._record.insist(self._record.read)).active
        if deploy is not None and deploy.is_cut_over:
            state = await self._record.insist_on(lambda state: served(state, self._clock.now_ms()))
            if state.deploy is not None:
                for name in ("cutover", "bake"):
                    log_gate(state.deploy, state.deploy.gate(name))
            await self._bake(again=deploy.gate("bake").since is not None)
        while True:
            await self._report()
            while not self._wanted.is_set():
                with anyio.move_on_after(_RECORD_S):
                    await self._wanted.wait()
                await self._keep_record()
            self._wanted = anyio.Event()
            deploy = (await self._record.insist(self._record.read)).active
            if deploy is not None and not deploy.is_cut_over:
                await self._carry_out(deploy)

    async def _keep_record(self) -> None:
        """Write the record of slots again where somebody removed it: else no deploy begins, and any slot serves next."""
        place = self._place

        def kept(state: SlotState) -> SlotState:
            if state.serving is not None or not place.epoch:
                return state
            self._log.warning("deploy_state_rewritten", slot=place.slot, epoch=place.epoch)
            return SlotState(epoch=place.epoch, serving=place.slot, release=place.release)

        with suppress(ClawbusError):  # `doctor` names a record that cannot be read or written
            await self._record.change(kept)

    async def _report(self) -> None:
        """Publish and log the end of a deploy, once; also of one that a standby or a start ended, because those cannot."""
        state = await self._record.insist(self._record.read)
        if (
            state.deploy is None
            or not state.deploy.is_over
            or state.deploy.reported
            or state.serving != self._place.slot
        ):
            return
        now = self._clock.now_ms()
        deploy = returned(state.deploy, now)
        self._engine.report(deploy, now)
        log_end(deploy)

        def reported(found: SlotState) -> SlotState:
            same = found.deploy is not None and found.deploy.id == deploy.id
            return replace(found, deploy=replace(deploy, reported=True)) if same else found

        try:
            await self._record.change(reported)
        except ClawbusError as error:  # the next start publishes and logs it again
            self._log.warning("deploy_not_recorded", error=str(error))

    async def _carry_out(self, deploy: Deploy) -> None:
        gates: list[tuple[str, Callable[[], Awaitable[dict[str, Any]]]]] = [
            ("preflight", partial(preflight, self._place.config, self._releases(), deploy)),
            ("warm", partial(warm, self._config, self._clock, self._standby(), deploy)),
            ("callback_probe", partial(callback_probe, self._config, self._standby())),
            ("drain", self._drain),
        ]  # fmt: skip
        current = gates[0][0]
        with anyio.CancelScope() as self._scope:
            if self._aborted is not None and self._aborted[0] == deploy.id:  # the abort came before this scope existed
                self._scope.cancel()
            try:
                for name, work in gates:
                    current = name
                    await self._begin_gate(name)
                    measured = await work()
                    await self._pass_gate(name, measured)
                current = "cutover"
                with anyio.CancelScope(shield=True):
                    await self._cut_over()
            except GateFailedError as error:
                await self._fail(error.gate, error.reason, error.measured)
            except ClawbusError as error:
                await self._fail(current, str(error), {"code": error.code})
            except Exception as error:  # noqa: BLE001 - a bug in a gate must not end the daemon that serves
                self._log.error("deploy_raised", gate=current, exc_info=True)
                await self._fail(current, f"{type(error).__name__}: {error}", {})
        if self._scope.cancelled_caught:
            await self._abort(current)
        self._scope = None
        self._settled.set()

    async def _abort(self, gate: str) -> None:
        by = self._aborted[1] if self._aborted is not None else "the daemon"
        await self._end_early(lambda state: aborted(state, gate, by, self._clock.now_ms()))

    async def _fail(self, gate: str, reason: str, measured: Mapping[str, Any]) -> None:
        await self._end_early(lambda state: failed(state, gate, reason, self._clock.now_ms(), measured))

    async def _end_early(self, end: Callable[[SlotState], SlotState]) -> None:
        self._engine.resume()
        await self._record.insist_on(end)

    async def _drain(self) -> dict[str, Any]:
        started = self._clock.monotonic()
        self._engine.hold()
        while any((left := self._engine.in_flight()).values()):
            if self._clock.monotonic() - started > self._config.drain_s:
                raise GateFailedError("drain", f"still under way: {left}", {"left": left})
            await anyio.sleep(0.02)
        return {"took_ms": int((self._clock.monotonic() - started) * 1000), "agents_carried": self._engine.carried()}

    async def _cut_over(self) -> None:
        """Write the one state that moves the work, then leave. A failed write leaves this slot serving."""
        health = self._engine.health()
        limits = pace_limits(health.pace, self._config.slow_s)
        try:
            state = await self._record.change(
                lambda state: cut_over(state, self._clock.now_ms(), limits, health.degraded)
            )
        except (SlotStateError, StorageError):  # the file may have been replaced all the same
            state = await self._record.insist(self._record.read)
            if state.serving == self._place.slot:
                raise
        if state.deploy is not None:
            log_gate(state.deploy, state.deploy.gate("cutover"))
        self._place.leave()

    async def _bake(self, *, again: bool) -> None:
        """Check the bus until the window is over. Roll back at the first breach. `again`: it began in an earlier daemon."""
        started = self._clock.monotonic()
        checks, excused = 0, dict[str, None]()
        deploy = (await self._record.insist(self._record.read)).active
        limit: Mapping[str, Any] = deploy.gate("bake").limit if deploy is not None else {}
        limits: Mapping[str, Any] = limit.get("p95_ms") or {}
        first = self._engine.health()
        before: Iterable[str] = limit.get("degraded_before", first.degraded)  # a prior release may not say what was
        # What went wrong since this daemon began counts, also before its bake; but not what a stop of the host left behind.
        baseline = replace(first if again else Health(), degraded=dict.fromkeys(before, ""))

        def measured(health: Health) -> dict[str, Any]:
            return {"checks": checks, "not_the_release": list(excused), "pace": pace_json(health.pace)}

        while (took := self._clock.monotonic() - started) < self._config.bake_s:
            await anyio.sleep(min(self._config.bake_check_s, max(0.05, self._config.bake_s - took)))
            health = self._engine.health()
            reason, others = judge(baseline, health)
            excused |= dict.fromkeys(others)
            checks += 1
            if reason is None and not excused:  # trouble elsewhere also slows messages: do not judge the pace then
                reason = judge_pace(limits, health.pace)
            if reason is not None:
                await self._record.insist(partial(self._breach, reason, measured(health)))
                return
            baseline = raise_baseline(baseline, health)
        seen = measured(self._engine.health())
        await self._record.insist_on(lambda state: passed(state, self._clock.now_ms(), seen))

    async def _breach(self, reason: str, measured: Mapping[str, Any]) -> None:
        """Go back, unless the deploy has ended meanwhile. Where nobody could take over, this daemon goes on."""
        barred = await self._barred(self._config.cutover_s) if is_reversible(await self._record.read()) else ""
        cooldown_ms = int(self._config.cooldown_s * 1000)

        def back(state: SlotState) -> SlotState:
            if state.active is None:
                return state
            return roll_back(state, reason, self._clock.now_ms(), cooldown_ms, measured, barred=barred)

        state = await self._record.change(back)
        if state.serving != self._place.slot:
            self._place.leave()

    async def _barred(self, patience_s: float) -> str:
        """Return why nobody would serve after a rollback, or nothing. A standby that is just starting is waited for."""
        return await anyio.to_thread.run_sync(self._standby().why_absent, patience_s, abandon_on_cancel=True)

    # --- state

    async def _begin_gate(self, name: str) -> None:
        await self._change_gate(name, status="running", since=self._clock.now_ms())

    async def _pass_gate(self, name: str, measured: Mapping[str, Any]) -> None:
        await self._change_gate(name, status="pass", ended=self._clock.now_ms(), measured=dict(measured))

    async def _change_gate(self, name: str, **changes: Any) -> None:
        deploy = _active_of(
            await self._record.change(lambda state: replace(state, deploy=_active_of(state).with_gate(name, **changes)))
        )
        log_gate(deploy, deploy.gate(name))

    def _limits(self) -> dict[str, dict[str, Any]]:
        own = self._config
        return {
            "warm": {"window_s": own.warm_s, "limit_s": own.warm_limit_s, "restarts": 0},
            "callback_probe": {"limit_s": own.probe_s, "probes": 2, "warm_s": own.slow_s},
            "drain": {"limit_s": own.drain_s, "in_flight": 0},
            "cutover": {"limit_s": own.cutover_s},
            "bake": {"window_s": own.bake_s, "check_s": own.bake_check_s, "restarts": 0},
            "rollback": {"limit_s": own.cutover_s},
        }

    def _releases(self) -> Releases:
        return Releases(self._config.root)

    def _standby(self) -> StandbyClient:
        return StandbyClient(self._place.data_dir, other(self._place.slot))


def _active_of(state: SlotState) -> Deploy:
    if state.active is None:
        raise GateFailedError("preflight", "the deploy is over")
    return state.active


def _too_late(state: SlotState) -> DeployRefusedError:
    """Return why an operator's verb did not end the deploy, as the state afterwards shows."""
    deploy = state.deploy
    if deploy is not None and deploy.is_over:
        return DeployRefusedError(f"the deploy had ended before: {deploy.state}.")
    if deploy is not None and deploy.is_cut_over:
        return DeployRefusedError("the cutover came before the abort, so the deploy continues.", hint=_BACK)
    return DeployRefusedError(
        "the abort is not on record yet: the daemon repeats it until the state of slots can be written.",
        hint="`clawbus deploy status` shows it as aborted then; `clawbus doctor` says what is wrong with the disk.",
    )
