"""Which Podman is meant, and the command that starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from docker.api.client import APIClient

from daemon.core.errors import RuntimeUnavailableError
from daemon.runtimes.docker_client import DockerClient
from daemon.runtimes.docker_podman import PodmanAPI, resolve


@pytest.mark.parametrize(
    ("configured", "environ", "uid", "expected"),
    [
        ("unix:///x/p.sock", {"CONTAINER_HOST": "unix:///y.sock"}, 1000, ("unix:///x/p.sock", "podman.host")),
        ("", {"CONTAINER_HOST": "unix:///y.sock"}, 0, ("unix:///y.sock", "CONTAINER_HOST")),
        ("", {"XDG_RUNTIME_DIR": "/run/user/0"}, 0, ("unix:///run/podman/podman.sock", "the default")),
    ],
)
def test_an_address_is_the_first_that_is_named(
    configured: str, environ: dict[str, str], uid: int, expected: tuple[str, str]
) -> None:
    host = resolve(configured, environ, uid)
    assert (host.url, host.source, host.engine) == (*expected, "Podman")


def test_a_users_own_service_comes_before_the_machines(tmp_path: Path) -> None:
    own = tmp_path / "podman" / "podman.sock"
    own.parent.mkdir()
    own.touch()
    assert resolve("", {"XDG_RUNTIME_DIR": str(tmp_path)}, 1000).url == f"unix://{own}"


@pytest.mark.parametrize(
    ("url", "booted", "command"),
    [
        ("unix:///run/podman/podman.sock", True, "systemctl start podman.socket"),
        ("unix:///run/user/1000/podman/podman.sock", True, "systemctl --user start podman.socket"),
        (
            "unix:///run/podman/podman.sock",
            False,
            "mkdir -p /run/podman && nohup podman system service --time=0 unix:///run/podman/podman.sock >/dev/null 2>&1 &",
        ),
        (
            "unix:///a b/p.sock",
            True,
            "mkdir -p '/a b' && nohup podman system service --time=0 'unix:///a b/p.sock' >/dev/null 2>&1 &",
        ),
        ("tcp://10.0.0.1:8080", True, "podman system connection list"),
    ],
)
def test_the_command_starts_the_service_at_this_address(url: str, booted: bool, command: str, tmp_path: Path) -> None:
    folder = tmp_path if booted else tmp_path / "none"
    assert resolve(url, {}, 1000, booted=str(folder)).start == command


def test_a_missing_socket_is_podmans_with_its_command(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/podman.sock"
    client = DockerClient(base_url=url, timeout_s=1.0, engine="podman")
    with pytest.raises(RuntimeUnavailableError, match="Podman does not answer") as caught:
        client.call(lambda api: api.ping())
    assert caught.value.command == resolve(url, {}, 1000).start
    assert "podman.host" in caught.value.hint


@pytest.mark.parametrize("rootless", [True, False])
def test_a_users_own_podman_keeps_the_users_number(
    rootless: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the container's user is another one outside, who may not write to the session's files."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(APIClient, "info", lambda _: {"Rootless": rootless})
    monkeypatch.setattr(APIClient, "create_container_from_config", lambda _, config: asked.append(config))
    api = PodmanAPI(base_url=f"unix://{tmp_path}/none.sock", version="1.41")
    try:
        api.create_container_from_config({"HostConfig": {"NetworkMode": "none"}})
    finally:
        api.close()
    assert asked == [{"HostConfig": {"NetworkMode": "none", **({"UsernsMode": "keep-id"} if rootless else {})}}]
