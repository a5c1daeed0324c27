"""What is in systemd/ is what systemd accepts, and says the same as the code: by systemd's own tools, on real files.

They need no running systemd. Where the tools are missing the tests are skipped, and fail with CLAWBUS_REQUIRE_DOCKER=1.
"""

import configparser
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from daemon.config.loading import load_config
from daemon.config.models import Config

UNITS: Final = Path(__file__).resolve().parents[2] / "systemd"
SERVICE: Final = UNITS / "clawbus.service"
COMMAND: Final = "/opt/clawbus/bin/clawbus"
# systemd-analyze security, times ten: 0 is locked in, 100 wide open. What remains is the network and Docker's group.
EXPOSURE_LIMIT: Final = 20


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin:/usr/sbin:/sbin")
    if found is None:
        reason = f"{name} is missing (Debian: apt-get install systemd)"
        if os.environ.get("CLAWBUS_REQUIRE_DOCKER") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)


def verify(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    unit = folder / "clawbus.service"
    unit.write_text(text, encoding="utf-8")
    return run([tool("systemd-analyze"), "verify", "--man=no", str(unit)])


def about_ours(output: str) -> list[str]:
    """The lines that complain about our unit; the machine's own units are not ours to judge."""
    return [line for line in output.splitlines() if "clawbus" in line]


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """The unit with its command at a place where there is one: an executable file of this test's own."""
    command = tmp_path / "clawbus"
    command.write_text("#!/bin/sh\n", encoding="utf-8")
    command.chmod(0o755)
    text = SERVICE.read_text(encoding="utf-8")
    assert text.count(COMMAND) == 2, "its start and its reload"
    return text.replace(COMMAND, str(command))


def test_the_service_verifies(tmp_path: Path, installed: str) -> None:
    done = verify(tmp_path, installed)
    assert (done.returncode, about_ours(done.stdout)) == (0, [])


def test_the_slots_verify_and_are_the_service_but_for_the_slot(tmp_path: Path) -> None:
    """The hardening is written twice, because a unit cannot include another; it must not drift apart."""
    text = (UNITS / "clawbus@.service").read_text(encoding="utf-8")
    command = tmp_path / "clawbus"
    command.write_text("#!/bin/sh\n", encoding="utf-8")
    command.chmod(0o755)
    unit = tmp_path / "clawbus@.service"
    unit.write_text(text.replace("/opt/clawbus/slots/%i/bin/clawbus", str(command)), encoding="utf-8")
    unit.rename(tmp_path / "clawbus@blue.service")
    done = run([tool("systemd-analyze"), "verify", "--man=no", str(tmp_path / "clawbus@blue.service")])
    assert (done.returncode, about_ours(done.stdout)) == (0, [])

    def settings(page: str) -> set[str]:
        return {line for line in page.splitlines() if "=" in line and not line.startswith("#")}

    own = {"Description", "Conflicts", "After", "ExecStart", "ExecReload", "RestartSec"}
    both = settings(text) ^ settings(SERVICE.read_text(encoding="utf-8"))
    assert {line.partition("=")[0] for line in both} <= own


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("ExecReload=/", "ExecReload=/nowhere/", "not executable"),
        ("WatchdogSec=30", "WatchdogSeconds=30", "'WatchdogSeconds'"),
        ("Restart=always", "Restart=allways", "Failed to parse service restart specifier"),
        ("SystemCallFilter=~@privileged", "SystemCallFilter=~@priviledged", "Unknown system call group"),
        ("[Install]", "[Instal]", "'Instal'"),
    ],
)
def test_verify_sees_a_mistake(tmp_path: Path, installed: str, right: str, wrong: str, complaint: str) -> None:
    assert right in installed
    done = verify(tmp_path, installed.replace(right, wrong))
    assert any(complaint in line for line in about_ours(done.stdout)), done.stdout


def test_verify_sees_that_the_command_is_missing(tmp_path: Path) -> None:
    text = SERVICE.read_text(encoding="utf-8").replace(COMMAND, str(tmp_path / "absent"))
    done = verify(tmp_path, text)
    assert done.returncode != 0
    assert "not executable" in done.stdout


