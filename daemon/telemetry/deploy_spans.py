"""The trace of a whole deploy: `deploy.runtime`, and a child for each gate that ran. Pure.

A deploy outlives daemons, so its identities follow from its id: whoever reports it, and however often, makes the same trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from daemon.core.slots import Deploy, Gate
from daemon.core.trace import TraceContext
from daemon.telemetry.spans import Event, Span

ROOT: Final = "deploy.runtime"
_LONGEST: Final = 1000  # characters of one attribute


def deploy_spans(deploy: Deploy, at: int) -> list[Span]:
    """Return the spans of a deploy that is over, the root last. `at` is epoch milliseconds."""
    root = _context(deploy.id, ROOT)
    spans = [_gate(deploy, one, root) for one in deploy.gates if one.since is not None]
    attributes: dict[str, str | int | bool] = {
        **_common(deploy),
        "deploy.state": deploy.state,
        "deploy.no_rollback": deploy.no_rollback,
    }
    ended = deploy.ended_at if deploy.ended_at is not None else at
    error = None if deploy.state == "passed" else deploy.reason or deploy.state
    return [*spans, Span(ROOT, root, None, deploy.started_at, ended, attributes=attributes, error=error)]


def _gate(deploy: Deploy, gate: Gate, root: TraceContext) -> Span:
    since = gate.since or deploy.started_at
    ended = gate.ended if gate.ended is not None else since
    attributes = {
        **_common(deploy),
        "gate.status": gate.status,
        **_values("gate.measured", gate.measured),
        **_values("gate.limit", gate.limit),
    }
    events = [Event("started", since), Event(gate.status, ended, {"reason": gate.reason} if gate.reason else {})]
    error = gate.reason or gate.status if gate.status == "fail" else None
    name = f"{ROOT}.{gate.name}"
    return Span(
        name, _context(deploy.id, name), root, since, ended, attributes=attributes, events=tuple(events), error=error
    )


def _common(deploy: Deploy) -> dict[str, str | int | bool]:
    return {
        "deploy.id": deploy.id,
        "release.from": deploy.from_release[:12],
        "release.to": deploy.to_release[:12],
        "deploy.slot": deploy.to_slot,
    }


def _values(prefix: str, found: Mapping[str, Any]) -> dict[str, str | int | bool]:
    return {
        f"{prefix}.{name}": value if isinstance(value, bool | int) else str(value)[:_LONGEST]
        for name, value in found.items()
    }


def _context(deploy: str, name: str) -> TraceContext:
    """Return a span's identity; every span of a deploy is recorded, because there are few."""
    trace = sha256(f"deploy\0{deploy}".encode()).hexdigest()[:32]
    return TraceContext(trace, sha256(f"{deploy}\0{name}".encode()).hexdigest()[:16], sampled=True)
