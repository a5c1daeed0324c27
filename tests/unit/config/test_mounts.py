"""What an agent's table may mount: never what gives a container control of the host, and never over its own folders."""

from pathlib import Path

import pytest

from daemon.config.loading import load_config
from daemon.core.errors import ConfigError


def faults(tmp_path: Path, table: str, top: str = "", kind: str = "docker") -> str:
    path = tmp_path / "clawbus.toml"
    path.write_text(
        f'data_dir = "{tmp_path}/data"\n{top}\n[runtime]\nkind = "{kind}"\n[agents.a]\n{table}', encoding="utf-8"
    )
    try:
        load_config(path)
    except ConfigError as error:
        return str(error)
    return ""


def mount(source: str, target: str = "/repo") -> str:
    return f'[[agents.a.mounts]]\nsource = "{source}"\ntarget = "{target}"\n'


@pytest.mark.parametrize("target", ["/repo", "/workspace/repo", "/srv/a/b", "/home/agent", "/run/cache", "/etc/git"])
def test_a_folder_of_the_host_may_be_mounted_beside_our_own(tmp_path: Path, target: str) -> None:
    assert faults(tmp_path, mount("/srv/repo", target)) == ""


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("repo", "absolute"),
        ("/", "data folder"),
        ("{tmp}", "data folder"),
        ("{tmp}/data/sessions/a", "data folder"),
        ("{tmp}/link", "data folder"),
        ("/var/run/docker.sock", "engine's socket"),
        ("/run/user/1000/docker.sock", "engine's socket"),
        ("/run", "socket"),
        ("{tmp}/engine/own.sock", "socket"),
        ("{tmp}/engine", "socket"),
    ],
)
def test_what_would_hand_over_the_host_is_refused_by_its_key(tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    top = f'[docker]\nhost = "unix://{tmp_path}/engine/own.sock"\n'
    said = faults(tmp_path, mount(source.format(tmp=tmp_path)), top)
    assert "agents.a.mounts[0].source" in said
    assert why in said


@pytest.mark.parametrize(
    "target",
    ["repo", "/", "/workspace", "/workspace/home/x", "/workspace/agent", "/run/secrets/x", "/run", "/etc", "/etc/passwd",
     "/tmp/x", "/dev/shm", "/a/../b", "/a//b", "//tmp", "//workspace/in", "//", "/a//"],
)  # fmt: skip
def test_a_target_over_or_in_our_own_is_refused(tmp_path: Path, target: str) -> None:
    assert "agents.a.mounts[0].target" in faults(tmp_path, mount("/srv/repo", target))


def test_a_second_mount_on_one_target_and_mounts_of_processes_are_refused(tmp_path: Path) -> None:
    assert "mounts[1].target: is the target of an earlier" in faults(tmp_path, mount("/srv/a") + mount("/srv/b"))
    assert "has no mounts" in faults(tmp_path, mount("/srv/a"), kind="process")


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ('secret_file = { KEY = "key" }', "agents.a.secret_file.KEY"),
        ('secret_file = { "a/b" = "/key" }', "agents.a.secret_file"),
        ('secret_file = { CLAWBUS_X = "/key" }', "agents.a.secret_file"),
        ('secret_file = { KEY = "/key" }\nenv = { KEY_FILE = "x" }', "agents.a.env.KEY_FILE"),
        ('env_file = "env"', "agents.a.env_file"),
    ],
)
def test_secrets_and_environment_files_are_refused_by_their_keys(tmp_path: Path, table: str, key: str) -> None:
    assert key in faults(tmp_path, table)
