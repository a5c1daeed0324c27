"""Commands are found by their names of today and their former ones; an empty word is never taken for a name."""

import pytest

from tests.support.command_line import CommandLine


@pytest.mark.parametrize(
    ("former", "now"),
    [
        (("runs", "--status", "failed"), ("run", "list", "--status", "failed")),
        (("sessions",), ("session", "list")),
        (("run", "m1"), ("run", "show", "m1")),
    ],
)
def test_a_former_name_works_and_says_the_new_one(
    cli: CommandLine, former: tuple[str, ...], now: tuple[str, ...]
) -> None:
    old, new = cli(*former, "--json"), cli(*now, "--json")
    assert old.envelope == new.envelope
    assert f"clawbus {now[0]} {now[1]}" in old.err
    assert "note:" not in new.err


@pytest.mark.parametrize("word", ["start", "stop", "restart", "ps"])
def test_a_word_of_other_tools_is_explained(cli: CommandLine, word: str) -> None:
    error = cli(word, "--json").envelope["error"]
    assert error["code"] == "USAGE"
    assert "clawbus" in error["message"]
    assert "Did you mean" not in error["message"]


@pytest.mark.parametrize(
    "words",
    [
        ("",),
        ("run", ""),
        ("run", "show", ""),
        ("run", "list", "--session", ""),
        ("session", "show", ""),
        ("session", "show", "echo", ""),
        ("session", "kill", ""),
        ("session", "show", "echo", "s", "--message", " "),
        ("message", "cancel", ""),
        ("message", "retry", "", "--session", "echo/s"),
        ("dead", "show", ""),
        ("dead", "requeue", "a", ""),
        ("dead", "drop", ""),
        ("dead", "requeue", "--all", "--code", ""),
        ("delivery", "drop", ""),
        ("mailbox", ""),
        ("send", "x", "-a", "", "-s", "s"),
        ("send", "x", "-a", "echo", "-s", "s", "--id", ""),
        ("logs", "--message", ""),
    ],
)
def test_an_empty_word_is_wrong_usage(cli: CommandLine, words: tuple[str, ...]) -> None:
    answer = cli(*words, "--json")
    assert (answer.code, answer.envelope["error"]["code"]) == (2, "USAGE")
    assert "empty" in answer.envelope["error"]["message"]
