"""Traces over OTLP/HTTP: the only file that imports opentelemetry. Spans go to a bounded queue that a thread empties.

Whatever the collector does (away, slow, refusing) is counted and logged once; it never reaches a message. What does not fit
into the queue is dropped, and counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import anyio
import anyio.to_thread
import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from daemon.core.trace import TraceContext
from daemon.telemetry.metrics import program_version
from daemon.telemetry.spans import Role, Span

TRACES_PATH: Final = "/v1/traces"
QUEUE: Final = 4096
_BATCH: Final = 256
_EVERY_MS: Final = 1000.0
_SEND_S: Final = 5.0
_CLOSE_S: Final = 3.0

_KINDS: Final[Mapping[Role, SpanKind]] = MappingProxyType(
    {
        Role.PRODUCER: SpanKind.PRODUCER,
        Role.CONSUMER: SpanKind.CONSUMER,
        Role.CLIENT: SpanKind.CLIENT,
        Role.INTERNAL: SpanKind.INTERNAL,
    }
)

Count = Callable[[str, int], None]


class OtelTracer:
    """Built when traces are asked for. `count` is called for spans exported, failed and dropped; from any thread."""

    def __init__(
        self, endpoint: str, ratio: float, install_id: str, count: Count, exporter: SpanExporter | None = None
    ) -> None:
        self.ratio: float | None = ratio
        self._count = count
        # The exporter logs each failure; ours says once that it fails, and once that it works again.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        url = endpoint if endpoint.endswith(TRACES_PATH) else endpoint + TRACES_PATH
        self._watched = _Watched(exporter or OTLPSpanExporter(endpoint=url, timeout=_SEND_S), endpoint, count)
        resource = Resource.create(
            {"service.name": "clawbus", "service.version": program_version(), "service.instance.id": install_id}
        )
        self._ids = _Ids()
        # Whether a trace is recorded was decided when it began, and is in its context: see daemon/telemetry/context.py.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, id_generator=self._ids
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._watched, max_queue_size=QUEUE, schedule_delay_millis=_EVERY_MS, max_export_batch_size=_BATCH
            )
        )
        self._tracer = self._provider.get_tracer("clawbus", program_version())

    def emit(self, span: Span) -> None:
        """See Tracer. On the event loop only: the identity of the next span is handed over beside the call."""
        if not span.context.sampled:
            return
        if not self._watched.take(QUEUE):
            self._count("dropped", 1)
            return
        self._ids.next = span.context
        made = self._tracer.start_span(
            span.name,
            context=_parent(span.parent),
            kind=_KINDS[span.role],
            attributes=span.attributes,
            start_time=_ns(span.start),
        )
        for event in span.events:
            made.add_event(event.name, event.attributes, timestamp=_ns(event.at))
        if span.error is not None:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(_ns(span.end))

    async def aclose(self) -> None:
        """See Tracer: three seconds at most, then what is left is lost."""
        with anyio.move_on_after(_CLOSE_S):
            await anyio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)


class _Ids(IdGenerator):
    """Gives each span the identity that was made for it when its work began."""

    def __init__(self) -> None:
        self.next: TraceContext | None = None

    def generate_span_id(self) -> int:
        assert self.next is not None
        return int(self.next.span_id, 16)

    def generate_trace_id(self) -> int:
        assert self.next is not None
        return int(self.next.trace_id, 16)


class _Watched(SpanExporter):
    """Counts what another exporter exports, and logs its trouble once. Runs in the processor's thread."""

    def __init__(self, exporter: SpanExporter, endpoint: str, count: Count) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._count = count
        self._failing = False
        self._taken = 0
        self._done = 0
        self._log = structlog.get_logger("telemetry")

    def take(self, limit: int) -> bool:
        """Return whether one more span fits. Two counters, each written by one thread alone."""
        if self._taken - self._done >= limit:
            return False
        self._taken += 1
        return True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Pass one batch on; never raises."""
        try:
            result, why = self._exporter.export(spans), "the collector did not take them"
        except Exception as error:  # noqa: BLE001 - a collector's failure must not reach anything else
            result, why = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        self._done += len(spans)
        failed = result is not SpanExportResult.SUCCESS
        self._count("failed" if failed else "exported", len(spans))
        if failed and not self._failing:
            self._log.warning("traces_not_exported", endpoint=self._endpoint, error=why)
        elif self._failing and not failed:
            self._log.info("traces_exported_again", endpoint=self._endpoint)
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """Pass it on."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Pass it on."""
        return self._exporter.force_flush(timeout_millis)


def _parent(parent: TraceContext | None) -> Context:
    if parent is None:
        return Context()
    identity = SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    return set_span_in_context(NonRecordingSpan(identity), Context())


def _ns(epoch_ms: int) -> int:
    return epoch_ms * 1_000_000
