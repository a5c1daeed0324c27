"""A configuration in a folder of its own, the command line on it, and a daemon that answers on its socket."""

from collections.abc import Generator
from pathlib import Path

import pytest

from daemon.cli import patience
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations, serving


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Short enough for a socket; nothing of the environment's configuration is seen.

    A command without a daemon does not wait for one that was started just now: nobody starts one.
    """
    monkeypatch.setattr(patience, "_BEGIN_S", 0.0)
    folder = tmp_path_factory.mktemp("h")
    monkeypatch.chdir(folder)
    for name in ("CLAWBUS_CONFIG", "CLAWBUS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    (folder / "clawbus.toml").write_text('data_dir = "data"\n[runtime]\nkind = "process"\n[agents.echo]\n')
    (folder / "data").mkdir()
    return folder


@pytest.fixture
def cli(home: Path, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capfd, home / "clawbus.toml")


@pytest.fixture
def operations(home: Path) -> Generator[FakeOperations]:
    """A running daemon."""
    fake = FakeOperations()
    with serving(fake, home / "data" / "control.sock"):
        yield fake
