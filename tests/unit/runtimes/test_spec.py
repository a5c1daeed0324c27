"""build_spec is pure: the same input, the same spec; the fingerprint sees everything but the incarnation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from container_runner.providers.program import program_environment
from daemon.core.errors import ConfigError
from daemon.runtimes.protocol import ContainerSpec, Limits
from daemon.runtimes.spec import LABEL_INCARNATION, build_spec, container_name, labels
from schema.layout import SessionFolder
from schema.rows import RunnerSettings

INSTALL = "01J0000000ABCDEFGHJKMNPQRS"


def make(**changes: Any) -> ContainerSpec:
    """A spec that differs from the standard one in `changes`."""
    arguments: dict[str, Any] = {
        "install_id": INSTALL,
        "agent": "helper",
        "session": "main",
        "incarnation": "01J1",
        "runner": RunnerSettings(provider="command", command=("cat", "-")),
        "agent_env": {"TOKEN": "t"},
        "image": "clawbus-runner:latest",
        "image_digest": "d1",
        "network": "none",
        "limits": Limits(memory_bytes=64 * 1024**2, cpus=0.5, pids=64),
        "user": "1000:1000",
        "folder": SessionFolder(Path("/data/sessions/helper/main")),
        "agent_folder": Path("/data/agents/helper"),
    }
    return build_spec(**{**arguments, **changes})


def test_the_mounts_are_the_contracts() -> None:
    seen = [(str(m.source), m.target, m.read_only) for m in make().mounts]
    assert seen == [
        ("/data/sessions/helper/main/in", "/workspace/in", True),
        ("/data/sessions/helper/main/out", "/workspace/out", False),
        ("/data/agents/helper", "/workspace/agent", False),
        ("/data/sessions/helper/main/home", "/workspace/home", False),
    ]


def test_the_environment_carries_the_runners_settings_and_the_agents_own() -> None:
    environment = make().environment
    settings = json.loads(environment["CLAWBUS_RUNNER"])
    given: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in settings.items()}
    assert RunnerSettings(**given) == RunnerSettings(provider="command", command=("cat", "-"))
    assert environment["CLAWBUS_INCARNATION"] == "01J1"
    assert (environment["CLAWBUS_AGENT_NAME"], environment["CLAWBUS_SESSION_NAME"]) == ("helper", "main")
    assert environment["TOKEN"] == "t"


def test_the_incarnation_is_not_in_the_fingerprint_nor_in_the_name() -> None:
    first, second = make(incarnation="01J1"), make(incarnation="01J2")
    assert (first.fingerprint, first.name) == (second.fingerprint, second.name)
    assert labels(first)[LABEL_INCARNATION] != labels(second)[LABEL_INCARNATION]


def test_a_library_for_the_program_is_not_loaded_by_our_runner() -> None:
    """It could stop the runner, or give it another time than the host's."""
    given = {"LD_PRELOAD": "/workspace/agent/time.so", "TOKEN": "t"}
    environment = make(agent_env=given).environment
    assert "LD_PRELOAD" not in environment
    assert given.items() <= program_environment(environment, "/opt/clawbus/venv").items()
    assert given.items() <= make(agent_env=given, own_runner=("/own",)).environment.items()


def test_the_fingerprint_does_not_depend_on_the_order_of_the_environment() -> None:
    assert make(agent_env={"A": "1", "B": "2"}).fingerprint == make(agent_env={"B": "2", "A": "1"}).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"install_id": "another"},
        {"agent": "other"},
        {"session": "other"},
        {"runner": RunnerSettings()},
        {"agent_env": {"TOKEN": "u"}},
        {"image": "other:1"},
        {"image_digest": "d2"},
        {"network": "bridge"},
        {"limits": Limits(memory_bytes=64 * 1024**2, cpus=0.5, pids=65)},
        {"user": "1000:1001"},
        {"folder": SessionFolder(Path("/elsewhere"))},
        {"agent_folder": Path("/elsewhere")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_else_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    assert make(**change).fingerprint != make().fingerprint


@pytest.mark.parametrize("key", ["CLAWBUS_INCARNATION", "CLAWBUS_OUT", "clawbus_runner", "A=B", "", "1A", "A\n"])
def test_an_agents_environment_may_not_reach_for_the_daemons(key: str) -> None:
    with pytest.raises(ConfigError, match=r"agents\.helper\.env\."):
        make(agent_env={key: "x"})


def test_a_value_with_nul_is_refused() -> None:
    with pytest.raises(ConfigError):
        make(agent_env={"A": "x\0y"})


def test_a_name_is_bounded_valid_for_docker_and_unique_by_session() -> None:
    long = "a" * 64
    names = {
        container_name(install, agent, session)
        for install in (INSTALL, INSTALL[:-1] + "T", "we/ird id")
        for agent in (long, long[:-1] + "b", "a", "A", "a-b")
        for session in (long, long[:-1] + "b", "c", "b-c")
    }
    assert len(names) == 3 * 5 * 4
    assert all(len(name) <= 88 and re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name) for name in names)


def test_a_name_can_be_read() -> None:
    assert re.fullmatch(r"clawbus-jkmnpqrs-helper-main-[0-9a-f]{12}", make().name)
