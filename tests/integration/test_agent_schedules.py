"""Agents' own schedules, as an agent meets them: through the tools, and through lines of a program in a real daemon."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from container_runner.shared.sent_files import FileSource
from container_runner.tools.calls import Calls, ToolError
from container_runner.tools.session import ToolSession
from daemon.config.models import Delivery
from daemon.core.schedule_limits import ScheduleLimits
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import collect
from schema.tools import TOOLS
from tests.support.agents import ECHO, command_agent
from tests.support.daemon import RealDaemon, eventually
from tests.support.session_world import SessionWorld

NO_FILES = FileSource(Path("/nonexistent"), 0, 0)
MEANS = DeliveryContext(
    {}, Delivery(), 20_000, held=frozenset(), under_way=frozenset(), jitter=0.5, schedules=ScheduleLimits(most=2)
)
PROGRAM = """
import json, sys
turn = json.load(sys.stdin)
message = [one for one in turn["messages"] if one["trigger"]][-1]
text = message["content"]["text"]
if text.startswith("plan "):
    print(json.dumps({"type": "schedule", "key": "k", "text": "tick", "every_s": float(text[5:]), "count": 2}))
elif text == "stop":
    print(json.dumps({"type": "change_schedule", "key": "k", "action": "cancel"}))
known = [one["key"] for one in turn["schedules"]]
refused = [one["content"]["error"]["code"] for one in turn["messages"] if one["kind"] == "system"]
print(json.dumps({"type": "message", "text": f"{text} {known} {refused}"}))
"""


class Hosted:
    """The tools of an agent in a running turn. While a tool waits, the host polls the session."""

    def __init__(self, world: SessionWorld) -> None:
        self.world = world
        self.polls = 0
        self.restart()

    def restart(self) -> None:
        """Begin another try of the same turn."""
        folder = self.world.files.folder
        session = ToolSession(folder.inbox, folder.outbox, ("a", "s"), lambda: self.world.now)
        self.calls = Calls(session, frozenset(TOOLS), NO_FILES, sleep=self.poll)

    def poll(self, _: float) -> None:
        self.polls += 1
        collect(self.world.files, replace(MEANS, unconfirmed=set()), "I1", self.world)

    def __call__(self, tool: str, **given: Any) -> Any:
        return self.calls.call(tool, given)

    def refused(self, tool: str, **given: Any) -> str:
        with pytest.raises(ToolError) as error:
            self(tool, **given)
        assert error.value.fix
        return error.value.code


@pytest.fixture
def agent(tmp_path: Path) -> Hosted:
    world = SessionWorld(tmp_path / "s")
    world.accept("m1")
    world.claim("m1", by="I1")
    return Hosted(world)


def test_an_agent_makes_lists_and_changes_its_schedules(agent: Hosted) -> None:
    made = agent("schedule", key="k", text="look at the mail", every_s=3600)
    assert (made["was"], len(made["upcoming"])) == ("added", 3)
    assert agent("list_schedules") == {
        "schedules": [
            {"key": "k", "text": "look at the mail", "state": "active", "next": made["upcoming"][0], "sent": 0,
             "timezone": "UTC", "catch_up": "latest", "every_s": 3600}
        ]
    }  # fmt: skip
    assert agent("change_schedule", key="k", action="pause")["was"] == "active"
    assert agent("change_schedule", key="k", action="resume")["was"] == "paused"
    assert agent("change_schedule", key="k", action="pause")["was"] == "active", "asked again, it is done again"
    assert agent.refused("schedule", key="k2", text="x", every_s=1) == "SCHEDULE_INVALID"
    assert agent.refused("schedule", key="k2", text="") == "BAD_SCHEDULE"
    assert agent.refused("change_schedule", key="k2", action="destroy") == "BAD_SCHEDULE"
    assert agent.refused("change_schedule", key="k2", action="pause") == "UNKNOWN_SCHEDULE"
    assert agent("change_schedule", key="k", action="cancel")["was"] == "paused"
    assert agent("list_schedules") == {"schedules": []}


def test_a_later_try_of_the_turn_that_asks_the_same_changes_nothing(agent: Hosted) -> None:
    first = agent("schedule", key="k", text="x", at="in 2h")
    agent.world.now += 60_000
    agent.restart()
    polls = agent.polls
    assert agent("schedule", key="k", text="x", at="in 2h") == first
    assert agent.polls == polls, "the outcome is on record"


def test_a_host_that_does_not_poll_in_time_is_said(agent: Hosted) -> None:
    agent.calls = Calls(agent.calls._session, frozenset(TOOLS), NO_FILES, sleep=lambda _: None)
    assert agent.refused("schedule", key="k", text="x", at="in 2h") == "NO_OUTCOME_YET"


def test_a_program_s_lines_in_a_real_daemon(make_daemon: Callable[..., RealDaemon]) -> None:
    daemon = make_daemon(ECHO + command_agent("prog", (sys.executable, "-I", "-c", PROGRAM)) + "min_schedule_s = 1\n")
    daemon.start()

    def ask(text: str) -> str:
        return daemon.cli("send", text, "-s", "prog/s", "--mailbox", "me", "--wait", "60").result["answer"]["text"]

    assert ask("plan 1") == "plan 1 [] []"

    def ticks() -> list[str]:
        return [text for one in daemon.entries("me") if (text := one["content"]["text"]).startswith("tick")]

    eventually("both occurrences", lambda: len(ticks()) == 2, 60)
    shown = daemon.cli("schedule", "show", "k").result
    assert (shown["origin"], shown["state"], shown["to"]) == ("agent", "over", "local/me")
    ask("plan 0.5")
    assert ask("why") == "why ['k'] ['SCHEDULE_INVALID']"
    assert ask("stop") == "stop ['k'] []"
    assert ask("gone") == "gone [] []"
    assert daemon.cli("dead", "list").result["letters"] == []
