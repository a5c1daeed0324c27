"""Runs a deploy in the daemon that serves: the gates up to the cutover in the old one, the bake in the new one.

The command line only asks for it, so it may be killed at any time. Each step is a new state on disk before it is acted on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

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
    check_schema,
    cut_over,
    failed,
    new_deploy,
    passed,
    refuse_second,
    roll_back,
    served,
)
from daemon.core.slots import Deploy, SlotState, as_json, other
from daemon.deploy.drift import check_release
from daemon.deploy.probe import slow_round_trip
from daemon.deploy.releases import Releases, schema_versions
from daemon.deploy.stage_log import log_end, log_gate
from daemon.deploy.standby_client import StandbyClient
from daemon.deploy.state_file import read_state, write_state
from schema.errors import ClawbusError, StorageError
from schema.ids import new_id
from schema.os_faults import typed_host_errors

_ABORT_S: Final = 10.0  # an abort waits so long for its record
_RETRY_S: Final = 1.0

_T = TypeVar("_T")


class Engine(Protocol):
    """What a deploy asks of the running bus."""

    def hold(self) -> None:
        """Start no container and no send until `resume`. Messages are still accepted."""
        ...

    def resume(self) -> None:
        """End the hold."""
        ...

    def in_flight(self) -> dict[str, int]:
        """Return what the daemon itself has under way, which must end before a cutover, by kind."""
        ...

    def carried(self) -> int:
        """Return how many agents run: they are handed over, not ended."""
        ...

    def health(self) -> Health:
        """Return what a bake checks."""
        ...

    def report(self, deploy: Deploy, at: int) -> None:
        """Publish a deploy that is over."""
        ...

    def seen(self, state: SlotState) -> None:
        """Take note of the state, for the metrics."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where this daemon serves, and how it hands over. `leave` ends the daemon in order and makes it the standby."""

    config: Config
    slot: str
    clock: Clock
    leave: Callable[[], None]

    @property
    def data_dir(self) -> Path:
        """The data folder."""
        return self.config.data_dir


