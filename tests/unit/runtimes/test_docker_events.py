"""Docker's event stream where no thread can be started: its waiters poll, and a later one starts it."""

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

    def call(self, _: Any) -> None:
        self.begun.set()
        self.let_go.wait(30)


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
