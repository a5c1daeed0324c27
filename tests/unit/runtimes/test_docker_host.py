"""Which engine is meant, and what a person is told when it does not answer."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from daemon.config.models import Config, Docker
from daemon.core.errors import RuntimeUnavailableError
from daemon.runtimes.docker_client import DockerClient
from daemon.runtimes.docker_host import DEFAULT, DockerHost, resolve, unavailable

VARIABLES = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def context(home: Path, name: str, host: str, *, chosen: bool = False) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    folder = home / ".docker" / "contexts" / "meta" / digest
    folder.mkdir(parents=True)
    meta = {"Name": name, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}
    (folder / "meta.json").write_text(json.dumps(meta))
    if chosen:
        (home / ".docker" / "config.json").write_text(json.dumps({"currentContext": name}))


def test_the_key_comes_before_the_environment_and_that_before_the_contexts(home: Path) -> None:
    context(home, "chosen", "unix:///chosen.sock", chosen=True)
    context(home, "named", "tcp://10.0.0.1:2375")
    environ = {"HOME": str(home)}
    assert resolve("", environ) == DockerHost("unix:///chosen.sock", "context chosen")
    environ["DOCKER_CONTEXT"] = "named"
    assert resolve("", environ) == DockerHost("tcp://10.0.0.1:2375", "context named")
    environ["DOCKER_HOST"] = "unix:///variable.sock"
    assert resolve("", environ) == DockerHost("unix:///variable.sock", "DOCKER_HOST")
    assert resolve("unix:///key.sock", environ) == DockerHost("unix:///key.sock", "docker.host")


@pytest.mark.parametrize("config", [None, "{}", '{"currentContext": "default"}', "no JSON", "[]"])
def test_without_a_word_it_is_the_usual_socket(home: Path, config: str | None) -> None:
    if config is not None:
        (home / ".docker").mkdir()
        (home / ".docker" / "config.json").write_text(config)
    assert resolve("", {"HOME": str(home)}).url == DEFAULT


def test_a_context_that_is_gone_is_no_other_engine(home: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="'gone' of DOCKER_CONTEXT does not exist"):
        resolve("", {"HOME": str(home), "DOCKER_CONTEXT": "gone"})


def test_a_contexts_certificates_are_its_own(home: Path) -> None:
    context(home, "far", "tcp://10.0.0.1:2376", chosen=True)
    tls = home / ".docker" / "contexts" / "tls" / hashlib.sha256(b"far").hexdigest() / "docker"
    tls.mkdir(parents=True)
    assert resolve("", {"HOME": str(home)}).tls == tls


def asked(url: str | None = None) -> RuntimeUnavailableError:
    client = DockerClient(base_url=url, timeout_s=1.0)
    with pytest.raises(RuntimeUnavailableError) as caught:
        client.call(lambda api: api.ping())
    text = f"{caught.value} {caught.value.hint}"
    assert not any(word in text for word in ("Error(", "Exception", "Connection aborted", "<", "b'")), text
    return caught.value


def test_no_socket(home: Path) -> None:
    error = asked(f"unix://{home}/no.sock")
    assert f"unix://{home}/no.sock (docker.host): there is no such socket" in str(error)
    assert error.command == "systemctl start docker"


def test_a_socket_that_nobody_listens_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "dead.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    error = asked()
    assert "(DOCKER_HOST): the socket exists, and no process listens on it" in str(error)


def test_a_socket_that_the_user_may_not_use() -> None:
    wrapped = ConnectionError("aborted", PermissionError(errno.EACCES, "Permission denied"))
    error = unavailable(DockerHost(DEFAULT), wrapped, tls=False)
    assert "may not use this socket" in str(error)
    assert "usermod -aG docker" in error.hint
    assert error.command is not None
    assert error.command.startswith("sudo usermod -aG docker")


def test_one_that_does_not_answer_in_time(home: Path) -> None:
    path = home / "slow.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen(1)
        client = DockerClient(base_url=f"unix://{path}", timeout_s=0.05)
        with pytest.raises(RuntimeUnavailableError, match="no answer in time"):
            client.call(lambda api: api.ping())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ssh://me@far", "ssh:// is not supported"),
        ("garbage", "unix:///PATH or tcp"),
        ("tcp://", "unix:///PATH or tcp"),
    ],
)
def test_what_is_no_address(home: Path, monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", url)
    error = asked()
    assert words in str(error)
    assert "from DOCKER_HOST" in str(error)
    assert error.command == "clawbus config check"


def test_tls_variables_without_certificates(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(home))
    error = asked()
    assert "DOCKER_TLS_VERIFY is set" in str(error)
    assert "DOCKER_CERT_PATH" in error.hint


def test_tls_variables_mean_nothing_to_a_local_socket(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    assert "there is no such socket" in str(asked(f"unix://{home}/no.sock"))


def test_a_closed_port(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    error = asked(f"tcp://127.0.0.1:{port}")
    assert "nobody listens there" in str(error)


@pytest.mark.parametrize("host", ["ssh://x", "docker", "unix://", "unix:relative", "tcp://:1", "tcp://h:99999"])
def test_the_key_takes_addresses_alone(host: str) -> None:
    with pytest.raises(ValueError, match=r"docker|host|must be|supported"):
        Docker(host=host)


def test_the_key_can_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLAWBUS_DOCKER__HOST", "unix:///elsewhere.sock")
    assert Config(data_dir=tmp_path).docker.host == "unix:///elsewhere.sock"
    assert os.environ["CLAWBUS_DOCKER__HOST"]


def test_out_of_descriptors_docker_is_not_blamed() -> None:
    wrapped = ConnectionError("Error while fetching server API version")
    wrapped.__cause__ = OSError(errno.EMFILE, "Too many open files")
    error = unavailable(DockerHost(DEFAULT), wrapped, tls=False)
    assert "Too many open files in this process" in str(error)
    assert "LimitNOFILE" in error.hint
    assert "systemctl start docker" not in (error.hint, error.command)