class GateFailedError(Exception):
    """A gate did not pass: `measured` is what was seen."""

    def __init__(self, gate: str, reason: str, measured: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.gate, self.reason, self.measured = gate, reason, dict(measured or {})


class Conductor:
    """Built once in a daemon that serves from a slot; `run` works until cancelled."""

    def __init__(self, place: Place, engine: Engine) -> None:
        self._place = place
        self._config = place.config.deploy
        self._engine = engine
        self._clock = place.clock
        self._wanted = anyio.Event()
        self._settled = anyio.Event()  # set when what `_carry_out` does is recorded
        self._scope: anyio.CancelScope | None = None
        self._aborted_by: str | None = None
        self._log = structlog.get_logger("deploy")

    # --- what an operator asks

    async def status(self) -> dict[str, Any]:
        """Return the state."""
        return as_json(await self._read())

    async def start(self, release: str, *, force: bool, no_rollback: bool) -> dict[str, Any]:
        """Begin a deploy of a release that the other slot points at. Raise DeployRefusedError or UnknownReleaseError."""
        state, now = await self._read(), self._clock.now_ms()
        refuse_second(state)
        found, manifest = await anyio.to_thread.run_sync(self._releases().usable, release)
        slots = await anyio.to_thread.run_sync(self._releases().slots)
        target = other(self._place.slot)
        if slots.get(target) != found.short:
            raise DeployRefusedError(f"slot {target} does not point at {found.short}.")
        if manifest.release == state.release:
            raise DeployRefusedError(f"release {found.short} serves already.")
        deploy = new_deploy(new_id(now), state, manifest.release, now, self._limits(), no_rollback=no_rollback)
        await self._write(begin(state, deploy, now, force=force))
        self._wanted.set()
        return await self.status()

    async def abort(self, by: str) -> dict[str, Any]:
        """End a deploy that is not cut over; the slot that serves goes on. Raise DeployRefusedError."""
        deploy = (await self._read()).active
        if deploy is None or deploy.is_cut_over or self._scope is None:
            hint = "`clawbus deploy rollback` goes back." if deploy is not None else None
            raise DeployRefusedError("no deploy is before its cutover.", hint=hint)
        self._aborted_by = by
        self._scope.cancel()
        with anyio.move_on_after(_ABORT_S):
            await self._settled.wait()
        return await self.status()

    async def rollback(self, by: str) -> dict[str, Any]:
        """Go back during the bake. Raise DeployRefusedError."""
        deploy = (await self._read()).active
        if deploy is None or not deploy.is_cut_over:
            raise DeployRefusedError(
                "no deploy is in its bake.",
                hint="To return to the prior release, deploy it: `clawbus deploy start RELEASE`."
            )  # fmt: skip
        await self._breach(f"asked for by {by}")
        return await self.status()

    # --- the work

    async def run(self) -> None:
        """Go on with a bake that this daemon's start began, then carry out deploys as they are asked for."""
        deploy = (await self._insist(self._read)).active
        if deploy is not None and deploy.is_cut_over:
            state = await self._change(lambda state: served(state, self._clock.now_ms()))
            if state.deploy is not None:
                for name in ("cutover", "bake"):
                    log_gate(state.deploy, state.deploy.gate(name))
            await self._bake()
        while True:
            await self._report()
            await self._wanted.wait()
            self._wanted = anyio.Event()
            if (await self._insist(self._read)).active is not None:
                await self._carry_out()

    async def _report(self) -> None:
        """Publish and log how a deploy ended, once: also one that a standby or a start ended, which have neither."""
        state = await self._insist(self._read)
        deploy = state.deploy
        if deploy is None or not deploy.is_over or deploy.reported or state.serving != self._place.slot:
            return
        self._engine.report(deploy, self._clock.now_ms())
        log_end(deploy)
        try:
            await self._write(replace(state, deploy=replace(deploy, reported=True)))
        except ClawbusError as error:  # the next start publishes the same spans again
            self._log.warning("deploy_not_recorded", error=str(error))

    async def _carry_out(self) -> None:
        gates: list[tuple[str, Callable[[], Awaitable[dict[str, Any]]]]] = [
            ("preflight", self._preflight), ("warm", self._warm), ("callback_probe", self._probe), ("drain", self._drain),
        ]  # fmt: skip
        current = gates[0][0]
        self._settled = anyio.Event()
        with anyio.CancelScope() as self._scope:
            try:
                for name, work in gates:
                    current = name
                    await self._begin_gate(name)
                    measured = await work()
                    await self._pass_gate(name, measured)
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
        by, self._aborted_by = self._aborted_by or "the daemon", None
        await self._end_early(lambda state: aborted(state, gate, by, self._clock.now_ms()))

    async def _fail(self, gate: str, reason: str, measured: Mapping[str, Any]) -> None:
        await self._end_early(lambda state: failed(state, gate, reason, self._clock.now_ms(), measured))

    async def _end_early(self, end: Callable[[SlotState], SlotState]) -> None:
        self._engine.resume()
        await self._change(end)

    async def _preflight(self) -> dict[str, Any]:
        deploy = await self._active()
        releases = self._releases()
        release, manifest = await anyio.to_thread.run_sync(releases.usable, deploy.to_release)
        drifts, unknown = await anyio.to_thread.run_sync(check_release, self._place.config, releases, release)
        measured = {"drift": [str(one) for one in drifts], "unknown": unknown}
        if drifts or unknown:
            raise GateFailedError("preflight", "; ".join([str(one) for one in drifts] + unknown), measured)
        refused = check_schema(schema_versions(), manifest.schema_versions, no_rollback=deploy.no_rollback)
        if refused is not None:
            raise GateFailedError("preflight", refused, measured)
        return measured

    async def _warm(self) -> dict[str, Any]:
        """Wait until the standby has run the release without a break for the window."""
        deploy = await self._active()
        started = self._clock.monotonic()
        since: float | None = None
        process: str | None = None
        misses, answered = 0, False
        while True:
            now = self._clock.monotonic()
            seen = await anyio.to_thread.run_sync(self._standby().look)
            answered = answered or seen is not None
            if seen is not None and seen.get("release") == deploy.to_release:
                if process is not None and seen["process"] != process:
                    raise GateFailedError("warm", "the new daemon ended and was started again", {"restarts": 1})
                process = str(seen["process"])
                since = now if since is None else since
                if now - since >= self._config.warm_s:
                    return {"ready_s": round(now - since, 1), "waited_s": round(now - started, 1), "misses": misses}
            else:
                misses += since is not None
                since = None
            if now - started > self._config.warm_limit_s:
                slot = other(self._place.slot)
                reason = (
                    "the standby did not run this release without a break for the window" if answered
                    else f"no daemon answered in slot {slot}: the release does not start (`journalctl -u clawbus@{slot}` says why),"
                    f" or its unit is not started (`systemctl enable --now clawbus@{slot}`)"
                )  # fmt: skip
                raise GateFailedError("warm", reason, {"misses": misses})
            await anyio.sleep(min(1.0, max(0.05, self._config.warm_s / 4)))

    async def _probe(self) -> dict[str, Any]:
        found = await anyio.to_thread.run_sync(
            partial(self._standby().probe, self._config.probe_s), abandon_on_cancel=True
        )  # fmt: skip
        if not found.get("ok"):
            raise GateFailedError("callback_probe", str(found.get("reason", "it gave no reason")), found)
        slow = slow_round_trip(found, self._config.slow_s)
        if slow is not None:
            raise GateFailedError("callback_probe", slow, found)
        return {name: found[name] for name in ("plain", "warm", "interrupted") if name in found}

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
        limits = pace_limits(self._engine.health().pace, self._config.slow_s)
        state = cut_over(await self._read(), self._clock.now_ms(), limits)
        try:
            await self._write(state)
        except (SlotStateError, StorageError):  # the file may have been replaced all the same
            if (await self._insist(self._read)).serving == self._place.slot:
                raise
        if state.deploy is not None:
            log_gate(state.deploy, state.deploy.gate("cutover"))
        self._place.leave()

    async def _bake(self) -> None:
        """Watch until the window is over; go back at a breach."""
        baseline = self._engine.health()
        started = self._clock.monotonic()
        checks, excused = 0, dict[str, None]()
        deploy = (await self._insist(self._read)).active
        limits: Mapping[str, Any] = (deploy.gate("bake").limit.get("p95_ms") if deploy is not None else None) or {}
        while (took := self._clock.monotonic() - started) < self._config.bake_s:
            await anyio.sleep(min(self._config.bake_check_s, max(0.05, self._config.bake_s - took)))
            health = self._engine.health()
            reason, others = judge(baseline, health)
            excused |= dict.fromkeys(others)
            checks += 1
            if reason is None and not excused:  # what others' troubles held up takes longer, whatever the release
                reason = judge_pace(limits, health.pace)
            if reason is not None:
                await self._insist(partial(self._breach, reason))
                return
            baseline = raise_baseline(baseline, health)
        measured = {
            "checks": checks, "not_the_release": list(excused), "pace": pace_json(self._engine.health().pace),
        }  # fmt: skip
        await self._change(lambda state: passed(state, self._clock.now_ms(), measured))

    async def _breach(self, reason: str) -> None:
        state = roll_back(await self._read(), reason, self._clock.now_ms(), int(self._config.cooldown_s * 1000))
        await self._write(state)
        if state.serving != self._place.slot:
            self._place.leave()

    # --- state

    async def _active(self) -> Deploy:
        deploy = (await self._read()).active
        if deploy is None:
            raise GateFailedError("preflight", "the deploy is over")
        return deploy

    async def _read(self) -> SlotState:
        with typed_host_errors("the state of slots cannot be read"):
            state = await anyio.to_thread.run_sync(read_state, self._place.data_dir)
        self._engine.seen(state)
        return state

    async def _write(self, state: SlotState) -> None:
        with typed_host_errors("the state of slots cannot be written"):
            await anyio.to_thread.run_sync(write_state, self._place.data_dir, state)
        self._engine.seen(state)

    async def _change(self, change: Callable[[SlotState], SlotState]) -> SlotState:
        """Replace the state, however long that takes, and return the new one. No operator waits for it."""

        async def replaced() -> SlotState:
            state = change(await self._read())
            await self._write(state)
            return state

        return await self._insist(replaced)

    async def _insist(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat work on the state until the host can do it: a full disk must not end the daemon that serves."""
        trouble = ""
        while True:
            try:
                return await work()
            except (SlotStateError, StorageError) as error:
                if str(error) != trouble:
                    self._log.error("deploy_state_failing", error=str(error), hint=error.hint)
                trouble = str(error)
            await anyio.sleep(_RETRY_S)

    async def _begin_gate(self, name: str) -> None:
        await self._change_gate(name, status="running", since=self._clock.now_ms())

    async def _pass_gate(self, name: str, measured: Mapping[str, Any]) -> None:
        await self._change_gate(name, status="pass", ended=self._clock.now_ms(), measured=dict(measured))

    async def _change_gate(self, name: str, **changes: Any) -> None:
        state = await self._read()
        deploy = (await self._active()).with_gate(name, **changes)
        await self._write(replace(state, deploy=deploy))
        log_gate(deploy, deploy.gate(name))

    def _limits(self) -> dict[str, dict[str, Any]]:
        own = self._config
        return {
            "warm": {"window_s": own.warm_s, "limit_s": own.warm_limit_s, "restarts": 0},
            "callback_probe": {"limit_s": own.probe_s, "probes": 2, "warm_s": own.slow_s},
            "drain": {"limit_s": own.drain_s, "in_flight": 0},
            "cutover": {"limit_s": own.cutover_s},
            "bake": {"window_s": own.bake_s, "check_s": own.bake_check_s, "restarts": 0},
        }

    def _releases(self) -> Releases:
        return Releases(self._config.root)

    def _standby(self) -> StandbyClient:
        return StandbyClient(self._place.data_dir, other(self._place.slot))
