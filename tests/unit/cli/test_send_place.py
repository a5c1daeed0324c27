"""`send --place --id`: an event becomes a message for each agent, so that its id is named beside theirs."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from daemon.cli.invocation import Invocation
from daemon.cli.send_place import LocalEvent, send_to_place
from daemon.core.errors import LostAnswerError, NotListeningError


class OneRoute:
    """A daemon whose routes lead to two agents, and the invocation that asks it."""

    def __init__(self, *troubles: Exception) -> None:
        self.events: list[dict[str, Any]] = []
        self.troubles = list(troubles)
        self.place = SimpleNamespace(data_dir=Path("/nonexistent"))

    def silent_daemon(self) -> str:
        """It starts."""
        return "process 1 holds the folder"

    @contextmanager
    def client(self) -> Iterator["OneRoute"]:
        yield self

    def event(self, event: dict[str, Any]) -> dict[str, Any]:
        self.events.append(event)
        if self.troubles:
            raise self.troubles.pop(0)
        reached = [
            {"message_id": "ev-1", "agent": agent, "session": "team", "duplicate": False} for agent in ("one", "two")
        ]
        return {"messages": reached, "refused": []}


@pytest.mark.parametrize("given", ["EV1", None])
def test_the_id_of_the_event_is_named_where_one_was_given(given: str | None) -> None:
    bus = OneRoute()
    outcome = send_to_place(cast("Invocation", bus), "hi", LocalEvent(given, "team", None, None, False, False, None))
    said = io.StringIO()
    assert outcome.people is not None
    outcome.people(Console(file=said, width=200))
    assert said.getvalue().count("accepted ev-1") == 2
    assert said.getvalue().count("made of event EV1") == (2 if given else 0)
    assert outcome.result is not None
    assert outcome.result["event"] == bus.events[0]["id"]
    assert given in (None, outcome.result["event"])


EVENT = LocalEvent(None, "team", None, None, False, False, None)


def test_a_daemon_that_starts_is_waited_for_under_one_id() -> None:
    bus = OneRoute(NotListeningError("it starts"))
    assert send_to_place(cast("Invocation", bus), "hi", EVENT).problem is None
    assert len({event["id"] for event in bus.events}) == 1
    assert len(bus.events) == 2


def test_an_answer_that_was_lost_names_the_id_to_repeat() -> None:
    bus = OneRoute(LostAnswerError("the daemon ended"))
    outcome = send_to_place(cast("Invocation", bus), "hi", replace(EVENT, message_id="EV1"))
    assert outcome.problem is not None
    assert "event EV1 may have been accepted: send it again with this --id" in outcome.problem.message
