"""`agent list|show` and `channel list`: what is configured, what works, what is open; secrets stay where they are."""

from pathlib import Path

import pytest

from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from schema.connect import open_owner
from schema.migrate import Role
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations
from tests.support.session_world import NOW, SessionWorld

CONFIG = """
[agents.prog]
command = ["sh", "-c", "echo token-4711"]
env = {API_KEY = "token-4712"}
[channels.hook]
type = "webhook"
reply_url = "http://127.0.0.1/token-4713"
[channels.quiet]
type = "webhook"
enabled = false
"""


@pytest.fixture(autouse=True)
def some(home: Path) -> None:
    with (home / "clawbus.toml").open("a") as file:
        file.write(CONFIG)
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    for agent in ("prog", "gone"):
        registry.activate(SessionKey(agent, "s"), 1)
        SessionWorld(home / "data" / "sessions" / agent / "s").accept(f"{agent}-m")
    answers = (("o1", "hook", "retrying"), ("o2", "hook", "dead"), ("o3", "old", "queued"))
    with (
        open_owner(home / "data" / "sessions" / "prog" / "s" / "in" / "inbound.db", Role.INBOUND) as db,
        db.transaction(),
    ):
        for seq, (answer, channel, state) in enumerate(answers):
            db.execute(
                "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, last_error,"
                " next_attempt_at) VALUES (?, ?, ? || char(31) || 'place' || char(31), ?, 3, ?, 'answered 500', ?)",
                (answer, 2 * seq + 1, channel, state, NOW, NOW),
            )


def test_agents_are_those_with_a_table_or_a_session(cli: CommandLine) -> None:
    agents = {one["agent"]: one for one in cli("agent", "list").result["agents"]}
    assert {name: one["configured"] for name, one in agents.items()} == {"echo": True, "gone": False, "prog": True}
    prog = agents["prog"]
    assert (prog["sessions"], prog["pending"], prog["undelivered"], prog["dead_letters"]) == (
        {"total": 1, "waiting": 1}, 1, 2, 1,
    )  # fmt: skip
    assert prog["attention"][0]["session"] == "s"
    text = cli("agent", "list", "--pretty").out
    assert "no table" in text


def test_one_agent_without_its_secrets(cli: CommandLine) -> None:
    settings = cli("agent", "show", "prog").result["settings"]
    assert (settings["program"], settings["arguments"], settings["variables"]) == ("sh", 2, ["API_KEY"])
    for form in ("--json", "--pretty"):
        said = cli("agent", "show", "prog", form).out + cli("channel", "list", form).out
        assert "token-" not in said
    assert "[agents.gone]" in cli("agent", "show", "gone", "--pretty").out
    error = cli("agent", "show", "porg").envelope["error"]
    assert (error["code"], "prog" in error["message"]) == ("UNKNOWN_AGENT", True)


def test_channels_with_what_waits_on_each(cli: CommandLine) -> None:
    result = cli("channel", "list").result
    found = {one["channel"]: one for one in result["channels"]}
    assert {name: (one["type"], one["state"]) for name, one in found.items()} == {
        "hook": ("webhook", "unknown"), "local": ("local", "unknown"), "old": (None, "missing"), "quiet": ("webhook", "off"),
    }  # fmt: skip
    hook = found["hook"]
    assert (hook["undelivered"], hook["retrying"], hook["dead"], hook["why"]) == (1, 1, 1, "answered 500")
    assert hook["oldest_undelivered_at"] == NOW
    assert "[channels.old]" in found["old"]["why"]
    assert "whether channels work is not known" in cli("channel", "list", "--pretty").out


def test_the_daemon_says_which_channel_does_not_work(
    cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = {"what": "channel hook", "since": NOW, "why": "the port is taken"}
    monkeypatch.setattr(operations, "live", lambda: {"degraded": [fault]})
    found = {one["channel"]: (one["state"], one["why"]) for one in cli("channel", "list").result["channels"]}
    assert found["hook"] == ("degraded", "the port is taken")
    assert found["local"] == ("up", None)
