"""Text is text in a pipe too; JSON is for who asks for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.cli.main import main

EVERY = (
    ("status",), ("top", "--once"), ("doctor",), ("session", "list"), ("run", "list"), ("dead", "list"), ("delivery", "list"),
    ("mailbox",), ("logs",), ("config", "check"), ("version",), ("image", "show"), ("install", "show"), ("sweep", "stale"),
    ("run", "show", "m1"), ("session", "show", "echo/s"), ("message", "cancel", "m1"), ("send", "x", "-a", "echo", "-s", "s"),
    ("nosuch",), ("session", "kill", "--all"), ("watch",), ("init",), ("dead", "show", "m1"), ("dead", "requeue", "m1"),
)  # fmt: skip


def is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_a_pipe_gets_text(home: Path, capfd: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    log = home / "data" / "logs" / "clawbus.log"
    log.parent.mkdir()
    log.write_text('{"event": "x"}\n', encoding="utf-8")
    main(list(command))
    out, err = capfd.readouterr()
    assert out or err
    assert not [line for line in out.splitlines() if is_json(line)]
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [("--json",), ("-o", "json"), ("-ojson",), ("--output", "json"), ("--output=json",)])
@pytest.mark.parametrize("command", [("version",), ("nosuch",), ("run", "list", "--limit", "0")])
def test_json_is_for_who_asks(
    home: Path, capfd: pytest.CaptureFixture[str], command: tuple[str, ...], words: tuple[str, ...]
) -> None:
    for given in ((*command, *words), (*words, *command)):
        code = main(list(given))
        envelope = json.loads(capfd.readouterr().out)
        assert envelope["ok"] is (code == 0), given


@pytest.mark.parametrize(
    ("named", "options", "wanted"),
    [
        ("json", (), True), ("text", (), False), ("wide", (), False), ("json", ("--no-json",), False),
        ("json", ("-o", "text"), False), ("text", ("--json",), True), ("wide", ("-o", "json"), True),
    ],
)  # fmt: skip
def test_the_environment_names_the_form_unless_an_option_does(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    named: str,
    options: tuple[str, ...],
    wanted: bool,
) -> None:
    monkeypatch.setenv("CLAWBUS_OUTPUT", named)
    for command in ("version", "nosuch"):
        main([command, *options])
        assert is_json(capfd.readouterr().out) is wanted


def test_a_form_that_does_not_exist_is_wrong_usage(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for given in (
        ["version", "-o", "yaml"],
        ["version", "--json", "-o", "wide"],
        ["version", "-o", "json", "--pretty"],
    ):
        assert main(given) == 2
    monkeypatch.setenv("CLAWBUS_OUTPUT", "yaml")
    capfd.readouterr()
    assert main(["version"]) == 2
    assert "CLAWBUS_OUTPUT" in capfd.readouterr().err


def test_the_environment_s_form_is_no_key_of_the_configuration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAWBUS_OUTPUT", "json")
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli", "config", "check"], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert is_json(done.stdout)
