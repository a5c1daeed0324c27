"""A Podman service that belongs to the test alone: its own storage, socket and configuration. No other engine is touched.

Rootful only. The service ends after 15 idle minutes even if the test run was killed. It uses `runc` where that is
installed: Debian 12's crun refuses hosts with both versions of cgroups. The configuration sets the ulimits, which Podman
would otherwise raise; a host without CAP_SYS_RESOURCE refuses that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self, cast

import docker

from tests.support.daemon import eventually

READY_S: Final = 30.0
_CONFIGURATION: Final = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
{runtime}
[network]
network_backend = "netavark"
"""


def missing() -> str | None:
    """Return what a private Podman lacks on this machine, or None."""
    if os.getuid() != 0:
        return "a private Podman service needs root"
    if shutil.which("podman") is None:
        return "podman is not installed (apt-get install podman netavark catatonit runc)"
    return None


class PrivatePodman:
    """The service, which runs inside a `with` block."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cbpodman", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.socket = self.root / "podman.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        runtime = 'runtime = "runc"' if shutil.which("runc") else ""
        (self.root / "containers.conf").write_text(_CONFIGURATION.format(runtime=runtime), encoding="utf-8")
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._podman(), "system", "service", "--time=900", f"unix://{self.socket}"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=self._environ(),
            )  # fmt: skip
        eventually("Podman answers", self._answers, READY_S)

    def copy_image(self, tag: str) -> None:
        """Copy an image from the machine's dockerd. Podman gives it the same id."""
        with subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE) as saved:
            done = subprocess.run(
                [*self._podman(), "load", "--quiet"],
                stdin=saved.stdout, capture_output=True, check=False, timeout=120, env=self._environ(),
            )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"the image {tag} could not be copied: {done.stderr.decode()}")

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Yield Docker's low-level client, connected to this service."""
        client = cast("Any", docker).APIClient(base_url=f"unix://{self.socket}", version="1.41", timeout=60)
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """End its containers and the service, and remove its storage. Safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # with SIGTERM it would wait for idle connections; its state is on disk
            self._process.wait(timeout=30)
        if self.root.exists():
            subprocess.run(
                [*self._podman(), "rm", "--all", "--force", "--time=0"],
                capture_output=True, check=False, timeout=120, env=self._environ(),
            )  # fmt: skip
            for mount in reversed(_mounts_under(self.root)):
                subprocess.run(["umount", "-l", mount], capture_output=True, check=False, timeout=120)
            shutil.rmtree(self.root, ignore_errors=True)

    def _podman(self) -> list[str]:
        root = self.root
        return [
            *("podman", "--root", str(root / "storage"), "--runroot", str(root / "run"), "--tmpdir", str(root / "tmp")),
            *("--storage-driver", "overlay"),
        ]

    def _environ(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self.root / "containers.conf")}

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.root / "log").read_text(errors="replace")[-4000:]
        if not self.socket.exists():
            return False
        with contextlib.suppress(Exception), self.client() as client:
            return bool(client.ping())
        return False


def _mounts_under(root: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [words[1] for words in (line.split() for line in lines) if words[1].startswith(f"{root}/")]
