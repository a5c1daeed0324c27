"""The tracer interface that the rest of the daemon uses, and the tracer that does nothing.

This file does not import OpenTelemetry. `tracing_otel.py` does, and is loaded only when `telemetry.otlp_endpoint` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Final, Protocol

from daemon.core.errors import ConfigError
from daemon.telemetry.spans import Span

_NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Tracer(Protocol):
    """Takes finished spans. Its methods neither block nor raise."""

    @property
    def ratio(self) -> float | None:
        """The fraction of new traces to record, or None when tracing is off."""
        ...

    def emit(self, span: Span) -> None:
        """Queue one span for export. It may be dropped."""
        ...

    async def aclose(self) -> None:
        """Export the queued spans, within a bounded time."""
        ...


class NoTracer:
    """The tracer when tracing is off. Trace contexts from outside are still passed on unchanged."""

    ratio: float | None = None

    def emit(self, span: Span) -> None:
        """Drop the span."""

    async def aclose(self) -> None:
        """Do nothing."""


def check_extra(endpoint: str) -> None:
    """Raise ConfigError when an endpoint is set and the packages that send traces are not installed."""
    if not endpoint:
        return
    try:
        missing = [name for name in _NEEDED if find_spec(name) is None]
    except ModuleNotFoundError as error:
        missing = [error.name or _NEEDED[0]]
    if missing:
        raise ConfigError(
            f"telemetry.otlp_endpoint is set, but the packages that send traces are not installed ({', '.join(missing)}).",
            hint="Install the extra (`pip install --require-hashes -r locks/otel.txt`), or unset the key.",
        )


def build_tracer(endpoint: str, ratio: float, install_id: str, count: Callable[[str, int], None]) -> Tracer:
    """Build the tracer. An empty endpoint means no tracing. `count` is called with (outcome, spans). Raise ConfigError."""
    if not endpoint:
        return NoTracer()
    check_extra(endpoint)
    from daemon.telemetry.tracing_otel import OtelTracer  # noqa: PLC0415 - only with the extra

    return OtelTracer(endpoint, ratio, install_id, count)
