"""What tracing is to the rest of the daemon: identities now, finished spans later. Without the extra, nothing of it runs.

This file imports no OpenTelemetry; `tracing_otel.py` does, and only when `telemetry.otlp_endpoint` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Final, Protocol

from daemon.core.errors import ConfigError
from daemon.telemetry.spans import Span

_NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Tracer(Protocol):
    """Makes identities and takes finished spans. Neither waits or raises."""

    @property
    def ratio(self) -> float | None:
        """Which part of new traces is recorded; None: no tracing at all."""
        ...

    def emit(self, span: Span) -> None:
        """Take one span, to be exported later or dropped."""
        ...

    async def aclose(self) -> None:
        """Export what is left, within a bounded time."""
        ...


class NoTracer:
    """Nobody asked for traces. A context that came from outside is still carried on, unchanged."""

    ratio: float | None = None

    def emit(self, span: Span) -> None:
        """Nothing."""

    async def aclose(self) -> None:
        """Nothing."""


def check_extra(endpoint: str) -> None:
    """Raise ConfigError when traces are asked for and their packages are not installed."""
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
    """Build the tracer for an endpoint; an empty one means none. `count` gets (outcome, spans). Raise ConfigError."""
    if not endpoint:
        return NoTracer()
    check_extra(endpoint)
    from daemon.telemetry.tracing_otel import OtelTracer  # noqa: PLC0415 - only with the extra

    return OtelTracer(endpoint, ratio, install_id, count)
