"""A broken configuration is one of doctor's findings, and the data folder is examined all the same."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine
from tests.support.session_world import SessionWorld

GOOD = 'data_dir = "data"\n[runtime]\nkind = "process"\n[agents.echo]\n'
BROKEN = {
    "no TOML": (GOOD + "[agents.x\n", "is not TOML", "Not used: the whole file"),
    "an unknown key": (GOOD + "colour = 1\n", "agents.echo.colour: unknown key", "Not used: agents.echo"),
    "an unknown table": (GOOD + "[nothing]\nx = 1\n", "nothing: unknown key", "Not used: nothing"),
    "a wrong value": (GOOD.replace('"process"', '"lxc"'), "runtime.kind", "Not used: runtime"),
    "what the checks of all tables refuse": (GOOD + "memory_bytes = 1\n", "memory_bytes", "Not used: agents.echo"),
}


@pytest.fixture
def waiting(home: Path) -> None:
    """A session with a message that waits, in the folder that the configuration names."""
    SessionWorld(home / "data" / "sessions" / "echo" / "s").accept("m1")
    (home / "data" / "clawbus.version").write_text("1\n")


def examine(cli: CommandLine, *options: str) -> dict[str, Any]:
    answer = cli("doctor", *options)
    assert answer.code == 1
    result: dict[str, Any] = answer.envelope["result"]
    return result


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("how", BROKEN)
def test_the_fault_is_the_first_finding_and_the_sessions_are_examined(cli: CommandLine, home: Path, how: str) -> None:
    text, why, unseen = BROKEN[how]
    (home / "clawbus.toml").write_text(text)
    result = examine(cli)
    first = result["findings"][0]
    assert (first["code"], first["command"].split()[-2:]) == ("CONFIG_INVALID", ["config", "check"])
    assert why in first["evidence"][0]
    assert f"Examined: {home / 'data'}. {unseen}" in first["evidence"][1]
    assert result["examined"]["sessions"] == 1
    assert "DAEMON_DOWN" in [one["code"] for one in first["consequences"]], "a start would fail for the same reason"
    codes = {one["code"] for one in result["diagnoses"]}
    assert "RUNTIME_UNAVAILABLE" not in codes, "where agents run may be unknown; nothing is blamed for it"


@pytest.mark.usefixtures("waiting")
def test_the_folder_of_the_command_line_is_examined(cli: CommandLine, home: Path) -> None:
    (home / "clawbus.toml").write_text('data_dir = "elsewhere\n')
    assert examine(cli, "--data", str(home / "data"))["examined"]["sessions"] == 1


@pytest.mark.usefixtures("waiting")
def test_a_variable_that_is_no_value_of_its_key(cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAWBUS_AGENTS", "{")
    result = examine(cli)
    assert result["findings"][0]["code"] == "CONFIG_INVALID"
    assert "Not used: everything but the data folder" in result["findings"][0]["evidence"][1]
    assert result["examined"]["sessions"] == 1


def test_a_good_configuration_ends_the_finding(cli: CommandLine, home: Path) -> None:
    (home / "clawbus.toml").write_text(GOOD + "colour = 1\n")
    assert "CONFIG_INVALID" in {one["code"] for one in examine(cli)["diagnoses"]}
    (home / "clawbus.toml").write_text(GOOD)
    assert "CONFIG_INVALID" not in {one["code"] for one in cli("doctor").envelope["result"]["diagnoses"]}
