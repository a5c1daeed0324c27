"""clawbus from its wheel, in a fresh environment outside of this folder: everything that it needs is in there.

The third-party packages are those of this environment, so that nothing is fetched; the folder with the source is on no path.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.runtimes.image_source import source_digest, source_files
from tests.support.daemon import eventually

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel in it, and a folder to work in."""

    prefix: Path
    home: Path

    def begin(self, *command: str) -> subprocess.Popen[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [str(self.prefix / "bin" / command[0]), *command[1:]],
            cwd=self.home, env=environment, stdout=pipe, stderr=pipe, text=True,
        )  # fmt: skip

    def run(self, *command: str) -> str:
        process = self.begin(*command)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, (command, out, err)
        return out

    def clawbus(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run("clawbus", *arguments, "--json"))["result"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("w")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    subprocess.run([*pip, *build], check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("clawbus-*.whl")
    made = Installed(folder / "venv", folder / "home")
    made.home.mkdir()
    venv.create(made.prefix)
    install = (*pip, "--python", str(made.prefix / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (site,) = made.prefix.glob("lib/python3*/site-packages")
    # A path in a .pth file is searched, but its own .pth files, which lead to the source here, are not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def test_every_package_comes_from_the_environment(installed: Installed) -> None:
    script = (
        "import daemon, schema, container_runner; print(daemon.__file__, schema.__file__, container_runner.__file__)"
    )
    found = installed.run("python", "-c", script).split()
    assert len(found) == 3
    assert all(Path(path).is_relative_to(installed.prefix) for path in found)


def test_the_agents_image_would_be_built_from_the_same_source(installed: Installed) -> None:
    script = (
        "import json; from daemon.runtimes.image_source import *;"
        "print(json.dumps([source_digest(), [name for name, _ in source_files()]]))"
    )
    digest, names = json.loads(installed.run("python", "-c", script))
    assert digest == source_digest()
    assert names == [name for name, _ in source_files()]
    assert {"container_runner/Dockerfile", "container_runner/requirements.lock", "schema/inbound.sql"} <= set(names)


def test_the_units_and_the_alert_rules_are_installed(installed: Installed) -> None:
    share = installed.prefix / "share" / "clawbus"
    for folder in ("systemd", "deploy"):
        for file in (one for one in (ROOT / folder).rglob("*") if one.is_file()):
            assert (share / file.relative_to(ROOT)).read_bytes() == file.read_bytes()
    example = share / "systemd" / "clawbus.toml"
    assert installed.clawbus("config", "check", "--config", str(example), "--data", str(installed.home / "checked"))


def test_a_message_is_answered_and_nothing_is_left(installed: Installed) -> None:
    assert installed.clawbus("version")["version"]
    installed.clawbus("init", "--runtime", "process")
    daemon = installed.begin("clawbus", "serve", "--json")
    try:
        said = eventually("the daemon is up", lambda: _answered(installed, daemon), 60)
        assert said == "hello"
        assert installed.clawbus("doctor")["diagnoses"] == []
        agent = installed.clawbus("session", "show", "echo", "first")["incarnation"]
        assert agent is not None
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=30)
        killed = installed.clawbus("session", "kill", "--all")
    assert [(one["session"], one["killed"]) for one in killed["agents"]] == [("first", True)]


def _answered(installed: Installed, daemon: subprocess.Popen[str]) -> str | None:
    assert daemon.poll() is None, daemon.communicate()
    send = installed.begin(
        "clawbus", "send", "hello", "--agent", "echo", "--session", "first", "--wait", "60", "--json"
    )
    out, _ = send.communicate(timeout=60)
    return json.loads(out)["result"]["answer"]["text"] if send.returncode == 0 else None
