"""What becomes of a report that cannot be printed as it is: the exit code is the deed's, and no traceback is shown."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations

COMMAND: Final = [sys.executable, "-m", "daemon.cli"]
TO_ECHO: Final = ("--agent", "echo", "--session", "s")
TEXT: Final = "snow \u2603, \u00e9, \U0001f600"
ENVIRONMENTS: Final[dict[str, dict[str, str]]] = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "cp437": {"PYTHONIOENCODING": "cp437"},
    "C locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def run(*arguments: str | bytes, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[bytes]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **(env or {})}, check=False, timeout=120, **streams
    )  # fmt: skip


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_answer_that_the_encoding_cannot_show_is_escaped(home: Path, operations: FakeOperations, name: str) -> None:
    env = ENVIRONMENTS[name]
    for number, arguments in enumerate((("send", TEXT, *TO_ECHO, "--wait", "60"), ("mailbox",))):
        done = run(*arguments, "--json", env=env)
        assert (done.returncode, done.stderr) == (0, b"")
        result = json.loads(done.stdout)["result"]
        assert (result["answer"] if number == 0 else result["entries"][0])["text"] == TEXT
        shown = run(*arguments, "--pretty", env=env)
        assert shown.returncode == 0
        assert b"snow " in shown.stdout
        assert b"Traceback" not in shown.stderr
    assert {json.dumps(one.content) for one in operations.received} == {json.dumps({"text": TEXT})}


@pytest.mark.parametrize("form", ["--json", "--pretty"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("session", "list"), ("session", "show", "echo", "s"), ("dead", "list"), ("logs",), ("logs", "--raw"),
        ("config", "check"), ("version",), ("--help",), ("send", "--help"), ("top", "--once"),
    ],
)  # fmt: skip
def test_every_command_ends_alike_in_every_encoding(
    home: Path, operations: FakeOperations, arguments: tuple[str, ...], form: str
) -> None:
    (home / "clawbus.toml").write_text(
        'data_dir = "d\u00e4ta \u2603"\n[control]\nsocket = "data/control.sock"\n[agents.echo]\n', encoding="utf-8"
    )
    log = home / "d\u00e4ta \u2603" / "logs" / "clawbus.log"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"event": "x", "text": TEXT}) + "\n", encoding="utf-8")
    codes = {}
    for encoding in ("utf-8", "ascii"):
        done = run(*arguments, *(() if "--help" in arguments else (form,)), env={"PYTHONIOENCODING": encoding})
        assert b"Traceback" not in done.stderr
        codes[encoding] = (done.returncode, done.stderr)
    assert codes["utf-8"][0] == codes["ascii"][0], codes


@pytest.mark.parametrize("form", ["--json", "--pretty"])
def test_a_reader_that_is_gone_changes_no_exit_code(home: Path, operations: FakeOperations, form: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("send", "x", *TO_ECHO, "--id", "m1", "--wait", "60", form, stdout=writer)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    failed = run("send", "x", "--agent", "nobody", "--session", "s", form, stdout=writer)
    os.close(writer)
    assert failed.returncode == 1
    assert [one.message_id for one in operations.received] == ["m1"]


@pytest.mark.parametrize("form", ["--json", "--pretty"])
@pytest.mark.parametrize("lost", ["> /dev/full", ">&-"])
def test_a_report_that_cannot_be_written_says_that_the_deed_is_done(
    home: Path, operations: FakeOperations, form: str, lost: str
) -> None:
    script = f'exec "$@" {lost}'
    send = [*COMMAND, "send", "x", *TO_ECHO, "--id", "m1", "--wait", "60", form]
    done = subprocess.run(["/bin/sh", "-c", script, "sh", *send], stderr=subprocess.PIPE, check=False, timeout=120)
    assert done.returncode == 74
    [line] = [one for one in done.stderr.decode().splitlines() if one.startswith("error: ")]
    assert "standard output cannot be written" in line
    assert '"message_id": "m1"' in line
    refused = [*COMMAND, "send", "x", "--agent", "nobody", "--session", "s", form]
    done = subprocess.run(["/bin/sh", "-c", script, "sh", *refused], stderr=subprocess.PIPE, check=False, timeout=120)
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [("--help",), ("send", "--help"), ("version",), ("logs", "--raw")])
def test_help_and_raw_output_too(home: Path, arguments: tuple[str, ...]) -> None:
    log = home / "data" / "logs" / "clawbus.log"
    log.parent.mkdir()
    log.write_text('{"event": "x"}\n')
    with Path("/dev/full").open("wb") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 74
    assert done.stderr.startswith(b"error: standard output cannot be written")
    assert done.stderr.count(b"\n") == 1


def test_a_stream_that_cannot_be_written_ends_and_says_so(home: Path, operations: FakeOperations) -> None:
    assert run("send", "x", *TO_ECHO).returncode == 0
    for form in ("--json", "--pretty"):
        with Path("/dev/full").open("wb") as full:
            done = run("mailbox", "--follow", form, stdout=full)
        assert done.returncode == 74
        assert done.stderr.decode().count("standard output cannot be written") == 1


def test_standard_error_that_cannot_be_written_changes_nothing(home: Path, operations: FakeOperations) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run("send", "x", *TO_ECHO, "--wait", "60", "--pretty", stderr=full)
    assert (done.returncode, done.stdout) == (0, b"x\n")


def test_an_argument_that_is_not_utf8_is_a_usage_error(home: Path, operations: FakeOperations) -> None:
    for arguments in (
        (b"caf\xe9", *TO_ECHO),
        ("x", "--agent", "echo", "--session", b"\xff"),
        ("x", *TO_ECHO, "--id", b"\xfe"),
    ):
        done = run("send", *arguments, "--json")
        assert done.returncode == 2
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "USAGE"
        assert "UTF-8" in error["message"]
        assert "udc" not in error["message"], "the bytes are shown, and not what Python keeps for them"
        assert re.search(r"\\x(e9|ff|fe)' are not UTF-8 text", error["message"])
    assert operations.received == []


def test_a_path_may_be_any_bytes(home: Path) -> None:
    place = home / os.fsdecode(b"caf\xe9")
    place.mkdir()
    (home / "clawbus.toml").rename(place / "c.toml")
    done = run("config", "check", "--config", bytes(place / "c.toml"), "--json")
    assert done.returncode == 0, done.stdout


def test_a_file_that_cannot_be_read_is_not_taken_for_the_output(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere/file")

    monkeypatch.setattr("daemon.api.client.ControlClient.__enter__", refused)
    for options in ((), ("--debug",)):
        answer = cli("status", *options)
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "FILE_ACCESS")
        assert answer.envelope["error"]["message"] == "/somewhere/file: Permission denied."
        assert "report" not in answer.envelope["fix"]
        assert ("Traceback" in answer.err) == bool(options)
