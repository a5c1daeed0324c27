"""The gates that a release passes before the serving daemon drains: what each measures, and why it fails.

Each returns what was measured, and raises GateFailedError. `conductor.py` has their order.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """A gate did not pass: `measured` is what was seen."""

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
    started = clock.monotonic()
    since: float | None = None
    process: str | None = None
    misses, answered = 0, False
    while True:
        now = clock.monotonic()
        seen = await anyio.to_thread.run_sync(standby.look)
        answered = answered or seen is not None
        if seen is not None and seen.get("release") == deploy.to_release:
            if process is not None and seen["process"] != process:
                raise GateFailedError("warm", "the new daemon ended and was started again", {"restarts": 1})
            process = str(seen["process"])
            since = now if since is None else since
            if now - since >= limits.warm_s:
                return {"ready_s": round(now - since, 1), "waited_s": round(now - started, 1), "misses": misses}
        else:
            misses += since is not None
            since = None
        if now - started > limits.warm_limit_s:
            slot = deploy.to_slot
            reason = (
                "the standby did not run this release without a break for the window" if answered
                else f"no daemon answered in slot {slot}: the release does not start (`journalctl -u clawbus@{slot}` says why),"
                f" or its unit is not started (`systemctl enable --now clawbus@{slot}`)"
            )  # fmt: skip
            raise GateFailedError("warm", reason, {"misses": misses})
        await anyio.sleep(min(1.0, max(0.05, limits.warm_s / 4)))


async def callback_probe(limits: Limits, standby: StandbyClient) -> dict[str, Any]:
    """Have the standby send messages through a daemon and agents of its release."""
    found = await anyio.to_thread.run_sync(partial(standby.probe, limits.probe_s), abandon_on_cancel=True)
    if not found.get("ok"):
        raise GateFailedError("callback_probe", str(found.get("reason", "it gave no reason")), found)
    slow = slow_round_trip(found, limits.slow_s)
    if slow is not None:
        raise GateFailedError("callback_probe", slow, found)
    return {name: found[name] for name in ("plain", "warm", "interrupted") if name in found}
