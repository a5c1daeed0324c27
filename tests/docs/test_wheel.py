"""What is installed is what `clawbus image build` builds from, so the wheel must carry more than Python files."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from daemon.cli.catalogue import COMMANDS
from daemon.cli.main import manual

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("schema", "daemon", "container_runner")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stderr
    (file,) = target.glob("clawbus-*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def test_every_file_of_the_packages_is_in_it(wheel: zipfile.ZipFile) -> None:
    ours = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name and ".data/" not in name}
    assert packed == ours
    assert {"container_runner/requirements.lock", *(f"{package}/py.typed" for package in PACKAGES)} <= packed


def test_the_files_of_a_service_are_in_it(wheel: zipfile.ZipFile) -> None:
    ours = {
        file.relative_to(ROOT).as_posix()
        for folder in ("systemd", "deploy")
        for file in (ROOT / folder).rglob("*")
        if file.is_file()
    }
    packed = {name.partition(".data/data/share/clawbus/")[2] for name in wheel.namelist() if "/share/clawbus/" in name}
    assert packed == ours
    assert {"systemd/clawbus.service", "deploy/prometheus/alerts.yml"} <= packed


def test_the_manual_page_of_every_command_is_in_it(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".data/data/share/man/man1/clawbus.1")]
    page = wheel.read(name).decode()
    assert page.startswith(".TH CLAWBUS 1")
    assert page == manual(page.split('"clawbus ')[1].split('"')[0])
    assert '.SS "clawbus session show"' in page


def test_a_build_without_the_third_party_packages_has_a_page_too() -> None:
    script = (
        "import sys; sys.modules['typer'] = None; from daemon.cli.man_page import short_page; print(short_page('1'))"
    )
    made = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    for name, entry in COMMANDS.items():
        assert f"\n\\&{name}\n" in made.stdout
        assert entry.summary.split()[0] in made.stdout


def test_its_entry_points_are_the_command_and_the_channels(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert wheel.read(name).decode().split() == [
        *("[console_scripts]", "clawbus", "=", "daemon.cli.main:main"),
        "[clawbus.channels]",
        *("local", "=", "daemon.channels.local:LocalChannel"),
        *("webhook", "=", "daemon.channels.webhook:WebhookChannel"),
    ]
