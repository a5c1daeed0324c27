"""The event stream: filters, a watcher that falls behind, threads, and its end with the daemon. On a real socket."""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from starlette.applications import Starlette

from daemon.api.client import ControlClient
from daemon.api.events import KEPT, EventHub, Watcher, events_route, lines
from daemon.api.server import run
from daemon.core.errors import LostAnswerError, RemoteError
from daemon.logs.filter import EventFilter


@contextmanager
def serving(path: Path, hub: EventHub) -> Generator[None]:
    """Serve the event route on a unix socket, in a thread with its own event loop."""
    app = Starlette(routes=[events_route(hub)])
    with anyio.from_thread.start_blocking_portal() as portal:
        future, _ = portal.start_task(_run, app, path)
        try:
            yield
        finally:
            future.cancel()


async def _run(app: Starlette, path: Path, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await run(app, path, task_status=task_status)


@pytest.fixture
def hub() -> EventHub:
    return EventHub()


@pytest.fixture
def client(hub: EventHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlClient]:
    path = tmp_path_factory.mktemp("e") / "c.sock"
    with serving(path, hub):
        yield ControlClient(path, answer_s=20)


def event(name: str, **fields: Any) -> dict[str, Any]:
    return {"event": name, "level": "info", "agent": "a", "session": "s", **fields}


def test_what_is_logged_after_the_first_line_is_in_the_stream(client: ControlClient, hub: EventHub) -> None:
    hub.publish(event("before"))
    stream = client.watch({})
    assert next(stream) == {"event": "watching"}
    threads = [threading.Thread(target=hub.publish, args=(event("from_a_thread", number=n),)) for n in range(20)]
    for thread in threads:
        thread.start()
    found = [next(stream) for _ in range(20)]
    assert {one["number"] for one in found} == set(range(20))
    stream.close()


def test_only_what_is_asked_for_is_sent(client: ControlClient, hub: EventHub) -> None:
    stream = client.watch({"session": "a/s", "message": "m1", "level": "warning"})
    next(stream)
    hub.publish(event("too_low", message="m1"))
    hub.publish(event("other_session", level="error", session="t", message="m1"))
    hub.publish(event("other_message", level="error", message="m2"))
    hub.publish(event("wanted", level="error", message="m1"))
    assert next(stream)["event"] == "wanted"
    stream.close()


def test_an_unknown_level_is_refused(client: ControlClient) -> None:
    with pytest.raises(RemoteError, match="no such level"):
        next(client.watch({"level": "loud"}))


def test_the_stream_ends_with_the_daemon(hub: EventHub, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("e") / "c.sock"
    with serving(path, hub):
        stream = ControlClient(path, answer_s=20).watch({})
        next(stream)
    with pytest.raises(LostAnswerError):
        next(stream)


@pytest.mark.anyio
async def test_a_watcher_that_falls_behind_loses_the_oldest_and_is_told() -> None:
    watcher = Watcher(EventFilter())
    for number in range(KEPT + 7):
        watcher.offer(event("many", number=number))
    events, lost = await watcher.take(anyio.Event())
    assert (len(events), lost, events[0]["number"]) == (KEPT, 7, 7)
    watcher.offer(event("next"))
    events, lost = await watcher.take(anyio.Event())
    assert ([one["event"] for one in events], lost) == (["next"], 0)


@pytest.mark.anyio
async def test_a_daemon_that_closes_ends_the_wait() -> None:
    closing = anyio.Event()
    closing.set()
    with anyio.fail_after(30):
        assert await Watcher(EventFilter()).take(closing) == ([], 0)


@pytest.mark.anyio
async def test_a_stream_of_a_daemon_that_closes_ends_by_itself() -> None:
    closing = anyio.Event()
    stream = lines(EventHub(), EventFilter(), closing)
    assert await anext(stream) == b'{"event":"watching"}\n'
    closing.set()
    assert [line async for line in stream] == []


@pytest.mark.anyio
async def test_a_watcher_that_has_left_gets_no_more_events() -> None:
    hub = EventHub()
    with hub.watching(EventFilter()) as watcher:
        hub.publish(event("one"))
    hub.publish(event("two"))
    events, _ = await watcher.take(anyio.Event())
    assert [one["event"] for one in events] == ["one"]
