"""A machine with a real systemd, in a container, with clawbus installed on it as docs/install.md says.

Nothing is fetched: the locked distributions are those of the environment that runs the tests. The container has no
network, and is removed by its id at the end.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeVar

ROOT: Final = Path(__file__).resolve().parents[2]
PREFIX: Final = "/opt/clawbus"
CONFIG: Final = "/etc/clawbus/clawbus.toml"
LABEL: Final = "clawbus-test-systemd"
DROP_IN: Final = "[Service]\nWatchdogSec=3\nRestartSec=200ms\nSupplementaryGroups=\n"
SCRIPT: Final = f"#!{PREFIX}/bin/python\nimport sys\nfrom daemon.cli.main import main\nsys.exit(main())\n"
# Each takes its own tmpfs and the control groups of the host, as systemd wants them in a container.
RUN: Final = (
    *("docker", "run", "--detach", "--network", "none", "--label", f"{LABEL}={os.getpid()}"),
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE"),
    *("--security-opt", "seccomp=unconfined", "--cgroupns=host", "--memory", "2g", "--pids-limit", "500"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
)

T = TypeVar("T")


class Machine:
    """Commands in the container, as root."""

    def __init__(self, container: str) -> None:
        self.container = container

    def run(self, *command: str, check: bool = True, text: str | None = None, timeout_s: float = 60) -> str:
        """Standard output of a command; its failure is the test's."""
        done = subprocess.run(
            ["docker", "exec", *(["--interactive"] if text is not None else []), self.container, *command],
            capture_output=True, text=True, timeout=timeout_s, check=False, input=text,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", f"mkdir -p {Path(path).parent} && cat > {path}", text=text)

    def unpack(self, archive: bytes) -> None:
        """A tar's files, from the root on."""
        subprocess.run(["docker", "cp", "-", f"{self.container}:/"], input=archive, check=True, timeout=120)

    def clawbus(self, *arguments: str, check: bool = True) -> dict[str, Any]:
        """The command as the service's user; its result, or the whole envelope without `check`."""
        command = ["runuser", "-u", "clawbus", "--", f"{PREFIX}/bin/clawbus", "--config", CONFIG, *arguments, "--json"]
        envelope = json.loads(self.run(*command, check=check))
        return envelope["result"] if check else envelope

    def property(self, name: str) -> str:
        """Of the unit, as systemd has it."""
        return self.run("systemctl", "show", "clawbus", "--property", name, "--value").strip()

    def alive(self, pid: int) -> bool:
        return self.run("sh", "-c", f"test -d /proc/{pid} && echo yes || echo no").strip() == "yes"

    def journal(self, since: str = "") -> list[dict[str, Any]]:
        """The unit's own journal entries (what its processes wrote), oldest first; after the cursor `since`."""
        after = ["--after-cursor", since] if since else []
        lines = self.run("journalctl", "_SYSTEMD_UNIT=clawbus.service", "--output", "json", *after).splitlines()
        return [json.loads(line) for line in lines]

    def events(self, name: str, since: str = "") -> list[dict[str, Any]]:
        """The daemon's events of one name in the journal."""
        found = [_event(entry) for entry in self.journal(since)]
        return [event for event in found if event is not None and event.get("event") == name]

    def cursor(self) -> str:
        return self.journal()[-1]["__CURSOR"]

    def eventually(self, what: str, holds: Callable[[], T | None], seconds: float = 20.0) -> T:
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < deadline, f"{what}: not so after {seconds:g} s\n{self.story()}"
            time.sleep(0.1)
        return found

    def story(self) -> str:
        """For a failed test's report."""
        state = self.run("systemctl", "status", "clawbus", "--no-pager", "--full", check=False)
        return state + self.run("journalctl", "--no-pager", "--lines", "60", "--output", "cat", check=False)


def _event(entry: dict[str, Any]) -> dict[str, Any] | None:
    try:
        event = json.loads(entry["MESSAGE"])
    except (ValueError, TypeError):
        return None
    return event if isinstance(event, dict) else None


@contextmanager
def machine(image: str) -> Iterator[Machine]:
    """A booted machine."""
    started = subprocess.run(
        [*RUN, image, "/lib/systemd/systemd"], capture_output=True, text=True, check=True, timeout=60
    )
    container = started.stdout.strip()
    try:
        found = Machine(container)
        wanted = ("running", "degraded")  # degraded: a unit of the image's own that a container cannot start
        found.eventually(
            "booted", lambda: found.run("systemctl", "is-system-running", check=False).strip() in wanted, 60
        )
        yield found
    finally:
        subprocess.run(
            ["docker", "rm", "--force", "--volumes", container], capture_output=True, check=False, timeout=60
        )


def python_of(found: Machine) -> tuple[int, int]:
    """Its Python's minor version: what is compiled must be made for it."""
    major, minor = found.run("/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])").split()
    return int(major), int(minor)


def install(found: Machine, built: Path, config: str) -> None:
    """The steps of docs/install.md. `built` is a folder with clawbus as `pip install --target` leaves it."""
    found.run("/usr/bin/python3", "-m", "venv", "--without-pip", PREFIX)
    site = f"{PREFIX}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    found.unpack(_site_packages(site.lstrip("/"), built))
    found.write(f"{PREFIX}/bin/clawbus", SCRIPT)
    found.run("chmod", "755", f"{PREFIX}/bin/clawbus")
    for source, target in (
        ("sysusers", "/usr/local/lib/sysusers.d/clawbus.conf"),
        ("tmpfiles", "/usr/local/lib/tmpfiles.d/clawbus.conf"),
        ("service", "/etc/systemd/system/clawbus.service"),
    ):
        found.write(target, (ROOT / "systemd" / f"clawbus.{source}").read_text(encoding="utf-8"))
    found.run("systemd-sysusers")
    found.write(CONFIG, config)
    found.run("systemd-tmpfiles", "--create", check=False)  # the image's own files may fail; ours are looked at
    found.write("/etc/systemd/system/clawbus.service.d/test.conf", DROP_IN)
    found.run("systemctl", "daemon-reload")


def build(folder: Path) -> None:
    """clawbus alone, from this checkout, as an installation has it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--quiet",
        "install",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*command, "--no-build-isolation", "--target", str(folder), str(ROOT)], check=True, timeout=120)


def _site_packages(site: str, built: Path) -> bytes:
    """A tar of the locked runtime distributions and of `built`."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in _locked():
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue  # locked for another platform
            for file in distribution.files or ():
                path = Path(str(distribution.locate_file(file)))
                if ".." not in file.parts and path.is_file():
                    tar.add(path, f"{site}/{file}", filter=_as_root)
        for child in sorted(built.iterdir()):
            if child.name != "bin":
                tar.add(child, f"{site}/{child.name}", filter=_as_root)
    return archive.getvalue()


def _locked() -> list[str]:
    text = (ROOT / "locks" / "runtime.txt").read_text(encoding="utf-8")
    return re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info