def security(folder: Path, text: str, limit: int) -> subprocess.CompletedProcess[str]:
    unit = folder / "clawbus.service"
    unit.write_text(text, encoding="utf-8")
    options = ["--offline=true", f"--threshold={limit}", "--no-pager"]
    return run([tool("systemd-analyze"), "security", *options, str(unit)])


def test_the_service_is_hardened(tmp_path: Path, installed: str) -> None:
    done = security(tmp_path, installed, EXPOSURE_LIMIT)
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level for clawbus.service" in done.stdout


@pytest.mark.parametrize("line", ["CapabilityBoundingSet=", "SystemCallFilter=@system-service"])
def test_a_softer_service_is_over_the_limit(tmp_path: Path, installed: str, line: str) -> None:
    kept = [text for text in installed.splitlines() if text not in {line, "RestrictNamespaces=yes"}]
    assert security(tmp_path, "\n".join(kept) + "\n", EXPOSURE_LIMIT).returncode != 0


def unit_setting(section: str, key: str) -> str:
    # Its keys are case-insensitive here, which does no harm; of a key given twice it keeps the last.
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(SERVICE, encoding="utf-8")
    return parser[section][key]


def test_the_service_and_the_code_name_the_same_places() -> None:
    words = unit_setting("Service", "ExecStart").split()
    assert words == [COMMAND, "serve", "--config", "/etc/clawbus/clawbus.toml"]
    default = Config.model_fields["data_dir"].default
    assert default == Path("/var/lib") / unit_setting("Service", "StateDirectory")
    assert Path("/etc") / unit_setting("Service", "ConfigurationDirectory") == Path(words[3]).parent


def test_what_the_promises_rest_on() -> None:
    assert unit_setting("Service", "Type") == "notify"
    assert unit_setting("Service", "KillMode") == "process"  # a restart kills no agent
    assert unit_setting("Service", "StateDirectoryMode") == "0700"
    # Docker down is a state of the daemon, not its end.
    hard = ("Requires=", "BindsTo=", "Requisite=", "PartOf=")
    assert [line for line in SERVICE.read_text(encoding="utf-8").splitlines() if line.startswith(hard)] == []


def test_the_example_configuration_is_valid() -> None:
    config = load_config(UNITS / "clawbus.toml")
    assert config.data_dir == Path("/var/lib/clawbus")
    assert list(config.agents) == ["echo"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A filesystem root with what `systemd-sysusers` makes of our file, and only that."""
    root = tmp_path / "root"
    conf = root / "usr/local/lib/sysusers.d/clawbus.conf"
    conf.parent.mkdir(parents=True)
    (root / "etc").mkdir()
    shutil.copy(UNITS / "clawbus.sysusers", conf)
    if os.geteuid() != 0:
        pytest.skip("makes users and owners in a folder, which only root may")
    done = run([tool("systemd-sysusers"), f"--root={root}"])
    assert done.returncode == 0, done.stdout
    return root


def entry(root: Path, name: str, file: str) -> list[str]:
    lines = (root / "etc" / file).read_text(encoding="utf-8").splitlines()
    (found,) = [line.split(":") for line in lines if line.startswith(f"{name}:")]
    return found


def test_sysusers_makes_the_user_and_its_way_to_docker(root: Path) -> None:
    user = entry(root, "clawbus", "passwd")
    assert user[4:] == ["clawbus message bus", "/var/lib/clawbus", "/usr/sbin/nologin"]
    assert entry(root, "docker", "group")[3] == "clawbus"
    assert unit_setting("Service", "User") == user[0]


def test_tmpfiles_makes_the_folders_private(root: Path) -> None:
    (root / "etc/clawbus").mkdir()
    (root / "etc/clawbus/clawbus.toml").write_text("", encoding="utf-8")
    conf = root / "usr/local/lib/tmpfiles.d/clawbus.conf"
    conf.parent.mkdir(parents=True)
    shutil.copy(UNITS / "clawbus.tmpfiles", conf)
    done = run([tool("systemd-tmpfiles"), f"--root={root}", "--create"])
    assert done.returncode == 0, done.stdout
    uid, gid = (int(text) for text in entry(root, "clawbus", "passwd")[2:4])
    assert facts(root / "var/lib/clawbus") == (0o700, uid, gid)
    assert facts(root / "etc/clawbus") == (0o750, 0, gid)
    assert facts(root / "etc/clawbus/clawbus.toml") == (0o640, 0, gid)


def facts(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
