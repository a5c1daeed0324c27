"""Secrets, environment files and mounts of an agent's table, as they are when a container starts."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.config.agents import Agent, AgentMount
from daemon.config.models import Config
from daemon.core.errors import AgentFileError, EnvFileError, MountSourceError, SecretFileError
from daemon.runtimes.agent_files import environment_of, operator_mounts, secret_mounts, secret_variables
from schema.errors import StorageError

VALUE = "sk-very-secret"


def agent(path: Path) -> Agent:
    return Agent(secret_file={"KEY": str(path)})


def test_a_secret_is_mounted_and_its_place_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{VALUE}\n")
    key.chmod(0o400)
    me = os.getuid(), os.getgid()
    (found,) = secret_mounts("a", agent(key), me)
    assert (found.source, found.target, found.read_only) == (key, "/run/secrets/KEY", True)
    assert secret_variables("a", agent(key), mounted=True) == {"KEY_FILE": "/run/secrets/KEY"}
    assert secret_variables("a", agent(key), mounted=False) == {"KEY_FILE": str(key)}


def too_large(path: Path) -> None:
    path.write_text(VALUE * 10_000)


WRONG: dict[str, Callable[[Path], object]] = {
    "cannot be read": lambda path: path,
    "is empty": lambda path: path.write_text(" \n"),
    "not a regular file": os.mkfifo,
    "not a regular file ": lambda path: path.mkdir(),
    "more than": too_large,
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + VALUE.encode()),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_secret_that_cannot_be_used_says_which_and_why_and_never_its_value(tmp_path: Path, why: str) -> None:
    key = tmp_path / "key"
    WRONG[why](key)
    for judge in (
        lambda: secret_mounts("a", agent(key), (os.getuid(), os.getgid())),
        lambda: secret_variables("a", agent(key), mounted=False),
    ):
        with pytest.raises(SecretFileError, match=why.strip()) as caught:
            judge()
        assert "agents.a.secret_file.KEY" in str(caught.value)
        assert VALUE not in f"{caught.value} {caught.value.hint}"


def test_a_secret_that_the_containers_user_may_not_read_has_its_command(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(VALUE)
    key.chmod(0o600)
    with pytest.raises(SecretFileError, match="may not read") as caught:
        secret_mounts("a", agent(key), (4711, 4712))
    assert f"`chgrp 4712 {key} && chmod 640 {key}`" in str(caught.value)
    if os.getuid() == 0:
        subprocess.run(["sh", "-c", str(caught.value).split("`")[1]], check=True)
        assert secret_mounts("a", agent(key), (4711, 4712))


def test_an_environment_file_is_read_and_the_table_wins(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nA=1\nexport B = no\n")
    one = Agent(env={"A": "table"}, env_file=str(file))
    with pytest.raises(EnvFileError, match="line 4"):
        environment_of("a", one)
    file.write_text('# a comment\n\nA=1\nexport B=two words\nC="quoted"\nD=\'x"\'\nE=\n')
    assert environment_of("a", one) == {"A": "table", "B": "two words", "C": "quoted", "D": 'x"', "E": ""}
    file.write_bytes("A=1\r\nB=line\u2028feed\x0cend\r\n".encode())  # no line ends within B
    assert environment_of("a", one) == {"A": "table", "B": "line\u2028feed\x0cend"}
    file.write_text("CLAWBUS_RUNNER={}\n")
    with pytest.raises(EnvFileError, match="reserved for the daemon"):
        environment_of("a", one)
    file.unlink()
    with pytest.raises(EnvFileError, match=r"agents\.a\.env_file"):
        environment_of("a", one)


def test_a_mount_whose_source_is_missing_or_became_a_link_to_our_data_waits(tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path / "data")
    source = tmp_path / "repo"
    one = Agent(mounts=(AgentMount(source=str(source), target="/repo/", read_only=False),))
    with pytest.raises(MountSourceError, match="is missing"):
        operator_mounts("a", one, config)
    source.mkdir()
    (found,) = operator_mounts("a", one, config)
    assert (found.source, found.target, found.read_only) == (source, "/repo", False)
    source.rmdir()
    source.symlink_to(tmp_path / "data" / "sessions")
    with pytest.raises(MountSourceError, match="data folder"):
        operator_mounts("a", one, config)
    assert issubclass(MountSourceError, AgentFileError)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.ESTALE])
def test_a_host_that_cannot_read_now_does_not_blame_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    key = tmp_path / "key"
    key.write_text(VALUE)

    def short(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", short)
        with pytest.raises(StorageError, match=os.strerror(number)):
            secret_variables("a", agent(key), mounted=False)
    assert secret_variables("a", agent(key), mounted=False)
