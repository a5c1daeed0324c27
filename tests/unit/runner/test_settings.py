"""What a runner is told, and how it refuses what it cannot use."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import pytest

from container_runner.providers import PROVIDERS
from container_runner.settings import read_environment
from container_runner.shared.errors import SettingsError
from schema.rows import RunnerSettings

GOOD: Final = {"CLAWBUS_INCARNATION": "I1", "CLAWBUS_RUNNER": "{}"}


def read(environ: dict[str, str]) -> Any:
    return read_environment(environ, tuple(PROVIDERS))


def test_defaults_are_the_containers_own_paths() -> None:
    found = read(GOOD)
    assert found.settings == RunnerSettings()
    assert (found.in_folder, found.out_folder) == (Path("/workspace/in"), Path("/workspace/out"))
    assert found.agent_folder == Path("/workspace/agent")


def test_what_the_daemon_writes_is_what_the_runner_reads() -> None:
    told = RunnerSettings(provider="command", command=("sh", "-c", "x"), timeout_s=1.5, max_batch=3)
    environ = {
        **GOOD,
        "CLAWBUS_RUNNER": json.dumps(dataclasses.asdict(told)),
        "CLAWBUS_IN": "/x",
        "CLAWBUS_AGENT_NAME": "a",
    }
    found = read(environ)
    assert found.settings == told
    assert (found.in_folder, found.agent, found.session) == (Path("/x"), "a", "")


def test_a_whole_number_of_seconds_is_a_number() -> None:
    assert read({**GOOD, "CLAWBUS_RUNNER": '{"timeout_s": 5}'}).settings.timeout_s == 5.0


@pytest.mark.parametrize("incarnation", ["", "../x", "a b", "x" * 500])
def test_an_incarnation_is_needed(incarnation: str) -> None:
    with pytest.raises(SettingsError, match="CLAWBUS_INCARNATION"):
        read({**GOOD, "CLAWBUS_INCARNATION": incarnation})


def test_settings_are_needed() -> None:
    with pytest.raises(SettingsError, match="CLAWBUS_RUNNER is not set"):
        read({"CLAWBUS_INCARNATION": "I1"})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ('{"provder": "echo"}', "'provder'"),
        ('{"provider": "gpt"}', "'gpt'"),
        ('{"provider": 7}', "provider"),
        ('{"provider": "command"}', "`command`"),
        ('{"provider": "command", "command": "ls"}', "list"),
        ('{"provider": "command", "command": ["l\\u0000s"]}', "NUL"),
        ('{"provider": "command", "command": [1]}', "list"),
        ('{"timeout_s": 0}', "timeout_s"),
        ('{"timeout_s": NaN}', "timeout_s"),
        ('{"timeout_s": Infinity}', "timeout_s"),
        ('{"timeout_s": true}', "timeout_s"),
        ('{"timeout_s": 1' + "0" * 400 + "}", "timeout_s is too large"),
        ('{"max_batch": 0}', "max_batch"),
        ('{"max_batch": 1.5}', "max_batch"),
        ('{"max_batch": true}', "max_batch"),
        ('{"grace_s": -1}', "grace_s"),
        ('{"log_level": "loud"}', "log_level"),
    ],
)
def test_wrong_settings_are_named(text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        read({**GOOD, "CLAWBUS_RUNNER": text})
