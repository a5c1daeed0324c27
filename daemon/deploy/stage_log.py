"""The log events of a deploy's stages: one for each gate's beginning and end, and one for the end of the deploy.

They have the names of the spans (daemon/telemetry/deploy_spans.py), for whoever keeps logs and no traces.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import structlog

from daemon.core.slots import Deploy, Gate

_END: Final = "deploy.runtime"
_UNLOGGED: Final = ("bake", "rollback")  # gates whose pass is the end of the deploy, or comes with it
_EVENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "preflight": "deploy.runtime.preflight",
        "warm": "deploy.runtime.warm",
        "callback_probe": "deploy.runtime.callback_probe",
        "drain": "deploy.runtime.drain",
        "cutover": "deploy.runtime.cutover",
        "bake": "deploy.runtime.bake",
        "rollback": "deploy.runtime.rollback",
    }
)


def log_gate(deploy: Deploy, gate: Gate) -> None:
    """Log that a gate began or ended."""
    measured = {"measured": dict(gate.measured)}
    _say(_EVENTS[gate.name], deploy, gate.status, gate.reason, measured, bad=gate.status == "fail")


def log_end(deploy: Deploy) -> None:
    """Log how a deploy ended: the gates that its end ended, which nobody has logged, then the deploy."""
    for gate in deploy.gates:
        if gate.ended is not None and (gate.status != "pass" or gate.name in _UNLOGGED):
            log_gate(deploy, gate)
    took = {"took_ms": (deploy.ended_at or deploy.started_at) - deploy.started_at}
    _say(_END, deploy, deploy.state, deploy.reason, took, bad=deploy.state not in {"passed", "aborted"})


def _say(event: str, deploy: Deploy, status: str, reason: str, fields: Mapping[str, Any], *, bad: bool) -> None:
    log = structlog.get_logger("deploy")
    say = log.error if bad else log.info
    say(
        event, deploy=deploy.id, status=status, release_from=deploy.from_release[:12],
        release_to=deploy.to_release[:12], **fields, **({"reason": reason} if reason else {}),
    )  # fmt: skip
