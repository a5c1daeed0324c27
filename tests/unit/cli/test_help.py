"""The ways to the help and the version that other tools have taught people."""

import re
from typing import Any

import pytest

from daemon.cli.main import command_tree, main
from tests.support.command_line import CommandLine


def test_help_in_words_is_what_the_option_prints(cli: CommandLine, capfd: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("status",), ("session",), ("session", "show"), ("help",)):
        assert main([*words, "--help"]) == 0
        wanted = capfd.readouterr().out
        assert cli("help", *words, "--pretty").out == wanted, words
        assert cli("help", *words, "--json").result == {"help": wanted.removesuffix("\n")}, words


def test_a_command_that_help_does_not_find_is_wrong_usage_with_a_suggestion(cli: CommandLine) -> None:
    for words, meant in ((("statsu",), "status"), (("session", "shwo"), "'show'"), (("status", "x"), "")):
        answer = cli("help", *words)
        assert (answer.code, answer.envelope["error"]["code"]) == (2, "USAGE")
        assert meant in answer.envelope["error"]["message"]


def test_help_explains_an_error_code_also_one_of_the_containers_and_one_of_dead_letters(cli: CommandLine) -> None:
    answer = cli("help", "COMMAND_TIMEOUT")
    assert (answer.code, answer.result["code"]) == (0, "COMMAND_TIMEOUT")
    assert "timeout_s" in answer.result["what"]
    assert "timeout_s" in answer.result["hint"]
    assert "sweep.max_tries" in cli("help", "TRIES_EXHAUSTED").result["what"]
    shown = cli("help", "UNKNOWN_AGENT", "--pretty").out
    assert shown.startswith("UNKNOWN_AGENT: ")
    assert "\nfix: " in shown


def test_help_explains_a_log_event_and_a_word_that_is_code_and_event(cli: CommandLine) -> None:
    answer = cli("help", "container_stuck")
    assert (answer.code, answer.result["code"]) == (0, "container_stuck")
    assert "progress" in answer.result["what"]
    assert cli("help", "deploy.runtime.warm").code == 0
    assert "data_folder_lock_lost (log): " in cli("help", "data_folder_lock_retaken", "--pretty").out
    both = cli("help", "runtime_unavailable")
    assert both.result["code"] == "RUNTIME_UNAVAILABLE"
    assert both.result["what"] != both.result["log_event"]
    assert "'container_stuck'" in cli("help", "container_stukc").envelope["error"]["message"]


def test_an_error_code_that_does_not_exist_is_wrong_usage_with_a_suggestion(cli: CommandLine) -> None:
    answer = cli("help", "UNKNOWN_AGNET")
    assert (answer.code, answer.envelope["error"]["code"]) == (2, "USAGE")
    assert "UNKNOWN_AGENT" in answer.envelope["error"]["message"]


def test_the_command_alone_shows_the_help(cli: CommandLine) -> None:
    alone = cli("--pretty")
    assert (alone.code, alone.out) == (0, cli("help", "--pretty").out)
    assert cli().envelope["error"]["code"] == "USAGE", "a program that asks for JSON has forgotten something"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_an_option_too(cli: CommandLine, option: str) -> None:
    assert cli(option, "--pretty").out == cli("version", "--pretty").out
    assert cli(option).result == cli("version").result


@pytest.mark.parametrize("columns", ["60", "80"])
def test_the_list_of_commands_has_each_once_with_its_whole_sentence(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    tree: Any = command_tree()
    text = cli("help", "--pretty").out
    sections = re.split(r"^(\w+):$", text, flags=re.MULTILINE)
    listed = [
        name
        for title, body in zip(sections[1::2], sections[2::2], strict=True)
        if title != "Options"
        for name in re.findall(r"^  ([a-z]+)\b", body, re.MULTILINE)
    ]
    assert sorted(listed) == sorted(tree.commands)
    assert "..." not in text.split("Begin:")[1]
    assert all(len(line) <= int(columns) for line in text.split("Begin:")[1].splitlines())


def test_the_manual_page_has_every_command_and_no_line_of_a_text_is_a_request(cli: CommandLine) -> None:
    page = cli("help", "--man", "--pretty").out
    tree: Any = command_tree()
    for name, command in tree.commands.items():
        for path in (name, *(f"{name} {child}" for child in getattr(command, "commands", {}))):
            assert f'.SS "clawbus {path}"'.replace("-", "\\-") in page
    requests = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
    assert requests == {".TH", ".SH", ".SS", ".nf", ".fi"}
    assert "Use it in a bug report" in page
    assert "\\-\\-json" in page
