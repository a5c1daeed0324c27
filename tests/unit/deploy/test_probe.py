"""The configuration of a deploy's probe: the engine is this host's, whichever it is."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from daemon.config.loading import load_config
from daemon.deploy.probe import configuration


@pytest.mark.parametrize(
    ("kind", "table", "host"),
    [("docker", "docker", "unix:///x/docker.sock"), ("podman", "podman", "unix:///x/podman.sock")],
)
def test_the_probe_asks_the_same_engine(kind: str, table: str, host: str, tmp_path: Path) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text(f'[runtime]\nkind = "{kind}"\n[{table}]\nhost = "{host}"\n', encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(configuration(load_config(path), tmp_path))
    assert found["runtime"]["kind"] == kind
    assert found[table]["host"] == host
