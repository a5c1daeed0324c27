"""The gates that a release passes before the serving daemon drains: preflight, warm, callback_probe.

A gate returns the figures that it measured, or raises GateFailedError. `conductor.py` runs the gates in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from daemon.config.models import Config
from daemon.config.models import Deploy as Limits
from daemon.core.clock import Clock
from daemon.core.slot_steps import check_schema
from daemon.core.slots import Deploy
from daemon.deploy.drift import check_release
from daemon.deploy.probe import slow_round_trip
from daemon.deploy.releases import Releases, schema_versions
from daemon.deploy.standby_client import StandbyClient


class GateFailedError(Exception):
    """A gate did not pass. `measured` has the figures that it saw."""

    def __init__(self, gate: str, reason: str, measured: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.gate, self.reason, self.measured = gate, reason, dict(measured or {})


async def preflight(config: Config, releases: Releases, deploy: Deploy) -> dict[str, Any]:
    """Check that the release is what was recorded, and that the prior one could read its files again."""
    release, manifest = await anyio.to_thread.run_sync(releases.usable, deploy.to_release)
    drifts, unknown = await anyio.to_thread.run_sync(check_release, config, releases, release)
    measured = {"drift": [str(one) for one in drifts], "unknown": unknown}
    if drifts or unknown:
        raise GateFailedError("preflight", "; ".join([str(one) for one in drifts] + unknown), measured)
    refused = check_schema(schema_versions(), manifest.schema_versions, no_rollback=deploy.no_rollback)
    if refused is not None:
        raise GateFailedError("preflight", refused, measured)
    return measured


async def warm(limits: Limits, clock: Clock, standby: StandbyClient, deploy: Deploy) -> dict[str, Any]:
    """Wait until the standby has run the release without a break for the window."""
    watch = WarmWatch(deploy.to_release, deploy.to_slot, clock.monotonic(), limits.warm_s, limits.warm_limit_s)
    while True:
        now = clock.monotonic()
        measured = watch.observe(now, await anyio.to_thread.run_sync(standby.look))
        if measured is not None:
            return measured
        await anyio.sleep(min(1.0, max(0.05, limits.warm_s / 4)))


@dataclass(slots=True)
class WarmWatch:
    """Decides when the standby in `slot` has run `release` for `window_s` without a break. Pure. Times are monotonic seconds."""

    release: str
    slot: str
    started: float
    window_s: float
    limit_s: float
    _since: float | None = None
    _process: str | None = None
    _misses: int = 0
    _answered: bool = False

    def observe(self, now: float, seen: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Take note of the standby's answer, None if it gave none. Return the figures once the gate passes, None before.

        Raise GateFailedError if the standby was started again, or `limit_s` is over.
        """
        self._answered = self._answered or seen is not None
        if seen is not None and seen.get("release") == self.release:
            if self._process is not None and seen["process"] != self._process:
                raise GateFailedError("warm", "the new daemon ended and was started again", {"restarts": 1})
            self._process = str(seen["process"])
            self._since = now if self._since is None else self._since
            if now - self._since >= self.window_s:
                ready_s, waited_s = round(now - self._since, 1), round(now - self.started, 1)
                return {"ready_s": ready_s, "waited_s": waited_s, "misses": self._misses}
        else:
            self._misses += self._since is not None
            self._since = None
        if now - self.started > self.limit_s:
            raise GateFailedError("warm", self._failure(), {"misses": self._misses})
        return None

    def _failure(self) -> str:
        if self._answered:
            return "the standby did not run this release without a break for the window"
        return (
            f"no daemon answered in slot {self.slot}: the release does not start (`journalctl -u clawbus@{self.slot}`"
            f" says why), or its unit is not started (`systemctl enable --now clawbus@{self.slot}`)"
        )


async def callback_probe(limits: Limits, standby: StandbyClient) -> dict[str, Any]:
    """Have the standby send messages through a daemon and agents of its release."""
    found = await anyio.to_thread.run_sync(partial(standby.probe, limits.probe_s), abandon_on_cancel=True)
    if not found.get("ok"):
        raise GateFailedError("callback_probe", str(found.get("reason", "it gave no reason")), found)
    slow = slow_round_trip(found, limits.slow_s)
    if slow is not None:
        raise GateFailedError("callback_probe", slow, found)
    return {name: found[name] for name in ("plain", "warm", "interrupted") if name in found}
