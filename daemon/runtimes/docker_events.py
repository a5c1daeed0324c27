"""Docker's event stream, shared by all waiters. An event is a hint to inspect a container, never the proof of an exit.

One thread reads the stream and wakes the waiters of a container that died. A stream that breaks is opened again, and
every waiter inspects its container, because events may have been missed. Never decides that anything has exited.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator, Mapping
from typing import Any, Final, cast

import structlog

from daemon.core.errors import ClawbusError
from daemon.runtimes.docker_client import DockerClient
from daemon.runtimes.spec import LABEL_INSTALL

# What begins, ends or changes a container's life. `exec_*` and `health_status` come in crowds and say nothing of it.
_EVENTS: Final = ("start", "restart", "die", "destroy", "update", "rename", "pause", "unpause")
_RECONNECT_S: Final = 0.2
_RECONNECT_MAX_S: Final = 5.0
_JOIN_S: Final = 5.0


class Waiter:
    """Wakes one task for the events of one container, or (None) of any.

    The thread that reads the events notifies it; the task waits in the event loop in which it was made.
    """

    def __init__(self, container_id: str | None) -> None:
        self.container_id = container_id
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the waiter. May be called from any thread. Do nothing if its event loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._rung.set)

    async def rung(self) -> None:
        """Wait for the next notification. Each one is consumed once."""
        await self._rung.wait()
        self._rung.clear()


class ExitEvents:
    """The stream's thread and its waiters. The thread starts with the first waiter."""

    def __init__(self, client: DockerClient, install_id: str) -> None:
        self._client = client
        self._filters = {"type": "container", "event": list(_EVENTS), "label": f"{LABEL_INSTALL}={install_id}"}
        self._waiters: set[Waiter] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._stream: Any = None
        self._log = structlog.get_logger(runtime=client.engine)

    @contextlib.contextmanager
    def waiter(self, container_id: str | None) -> Generator[Waiter]:
        """Yield a Waiter that is registered inside the `with` block."""
        waiter = Waiter(container_id)
        with self._lock:
            self._waiters.add(waiter)
            if self._thread is None and not self._stop.is_set():
                self._begin()
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def _begin(self) -> None:
        thread = threading.Thread(target=self._run, name="docker-events", daemon=True)
        try:
            thread.start()
        except (
            RuntimeError
        ) as error:  # no room for a thread: waiters inspect from time to time, and the next one tries again
            self._log.warning("docker_events_failed", error=str(error))
        else:
            self._thread = thread

    def interrupt(self) -> None:
        """Break the stream's connection; the thread opens another unless it is to stop."""
        with self._lock:
            stream = self._stream
        if stream is not None:
            with contextlib.suppress(OSError, AttributeError):
                stream.close()

    def close(self) -> None:
        """End the thread. Blocks until it has ended, at most a few seconds."""
        self._stop.set()
        self.interrupt()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_JOIN_S)
        self._ring(None)

    def _run(self) -> None:
        delay = _RECONNECT_S
        while not self._stop.is_set():
            try:
                # Each end makes every waiter look. Where a proxy ends each stream at once, they must not look all the time.
                heard = self._client.call(self._read)
                delay = _RECONNECT_S if heard else min(delay * 2, _RECONNECT_MAX_S)
            except ClawbusError as error:
                self._log.debug("docker_events_lost", error=str(error))
                delay = min(delay * 2, _RECONNECT_MAX_S)
            except Exception as error:  # noqa: BLE001 - the thread must outlive whatever a broken stream raises
                self._log.warning("docker_events_failed", error=repr(error))
                delay = min(delay * 2, _RECONNECT_MAX_S)
            self._ring(None)
            self._stop.wait(delay)

    def _read(self, api: Any) -> bool:
        """Wake waiters until the stream ends. Return whether it brought any event."""
        heard = False
        stream = api.events(filters=self._filters, decode=True)
        with self._lock:
            self._stream = stream
        try:
            if not self._stop.is_set():
                self._ring(None)  # whatever ended before the stream was there
                for event in stream:
                    heard = True
                    self._ring(_container_of(event))
        finally:
            with self._lock:
                self._stream = None
            stream._response.close()  # noqa: SLF001 - docker-py has no other way to give the connection back
        return heard

    def _ring(self, container_id: str | None) -> None:
        with self._lock:
            waiters = [w for w in self._waiters if container_id is None or w.container_id in {None, container_id}]
        for waiter in waiters:
            waiter.ring()


def _container_of(event: Mapping[str, Any]) -> str | None:
    return event.get("id") or cast("dict[str, str]", event.get("Actor") or {}).get("ID")
