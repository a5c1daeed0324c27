"""Docker's event stream where no thread can be started (its waiters poll, and a later one starts it), or where streams end at once."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from daemon.runtimes.docker_events import ExitEvents

pytestmark = pytest.mark.anyio


class Client:
    """A client whose stream says nothing until it is let go."""

    engine = "docker"

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()

    def call(self, _: Any) -> bool:
        self.begun.set()
        self.let_go.wait(30)
        return False


async def test_a_stream_without_a_thread_fails_nobody_and_begins_with_the_next_waiter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    events = ExitEvents(cast("Any", client), "install")

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        with events.waiter("c1"):
            assert not client.begun.is_set()
        events.close()
    events = ExitEvents(cast("Any", client), "install")
    with events.waiter("c1"):
        assert client.begun.wait(10)
    client.let_go.set()
    events.close()


class EndsAtOnce:
    """A client whose streams end at once. `heard` says of each whether it brought an event."""

    engine = "docker"

    def __init__(self, *heard: bool) -> None:
        self.heard = iter(heard)

    def call(self, _: Any) -> bool:
        return next(self.heard)


class Stop(threading.Event):
    """Ends the thread after some waits, and keeps how long they were to be."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits: list[float | None] = []
        self.left = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        self.left -= 1
        if not self.left:
            self.set()
        return self.is_set()


async def test_streams_that_end_at_once_are_opened_less_and_less_often_until_one_says_something() -> None:
    events = ExitEvents(cast("Any", EndsAtOnce(*[False] * 6, True)), "install")
    stop = events._stop = Stop(7)
    with events.waiter("c1"):
        thread = events._thread
        assert thread is not None
        thread.join(10)
    events.close()
    assert stop.waits == [0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.2]
