"""A machine with a real systemd, in a container: clawbus installed as docs/install.md says, but from what is here already.

Nothing in there needs a network. The agents run with the process runtime, so they are in the unit's control group: what
spares them at a restart is the unit's KillMode and nothing else.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from daemon.runtimes.image_wheels import TargetPython, fetch_wheels, unpack_wheels
from tests.support.daemon import eventually

ROOT: Final = Path(__file__).resolve().parents[2]
PYTHON: Final = TargetPython((3, 11), "cp311", platform.machine(), "glibc", (2, 36))  # Debian 12's
COMMAND: Final = "/opt/clawbus/bin/clawbus"

# environment.md of systemd itself: what PID 1 needs in a container that is not privileged.
_BOOT: Final = (
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE"),
    *("--security-opt", "seccomp=unconfined", "--cgroupns=host", "--network", "none"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp"),
    *("-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
)
_INSTALL: Final = """
set -e
python3 -m venv --without-pip /opt/clawbus
echo /opt/site > /opt/clawbus/lib/python3.11/site-packages/clawbus.pth
cat > /opt/clawbus/bin/clawbus <<'END'
#!/opt/clawbus/bin/python
import sys
from daemon.cli.main import main
sys.exit(main())
END
chmod 755 /opt/clawbus/bin/clawbus
ln -sf /opt/clawbus/bin/clawbus /usr/local/bin/clawbus
install -Dm 644 /opt/systemd/clawbus.sysusers /usr/local/lib/sysusers.d/clawbus.conf
install -Dm 644 /opt/systemd/clawbus.tmpfiles /usr/local/lib/tmpfiles.d/clawbus.conf
install -Dm 644 /opt/systemd/clawbus.service /etc/systemd/system/clawbus.service
systemd-sysusers
install -Dm 640 /opt/systemd/clawbus.toml /etc/clawbus/clawbus.toml
sed -i 's/kind = "docker"/kind = "process"/' /etc/clawbus/clawbus.toml
systemd-tmpfiles --create
mkdir -p /etc/systemd/system/clawbus.service.d
printf '[Service]\\nRestartSec=200ms\\n' > /etc/systemd/system/clawbus.service.d/quick.conf
systemctl daemon-reload
"""
_TWO_RELEASES: Final = """
set -e
install -Dm 644 /opt/systemd/clawbus@.service /etc/systemd/system/clawbus@.service
systemctl daemon-reload
/opt/clawbus/bin/clawbus release make
cp -a /opt/site /opt/site2
echo '# another release' >> /opt/site2/daemon/cli/version.py
mkdir /opt/new
cp -a /opt/clawbus/bin /opt/clawbus/lib /opt/clawbus/pyvenv.cfg /opt/new
echo /opt/site2 > /opt/new/lib/python3.11/site-packages/clawbus.pth
/opt/new/bin/python -m daemon.cli release make
rm -r /opt/new /opt/site2
"""


def build_site(site: Path, cache: Path) -> None:
    """Everything that clawbus imports, for the container's Python, and clawbus itself, in one folder."""
    lock = (ROOT / "locks" / "runtime.txt").read_text(encoding="utf-8")
    site.mkdir(parents=True)
    unpack_wheels(lock, PYTHON, fetch_wheels(lock, PYTHON, cache), site)
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps",
         "--no-build-isolation", "--no-compile", "--upgrade", "--target", str(site), str(ROOT)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip


class SystemdHost:
    """The container. `close` removes it."""

    def __init__(self, image: str, site: Path) -> None:
        volumes = ("-v", f"{site}:/opt/site:ro", "-v", f"{ROOT / 'systemd'}:/opt/systemd:ro")
        name = f"clawbus-test-systemd-{os.getpid()}"
        done = subprocess.run(
            ["docker", "run", "-d", "--name", name, *_BOOT, *volumes, image, "/lib/systemd/systemd"],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        self.container = done.stdout.strip()

    def install(self) -> None:
        """Boot to the end, then install."""
        states = ("running", "degraded")
        eventually("booted", lambda: self.run("systemctl", "is-system-running").stdout.strip() in states, 60)
        done = self.run("sh", "-c", _INSTALL)
        assert done.returncode == 0, done.stdout + done.stderr

    def make_two_releases(self) -> None:
        """Install the slots' unit, and make two releases: of what is installed, then of a changed copy."""
        done = self.run("sh", "-c", _TWO_RELEASES, timeout_s=180)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """A command in the container, as root."""
        return subprocess.run(
            ["docker", "exec", self.container, *command], capture_output=True, text=True, check=False, timeout=timeout_s
        )

    def systemctl(self, *arguments: str) -> str:
        """What systemctl prints; it must succeed."""
        done = self.run("systemctl", *arguments)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.journal_text()}"
        return done.stdout.strip()

    def show(self, name: str) -> str:
        """One property of the unit."""
        return self.systemctl("show", "clawbus", "--property", name, "--value")

    def clawbus(self, *arguments: str) -> dict[str, Any]:
        """A command's result, run as the daemon's user; it must succeed."""
        command = (COMMAND, "--config", "/etc/clawbus/clawbus.toml", *arguments, "--json")
        done = self.run("setpriv", "--reuid", "clawbus", "--regid", "clawbus", "--init-groups", "--", *command)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.journal_text()}"
        result: dict[str, Any] = json.loads(done.stdout)["result"]
        return result

    def journal(self) -> list[dict[str, Any]]:
        """The unit's own lines in the journal, each an event."""
        text = self.run("journalctl", "-u", "clawbus", "-o", "json", "--no-pager").stdout
        return [entry for line in text.splitlines() if (entry := json.loads(line)).get("_TRANSPORT") == "stdout"]

    def journal_text(self) -> str:
        return self.run("journalctl", "-u", "clawbus", "-n", "40", "--no-pager").stdout

    def close(self) -> None:
        subprocess.run(["docker", "rm", "-f", self.container], capture_output=True, check=False, timeout=120)
