"""A real OTLP receiver on loopback: takes ExportTraceServiceRequest over HTTP and decodes it with opentelemetry-proto.

`answer` says what it does: a status, or `hang` to hold every request until the receiver ends.
"""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """One span as it came. Nanoseconds; hexadecimal ids, `parent` empty at the head of a trace."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    kind: int
    error: str | None
    attributes: dict[str, Any]
    events: tuple[str, ...]
    resource: dict[str, Any]


@dataclass(slots=True)
class OtlpReceiver:
    """What came, in the order of its coming."""

    url: str
    answer: int | str = 200
    requests: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    spans: list[SeenSpan] = field(default_factory=list[SeenSpan])
    over: threading.Event = field(default_factory=threading.Event)

    def of(self, trace: str) -> dict[str, list[SeenSpan]]:
        """A trace's spans by name."""
        found: dict[str, list[SeenSpan]] = {}
        for span in tuple(self.spans):
            if span.trace == trace:
                found.setdefault(span.name, []).append(span)
        return found


def _plain(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


def decode(body: bytes) -> list[SeenSpan]:
    """The spans in a request's body. Raises what protobuf raises for what is none."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        SeenSpan(
            name=span.name,
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
            kind=span.kind,
            error=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None,
            attributes=_plain(span.attributes),
            events=tuple(event.name for event in span.events),
            resource=_plain(group.resource.attributes),
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


@contextmanager
def collecting(answer: int | str = 200) -> Iterator[OtlpReceiver]:
    """A collector on a loopback port, for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.requests += 1
            if receiver.answer == "hang":
                receiver.over.wait()
                return
            body = self.rfile.read(int(self.headers["content-length"]))
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            if receiver.answer == 200:
                packed = self.headers.get("content-encoding") == "gzip"
                receiver.spans += decode(gzip.decompress(body) if packed else body)
                receiver.headers = {name.lower(): value for name, value in self.headers.items()}
            reply = ExportTraceServiceResponse().SerializeToString()
            self.send_response(int(receiver.answer))
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = OtlpReceiver(f"http://127.0.0.1:{server.server_address[1]}", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
