"""What a deploy counts against the release that it watches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.app.deploy_engine import BusEngine
from daemon.core.clock import SystemClock
from daemon.core.events import SpawnFailed
from daemon.engine.events import Events


@pytest.mark.parametrize(
    ("code", "failures", "counted"),
    [
        ("SPAWN_FAILED", 1, 1),
        ("IMAGE_MISSING", 1, 1),
        ("SPAWN_FAILED", 2, 0),  # it failed before: under the prior release, or it is counted already
        ("RUNTIME_UNAVAILABLE", 1, 0),
        ("RUNTIME_CHANGED", 1, 0),
        ("STORAGE", 1, 0),
        ("HOST_TROUBLE", 1, 0),
        ("FILE_BUSY", 1, 0),
    ],
)
def test_a_failed_start_counts_once_and_the_hosts_never(code: str, failures: int, counted: int) -> None:
    bus: Any = SimpleNamespace(
        events=Events(), clock=SystemClock(), problems=SimpleNamespace(degraded=list), pulse=SimpleNamespace(stale=list)
    )
    engine = BusEngine(cast("Any", bus))
    bus.events.publish(SpawnFailed(1, "echo", "s1", code, "no", "", failures, 5.0, started=False))
    assert engine.health().spawn_failures == counted
