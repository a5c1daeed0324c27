"""A name that does not exist: the same code in every command, the nearest names that do, and nothing done."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.arguments import ID_PARAMETERS
from daemon.cli.main import command_tree
from daemon.cli.suggestions import nearest
from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from tests.support.command_line import CommandLine
from tests.support.session_world import SessionWorld

MESSAGE = "01M8FHSNAY52PJVXWFNW2C10N7"


@pytest.fixture
def one_session(home: Path) -> None:
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    registry.activate(SessionKey("echo", "first"), 1)
    SessionWorld(home / "data" / "sessions" / "echo" / "first").accept(MESSAGE)


@pytest.mark.usefixtures("one_session")
@pytest.mark.parametrize(
    "command",
    [
        ("session", "show", "{}"), ("session", "release", "{}"), ("session", "delete", "{}"), ("doctor", "-s", "{}"),
        ("run", "list", "-s", "{}"), ("dead", "list", "-s", "{}"), ("delivery", "list", "-s", "{}"), ("message", "list", "-s", "{}"),
        ("logs", "-s", "{}"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_unknown_session(cli: CommandLine, command: tuple[str, ...]) -> None:
    for wrong in ("echo/fisrt", "ehco/first"):
        envelope = cli(*(word.format(wrong) for word in command)).envelope
        assert envelope["error"]["code"] == "UNKNOWN_SESSION"
        assert "did you mean echo/first?" in envelope["error"]["message"]
        assert envelope["next_actions"][0]["command"].endswith(" session show echo first")
    error = cli(*(word.format("other/thing") for word in command)).envelope["error"]
    assert (error["code"], "did you mean" in error["message"]) == ("UNKNOWN_SESSION", False)


@pytest.mark.usefixtures("one_session")
@pytest.mark.parametrize(
    "command",
    [
        ("run", "show"), ("message", "show"), ("message", "cancel"), ("message", "retry"), ("dead", "show"), ("dead", "requeue"),
        ("dead", "drop"), ("delivery", "retry"), ("delivery", "drop"), ("session", "show", "echo/first", "--message"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_unknown_id(cli: CommandLine, command: tuple[str, ...]) -> None:
    for wrong in (f"{MESSAGE[:-1]}8", MESSAGE[-8:].lower()):
        error = cli(*command, wrong).envelope["error"]
        assert error["code"] == "UNKNOWN_MESSAGE"
        assert f"did you mean {MESSAGE}?" in error["message"]
    error = cli(*command, "something-else").envelope["error"]
    assert (error["code"], "did you mean" in error["message"]) == ("UNKNOWN_MESSAGE", False)


@pytest.mark.usefixtures("one_session")
@pytest.mark.parametrize(
    ("command", "code", "meant"),
    [
        (("agent", "show", "ehco"), "UNKNOWN_AGENT", "echo"),
        (("schedule", "show", "dialy"), "UNKNOWN_SCHEDULE", "daily"),
        (("schedule", "cancel", "dialy"), "UNKNOWN_SCHEDULE", "daily"),
        (("question", "show", "q-zzzz"), "UNKNOWN_QUESTION", None),
        (("user", "revoke", "bobb"), "UNKNOWN_USER", "bob"),
        (("route", "remove", "taem"), "UNKNOWN_ROUTE", "team"),
    ],
)
def test_an_unknown_name(cli: CommandLine, command: tuple[str, ...], code: str, meant: str | None) -> None:
    assert cli("schedule", "add", "daily", "hi", "-a", "echo", "-s", "first", "--every", "1d").code == 0
    assert cli("user", "add", "bob").code == 0
    assert cli("route", "add", "team", "-a", "echo", "--channel", "local", "--place", "team").code == 0
    error = cli(*command).envelope["error"]
    assert error["code"] == code
    assert error["message"].endswith(f"; did you mean {meant}?") is (meant is not None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("send", "hi", "--wiat", "3"), "No such option: --wiat. Did you mean --wait"),
        (("logs", "--sine", "3m"), "Did you mean --since"),
        (("session", "list", "--stat", "working"), "Did you mean --state"),
        (("run", "list", "--status", "runing"), "Did you mean running?"),
        (("status", "--qqqqqqqq"), "No such option: --qqqqqqqq."),
        (("channel", "show", "local"), "No such command 'show'. There are: list."),
        (("help", "stauts"), "Did you mean 'status'"),
        (("help", "IMAGE_UNUSBLE"), "Did you mean 'IMAGE_UNUSABLE'"),
    ],
)
def test_a_mistyped_word(cli: CommandLine, words: tuple[str, ...], said: str) -> None:
    error = cli(*words).envelope["error"]
    assert error["code"] == "USAGE"
    assert said in error["message"]
    assert ("Did you mean" in error["message"]) == ("Did you mean" in said)
    assert "Value error" not in error["message"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("CANCELLED", "cancelled the message"), ("backing_off", "the next try has a time"), ("DEAD_LETTERS", "given up"),
        ("NO_ROUTE", "no route covers the place"), ("orphaned", "container ended"), ("UNKNOWN_MESSAGE", "No such message"),
    ],
)  # fmt: skip
def test_help_knows_findings_refusals_and_states(cli: CommandLine, word: str, says: str) -> None:
    assert says.lower() in cli("help", word).envelope["result"]["what"].lower()


def test_the_nearest_names() -> None:
    assert nearest("DEMO", ["demo", "demo-2", "other"])[0] == "demo"
    assert nearest("de", ["xyz-de"]) == [], "two letters mean nothing"
    assert nearest("xyz", []) == []


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from _leaves(child, (*path, name))


def _with_empty() -> Iterator[tuple[str, ...]]:
    """Each command that takes an id, an agent or a session, with an empty word in its place and something in the others."""
    names = ID_PARAMETERS | {"agent", "session"}
    for path, command in _leaves(command_tree()):
        for empty in (one for one in command.params if one.name in names):
            words = list(path)
            for one in command.params:
                value = "" if one is empty else {"role_name": "member"}.get(one.name, "x")
                if one.param_type_name == "argument":
                    words.append(value)
                elif one is empty or one.required:
                    words += [one.opts[0], value]
            yield tuple(words)


@pytest.mark.parametrize("words", list(_with_empty()), ids=" ".join)
def test_an_empty_variable_in_place_of_a_name_is_wrong_usage(cli: CommandLine, words: tuple[str, ...]) -> None:
    answer = cli(*words)
    assert (answer.code, answer.envelope["error"]["code"]) == (2, "USAGE")
    assert "is empty (is a variable empty?)" in answer.envelope["error"]["message"]


def test_a_session_that_begins_with_its_agent_is_remarked_upon(cli: CommandLine) -> None:
    assert (
        "note: this is session echo/echo/first; for session echo/first, leave out --agent."
        in cli("send", "hi", "-a", "echo", "-s", "echo/first").err
    )
    assert "note:" not in cli("send", "hi", "-a", "echo", "-s", "first").err


def test_a_message_s_session_may_name_its_agent(cli: CommandLine) -> None:
    assert cli("send", "hi", "-s", "echo/first").envelope["error"]["code"] == "DAEMON_DOWN"
    for command in (("send", "hi"), ("chat",)):
        for wrong in ("first", "/first", "echo/"):
            error = cli(*command, "-s", wrong).envelope["error"]
            assert (error["code"], "--session AGENT/SESSION" in error["message"]) == ("USAGE", True)
