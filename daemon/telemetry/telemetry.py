"""The one thing that the house tells of its work: facts in, metrics and traces out.

Nothing here may disturb what it watches: every method is quick, waits for nothing and swallows its own defects (logged once a
kind). It never decides, and nobody reads anything back from it but the trace context of what begins.
"""

from __future__ import annotations

import structlog
from prometheus_client import CollectorRegistry

from daemon.telemetry.metrics import Metrics


class Telemetry:
    """Built by the composition root and passed to every part. Times are epoch milliseconds, durations seconds."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics(CollectorRegistry())
        self._log = structlog.get_logger("telemetry")
