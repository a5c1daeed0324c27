"""`clawbus init`, `config check` and what `run` checks before the daemon starts."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from daemon.cli.guard import check_foreign_packages
from daemon.cli.main import main
from daemon.config.loading import load_config
from daemon.config.models import Config
from daemon.core.errors import ForeignPackageError
from tests.support.command_line import Answer, CommandLine

# A command whose process is killed as soon as it has made a file for writing, before it writes a byte.
_DIES_WHILE_WRITING = """
import os, signal, sys
from daemon.cli.main import main

make = os.open

def made(path, flags, *more, **named):
    descriptor = make(path, flags, *more, **named)
    if flags & os.O_CREAT and "clawbus.toml" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return descriptor

os.open = made
main(sys.argv[1:])
"""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> "tuple[Path, Run]":
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLAWBUS_CONFIG", raising=False)
    return tmp_path, Run(capfd)


class Run:
    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: str) -> Answer:
        code = main(["--json", *arguments])
        out, err = self._capfd.readouterr()
        return Answer(code, out, err)


def test_it_writes_a_configuration_that_is_valid(fresh: tuple[Path, Run]) -> None:
    folder, run = fresh
    result = run("init", "--runtime", "process").result
    assert result["config"] == str(folder / "clawbus.toml")
    config = load_config(folder / "clawbus.toml")
    assert (config.runtime.kind, list(config.agents), config.data_dir) == ("process", ["echo"], folder / "clawbus-data")
    assert config.data_dir.is_dir()
    assert config.data_dir.stat().st_mode & 0o077 == 0


def test_what_it_writes_beside_a_key_is_its_default(fresh: tuple[Path, Run]) -> None:
    folder, run = fresh
    run("init")
    written = load_config(folder / "clawbus.toml").model_dump(exclude={"data_dir", "agents"})
    assert written == Config().model_dump(exclude={"data_dir", "agents"})


def test_docker_s_next_step_is_the_image(fresh: tuple[Path, Run]) -> None:
    _, run = fresh
    assert run("init").envelope["next_actions"][0]["command"] == "clawbus image build"


def test_places_are_chosen_and_named_in_the_next_steps(fresh: tuple[Path, Run]) -> None:
    folder, run = fresh
    file, data = folder / "etc" / "c.toml", folder / "elsewhere" / 'quo"te'
    envelope = run("init", "--config", str(file), "--data", str(data)).envelope
    assert load_config(file).data_dir == data
    assert envelope["next_actions"][-1]["command"].startswith(f"clawbus send --config {file} ")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_it_never_overwrites(fresh: tuple[Path, Run], kind: str) -> None:
    folder, run = fresh
    if kind == "file":
        (folder / "clawbus.toml").write_text("mine")
    else:
        (folder / "clawbus.toml").symlink_to(folder / "target")
    answer = run("init")
    assert (answer.code, answer.envelope["error"]["code"]) == (1, "EXISTS")
    assert not (folder / "target").exists()
    assert kind == "link" or (folder / "clawbus.toml").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_told(fresh: tuple[Path, Run]) -> None:
    folder, run = fresh
    (folder / "file").write_text("")
    answer = run("init", "--config", str(folder / "file" / "c.toml"))
    assert answer.code == 1
    assert answer.envelope["error"]["code"] in ("NOT_WRITABLE", "EXISTS")


def test_a_data_folder_that_cannot_be_made_leaves_no_configuration_behind(fresh: tuple[Path, Run]) -> None:
    folder, run = fresh
    (folder / "file").write_text("")
    assert run("init", "--data", str(folder / "file" / "data")).envelope["error"]["code"] == "NOT_WRITABLE"
    assert run("init", "--data", str(folder / "data")).code == 0
    assert load_config(folder / "clawbus.toml").data_dir == folder / "data"


def test_one_that_is_killed_while_it_writes_can_be_repeated(fresh: tuple[Path, Run]) -> None:
    folder, run = fresh
    ends = subprocess.run(
        [sys.executable, "-c", _DIES_WHILE_WRITING, "init"], cwd=folder, check=False, capture_output=True, timeout=60
    )
    assert ends.returncode == -signal.SIGKILL, ends
    assert run("init").code == 0
    assert load_config(folder / "clawbus.toml").agents.keys() == {"echo"}


def test_a_file_system_without_hard_links_will_do(fresh: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    folder, run = fresh
    monkeypatch.setattr(os, "link", refuse)
    assert run("init").code == 0
    assert load_config(folder / "clawbus.toml").agents.keys() == {"echo"}
    assert sorted(path.name for path in folder.iterdir()) == ["clawbus-data", "clawbus.toml"]


class TestConfigCheck:
    def test_a_good_one(self, cli: CommandLine) -> None:
        result = cli("config", "check").result
        assert (result["runtime"], result["agents"]) == ("process", {"echo": "echo"})

    def test_a_typo_is_named(self, cli: CommandLine) -> None:
        cli.config.write_text("[runtime]\nmax_container = 3\n")
        answer = cli("config", "check")
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "CONFIG_INVALID")
        assert "max_containers" in answer.envelope["error"]["message"]

    def test_it_shows_no_secret(self, cli: CommandLine) -> None:
        cli.config.write_text('[agents.a]\nenv = { KEY = "hush" }\n[channels.webhook]\nsecret = "hush"\n')
        assert "hush" not in cli("config", "check").out

    def test_a_socket_path_that_is_too_long(self, cli: CommandLine) -> None:
        assert cli("config", "check", "--data", "/" + "x" * 200).envelope["error"]["code"] == "SOCKET_PATH"


class TestRun:
    @pytest.fixture
    def app(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        """A daemon that ends at once, with the code in `ends_with`."""
        module = ModuleType("daemon.app.main")
        module.__dict__["ends_with"] = 0
        module.__dict__["seen"] = []

        def run(config: Config, reload: object, signals: object, release: object) -> int:
            module.__dict__["seen"].append(config)
            return int(module.__dict__["ends_with"])

        module.__dict__["run"] = run
        monkeypatch.setitem(sys.modules, "daemon.app.main", module)
        monkeypatch.setattr("daemon.app.main", module, raising=False)
        return module

    def test_it_gets_the_configuration_and_ends_silently(self, cli: CommandLine, app: ModuleType) -> None:
        answer = cli("serve", "--data", "/somewhere", "--pretty")
        assert (answer.code, answer.out) == (0, "")
        assert app.__dict__["seen"][0].data_dir == Path("/somewhere")

    def test_an_envelope_for_who_asks(self, cli: CommandLine, app: ModuleType) -> None:
        assert cli("serve", "--json").result == {"exit_code": 0}

    def test_its_exit_code_is_the_daemon_s(self, cli: CommandLine, app: ModuleType) -> None:
        app.__dict__["ends_with"] = 7
        answer = cli("serve")
        assert (answer.code, answer.envelope["error"]["code"]) == (7, "DAEMON_FAILED")

    def test_it_refuses_beside_a_foreign_package(
        self, cli: CommandLine, app: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(tmp_path, "other", {"top_level.txt": "schema\n"})
        monkeypatch.syspath_prepend(tmp_path)
        assert cli("serve").envelope["error"]["code"] == "FOREIGN_PACKAGE"
        assert app.__dict__["seen"] == []


def install(folder: Path, name: str, files: dict[str, str]) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file, text in files.items():
        (info / file).write_text(text)


class TestGuard:
    def test_this_environment_is_ours_alone(self) -> None:
        check_foreign_packages()

    @pytest.mark.parametrize(
        "files",
        [
            {"top_level.txt": "schema\n"},
            {"RECORD": "daemon/__init__.py,,\nother/x.py,,\n"},
            {"RECORD": "schema.py,,\n"},
            {"RECORD": "container_runner/x.py,,\n", "top_level.txt": "container_runner"},
        ],
    )
    def test_a_foreign_distribution_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
    ) -> None:
        install(tmp_path, "python-other", files)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ForeignPackageError, match="python-other") as caught:
            check_foreign_packages()
        assert "pip uninstall python-other" in caught.value.hint

    @pytest.mark.parametrize(
        "files",
        [
            {"top_level.txt": "schemata\ndaemonize\n"},
            {"RECORD": "lib/schema/__init__.py,,\ndaemon-1.0.dist-info/METADATA,,\n"},
            {},
        ],
    )
    def test_others_may_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
        install(tmp_path, "harmless", files)
        monkeypatch.syspath_prepend(tmp_path)
        check_foreign_packages()

    def test_a_broken_installation_is_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken-1.0.dist-info").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        check_foreign_packages()


def test_the_envelope_names_the_command(cli: CommandLine) -> None:
    assert json.loads(cli("config", "check").out)["command"] == "config check"


def test_a_umask_that_takes_the_owner_s_rights_does_not_count(fresh: tuple[Path, Run]) -> None:
    folder, run = fresh
    before = os.umask(0o277)
    try:
        data = Path(run("init", "--runtime", "process").result["config"]).with_name("clawbus-data")
        mask = os.umask(0o077)
    finally:
        os.umask(before)
    assert mask == 0o077
    assert data.parent == folder
    assert data.stat().st_mode & 0o777 == 0o700
