"""The three routes that others poll: /metrics, /healthz, /readyz. On the control socket, and on TCP if that is configured.

They change nothing and reveal nothing that a message says. A scrape never blocks the event loop: it is rendered in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskStatus
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from daemon.config.addresses import bind_tcp, bound_address
from daemon.core.clock import Clock
from daemon.http.asgi import serve
from daemon.http.connections import ConnectionLimits, guarded
from daemon.monitoring.collector import BusCollector, Sources
from daemon.monitoring.health import Health

_FRESH_S: Final = 1.0  # scrapes closer together share what was read from the files
_PATIENCE_S: Final = 2.0
_LIMITS: Final = ConnectionLimits(max_connections=100, max_per_peer=50, patience_s=30.0)


class _WithoutCreated(Collector):
    """Collects every instrument without its `_created` samples, each of which Prometheus would store as a useless series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Exporter:
    """Renders scrapes. `registry` holds every instrument; the gauges of `sources` are added to it.

    The task `run` reads the files. A scrape asks it to, and waits at most `patience_s` seconds before it shows older values.
    """

    def __init__(
        self, registry: CollectorRegistry, sources: Sources, clock: Clock, patience_s: float = _PATIENCE_S
    ) -> None:
        self._registry = registry
        self._sources = sources
        self._clock = clock
        self._patience_s = patience_s
        self._bus = BusCollector(sources)
        self._rendering = anyio.Lock()
        self._wanted = anyio.Event()
        self._looked = anyio.Event()
        self._looked_at: float | None = None
        registry.register(self._bus)

    async def run(self) -> None:
        """Read the files when a scrape asks, one read at a time, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                await self._sources.backlog.look(self._clock.now_ms())
            except Exception:  # noqa: BLE001 - a failing read must not end the daemon
                structlog.get_logger("telemetry").error("telemetry_raised", what="backlog", exc_info=True)
            self._looked_at = self._clock.monotonic()
            self._wanted = anyio.Event()
            done, self._looked = self._looked, anyio.Event()
            done.set()

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return (body, content type), in the format that the `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        if self._looked_at is None or self._clock.monotonic() - self._looked_at >= _FRESH_S:
            self._wanted.set()
            with anyio.move_on_after(self._patience_s):
                await self._looked.wait()
        async with self._rendering:
            self._bus.take()
            body = await anyio.to_thread.run_sync(encode, _WithoutCreated(self._registry))
        return body, content_type


def telemetry_routes(exporter: Exporter, health: Health) -> list[BaseRoute]:
    """Return the routes, for any app."""

    async def metrics(request: Request) -> Response:
        body, content_type = await exporter.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def healthz(_: Request) -> Response:
        return _json(200, {"ok": True, "result": health.alive()})

    async def readyz(_: Request) -> Response:
        found = health.ready()
        return _json(200 if found["ready"] else 503, {"ok": found["ready"], "result": found})

    return [
        Route("/metrics", metrics, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
    ]


_INDEX: Final = """clawbus
/metrics  for Prometheus
/healthz  whether the daemon's process is alive
/readyz   whether it works, and what is degraded
"""


async def run_listener(
    listen: str, routes: list[BaseRoute], *, task_status: TaskStatus[tuple[str, int]] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Serve the routes on TCP until cancelled. Report (host, port) once it listens. Raise ListenError."""
    sock = bind_tcp(listen)
    host, port = bound_address(sock)

    async def refused(_: Request, error: Exception) -> Response:
        status = int(getattr(error, "status_code", 500))
        text = "The paths are /metrics, /healthz and /readyz; only GET is allowed.\n"
        return PlainTextResponse(text, status, getattr(error, "headers", None))  # a 405 must have the header Allow

    async def index(_: Request) -> Response:
        return PlainTextResponse(_INDEX)

    app = Starlette(
        routes=[Route("/", index, methods=["GET"]), *routes], exception_handlers={404: refused, 405: refused}
    )
    structlog.get_logger("telemetry").info("telemetry_listening", host=host, port=port)
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(serve, app, sock, http=guarded(_LIMITS)), name="telemetry http")
        task_status.started((host, port))


def _json(status: int, body: object) -> Response:
    return Response(json.dumps(body, separators=(",", ":")), status, media_type="application/json")
