"""The command line as a whole: usage errors, exit codes, global options in both places, help, start-up cost."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.envelope import Outcome, to_json
from daemon.cli.main import command_tree, main
from daemon.cli.present import age, when
from daemon.core.printable import clean, one_line
from schema.migrate import VERSION
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations

HEAVY = (
    "docker",
    "uvicorn",
    "starlette",
    "httpx",
    "structlog",
    "anyio",
    "prometheus_client",
    "watchfiles",
    "pygments",
    "container_runner",
)
COMMAND = [sys.executable, "-m", "daemon.cli"]


def commands() -> Iterator[tuple[str, Any]]:
    """(path, command) of every leaf."""
    root: Any = command_tree()
    for name, command in root.commands.items():
        children = getattr(command, "commands", None)
        if children is None:
            yield name, command
        else:
            yield from ((f"{name} {child}", leaf) for child, leaf in children.items())


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_every_help_has_a_use_and_an_example(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Use it " in text
    assert "Example:" in text
    assert f"clawbus {path}" in text.split("Example:")[1]


def test_the_root_s_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "Example:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sned",), "sned"),
        (("send",), "TEXT"),
        (("send", "x"), "--session"),
        (("send", "x", "--session", "s"), "--agent"),
        (("send", "x", "--agent", "a", "--session", "s", "--wait", "soon"), "--wait"),
        (("send", "x", "--agent", "a", "--session", "s", "--wait", "-1"), "--wait"),
        (("mailbox", "--limit", "0"), "--limit"),
        (("session", "show", "echo"), "AGENT/SESSION"),
        (("status", "--typo"), "--typo"),
        (("status", "extra"), "extra"),
        (("init", "--runtime", "lxc"), "lxc"),
    ],
)
def test_wrong_usage_is_an_envelope_with_code_2(cli: CommandLine, arguments: tuple[str, ...], says: str) -> None:
    answer = cli(*arguments)
    assert (answer.code, answer.envelope["error"]["code"]) == (2, "USAGE")
    assert says in answer.envelope["error"]["message"]


def test_wrong_usage_for_people_goes_to_standard_error(cli: CommandLine) -> None:
    answer = cli("status", "--typo", "--pretty")
    assert (answer.code, answer.out) == (2, "")
    assert "--typo" in answer.err
    assert "--help" in answer.err


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (("session", "show", "echo", "-100123"), "clawbus session show -- echo -100123"),
        (("session", "show", "echo", "-some chat"), "clawbus session show -- echo '-some chat'"),
        (("session", "show", "echo", "-100123", "--json"), "clawbus session show -- echo -100123"),
        (("session", "kill", "echo", "-100123", "--reason", "x"), "clawbus session kill [OPTIONS] -- NAME ..."),
    ],
)
def test_a_name_that_begins_with_a_minus_is_taken_for_an_option_and_the_way_out_is_named(
    cli: CommandLine, arguments: tuple[str, ...], instead: str
) -> None:
    refused = cli(*arguments).envelope
    assert refused["error"]["code"] == "USAGE"
    assert f"`{instead}`" in refused["fix"]
    assert refused["next_actions"][0]["command"] == instead
    if "OPTIONS" not in instead:
        said = cli(*shlex.split(instead)[1:]).envelope["error"]
        assert said["code"] != "USAGE", said
    assert "`--`" not in cli("session", "show", "echo", "s", "-x").envelope["fix"]


def test_a_flag_s_look_alike_after_the_dashes_is_text(cli: CommandLine) -> None:
    assert cli("--pretty", "status", "--", "--json").out == ""


@pytest.mark.parametrize("after", [False, True])
def test_global_options_work_on_both_sides(home: Path, capfd: pytest.CaptureFixture[str], *, after: bool) -> None:
    other = home / "other"
    other.mkdir()
    (other / "c.toml").write_text("[agents.elsewhere]\n")
    options = ["--config", str(other / "c.toml"), "--data", str(other), "--json"]
    code = main(["config", "check", *options] if after else [*options, "config", "check"])
    result = json.loads(capfd.readouterr().out)["result"]
    assert code == 0
    assert (result["agents"], result["data_dir"]) == ({"elsewhere": "echo"}, str(other))


def test_the_option_after_the_command_wins(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--data", "/one", "config", "check", "--data", "/two", "--pretty"]) == 0
    assert "/two" in capfd.readouterr().out


def test_next_actions_lead_to_the_same_place(cli: CommandLine, home: Path) -> None:
    given = home / "with space.toml"
    given.write_text("")
    commands = [
        one["command"]
        for one in cli("--config", str(given), "--data", "d", "send", "x", "-a", "a", "-s", "s").envelope[
            "next_actions"
        ]
    ]
    assert commands[0] == f"clawbus --config '{given}' --data d serve"
    assert cli("send", "x", "-a", "a", "-s", "s").envelope["next_actions"][0]["command"] == "clawbus serve"


def test_the_environment_names_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "named.toml").write_text("[agents.named]\n")
    monkeypatch.setenv("CLAWBUS_CONFIG", str(home / "named.toml"))
    assert main(["config", "check", "--json"]) == 0
    assert "named" in json.loads(capfd.readouterr().out)["result"]["agents"]


class TestUnexpected:
    @pytest.fixture(autouse=True)
    def _bug(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def bug(*_: object) -> Outcome:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr("daemon.api.client.ControlClient.__enter__", bug)

    def test_a_bug_is_internal_without_traceback(self, cli: CommandLine) -> None:
        answer = cli("status")
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "INTERNAL")
        assert "Traceback" not in answer.out + answer.err

    def test_debug_shows_it(self, cli: CommandLine) -> None:
        answer = cli("status", "--debug")
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "INTERNAL")
        assert "Traceback" in answer.err
        assert "ZeroDivisionError: a bug" in answer.err


def test_an_interrupt_is_130_and_quiet(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("daemon.api.client.ControlClient.__enter__", interrupted)
    answer = cli("status")
    assert (answer.code, answer.out, answer.err) == (130, "", "")


def test_following_is_interrupted_by_ctrl_c(home: Path, operations: FakeOperations) -> None:
    """A real process: one JSON line an entry, then Ctrl-C."""
    arguments = [*COMMAND, "mailbox", "--follow", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        _deliver(operations)
        assert json.loads(process.stdout.readline())["text"] == "hi"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def _deliver(operations: FakeOperations) -> None:
    from daemon.channels.protocol import Incoming  # noqa: PLC0415
    from schema.rows import Address  # noqa: PLC0415

    operations.answer(Incoming("echo", "s", "hi", "m1", address=Address("local", "cli")), {"text": "hi"})


def test_a_reader_that_goes_is_no_traceback(home: Path) -> None:
    log = home / "data" / "logs" / "clawbus.log"
    log.parent.mkdir()
    log.write_text('{"event": "x"}\n' * 50_000)
    pipe_in, pipe_out = os.pipe()
    os.close(pipe_in)
    done = subprocess.run(
        [*COMMAND, "logs", "--raw", "-n", "50000"], stdout=pipe_out, stderr=subprocess.PIPE, check=False, timeout=120
    )
    os.close(pipe_out)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (
            ["--help"],
            (*HEAVY, "pydantic", "rich.console", "importlib.metadata", "daemon.cli.status", "daemon.core.facts"),
        ),
        (["version", "--json"], (*HEAVY, "rich.console", "daemon.core.facts")),
        (["help", "session"], (*HEAVY, "rich.console")),
        (
            ["send", "x", "--agent", "a", "--session", "s", "--json"],
            (*HEAVY, "rich.console", "daemon.inspect.session_report"),
        ),
        (["status", "--json"], (*HEAVY, "rich.console", "daemon.inspect.doctor", "daemon.runtimes.docker")),
        (["session", "list", "--json"], (*HEAVY, "rich.console", "daemon.inspect.doctor")),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_start_up_imports_no_more_than_it_needs(home: Path, arguments: list[str], banned: tuple[str, ...]) -> None:
    assert _imported(arguments, banned) == "[]"


def _imported(arguments: list[str], banned: tuple[str, ...]) -> str:
    script = (
        "import sys; from daemon.cli import patience; patience._BEGIN_S = 0.0;"
        "from daemon.cli.main import main; main(sys.argv[1:]);"
        f"print(sorted(set({banned!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (["status"], ("daemon.core.verb", "daemon.store.mailbox")),
        (["send", "x", "-s", "echo/s"], ("daemon.core.verb", "daemon.store.mailbox")),
        (["send", "x", "-s", "echo/s", "--wait", "5"], ("daemon.core.verb",)),
        (["session", "list"], ("daemon.inspect.session_report",)),
    ],
    ids=lambda value: " ".join(value[:2] + value[4:5]) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("operations")
def test_what_a_running_daemon_answers_needs_neither_the_whole_configuration_nor_the_files(
    arguments: list[str], banned: tuple[str, ...]
) -> None:
    heavy = (*HEAVY, "pydantic_settings", "daemon.config.models", "daemon.inspect.doctor")
    assert _imported(arguments, (*heavy, *banned)) == "[]"


def test_version(cli: CommandLine) -> None:
    assert cli("version").result["schema"] == VERSION
    assert cli("version", "--pretty").out.startswith("clawbus ")


class TestText:
    @pytest.mark.parametrize(
        ("raw", "shown"),
        [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07x", "x"),
            ("\x1b]8;;http://x\x1b\\link", "link"),
            ("\x1bPq#0\x1b\\x", "x"),
            ("\x9b31mx", "x"),
            ("\x1bcx", "x"),
            ("a\x1b", "a\\x1b"),
            ("\x1b]unfinished", "unfinished"),
            ("bell\x07 back\x08 cr\r del\x7f c1\x85", "bell\\x07 back\\x08 cr\\x0d del\\x7f c1\\x85"),
            ("\u202egnp.exe", "\\u202egnp.exe"),
            ("\ud800", "\\ud800"),
            ("\x1b\x1b[31m[31m", "\\x1b[31m"),
        ],
    )
    def test_nothing_drives_the_terminal(self, raw: str, shown: str) -> None:
        assert clean(raw) == shown
        assert one_line(raw) == shown.replace("\t", "\\t").replace("\n", "\\n")

    def test_json_on_a_terminal_is_as_safe(self) -> None:
        text = to_json({"a": "\x1b\x7f\x9b\u202e\u2028\ud800 \u00e9"})
        assert text.isascii() or not set(text) & set("\x1b\x7f\x9b\u202e\u2028")
        assert json.loads(text) == {"a": "\x1b\x7f\x9b\u202e\u2028\ud800 \u00e9"}

    def test_times_have_their_age(self) -> None:
        now = 1_763_000_000_000
        assert when(now - 180_000, now).endswith("(3 min ago)")
        assert when(now + 7_200_000, now).endswith("(in 2 h)")
        assert when(None, now) == "-"
        assert when(10**30, now) == str(10**30)
        assert (age(None), age(5), age(-5), age(90_000_000)) == ("-", "5 ms", "0 ms", "1 d")
