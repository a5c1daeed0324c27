"""A second dockerd that belongs to the test alone: its own folders, socket and containerd, no bridge, no iptables.

It may be killed and started again at will; the machine's own dockerd is never touched, except that an image is copied
from it. `close` ends everything it started, its containers too, and takes its mounts and folders away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

from tests.support.daemon import eventually

READY_S: Final = 60.0
_ATTEMPTS: Final = 3


class PrivateDockerd:
    """Root only. A context manager; `environ` is what a client of it needs."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cbdockerd"))
        self.socket = self.root / "docker.sock"
        self.environ = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}"}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, and return once it answers. One that was killed in mid-start may leave a containerd that hinders it."""
        for attempt in range(_ATTEMPTS):
            self._launch()
            try:
                eventually("dockerd answers", self._answers, READY_S)
            except AssertionError:
                self.kill()
                self._end_containerd()
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def _launch(self) -> None:
        (self.root / "pid").unlink(missing_ok=True)
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("dockerd", "--data-root", str(self.root / "data"), "--exec-root", str(self.root / "exec")),
                    *("--pidfile", str(self.root / "pid"), "--host", f"unix://{self.socket}"),
                    *("--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL; its containerd and its containers stay, as they do on a real machine."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=30)

    def stop(self) -> None:
        """SIGTERM: it stops its containers first."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=60)

    def docker(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run the command line against it."""
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, env=self.environ
        )

    def copy_image(self, tag: str) -> None:
        """From the machine's dockerd into this one."""
        with subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE) as saved:
            loaded = subprocess.run(
                ["docker", "load"], stdin=saved.stdout, capture_output=True, check=False, timeout=300, env=self.environ
            )
        if loaded.returncode != 0:
            raise RuntimeError(f"the image {tag} could not be copied: {loaded.stderr.decode()}")

    def close(self) -> None:
        """End all of it. Safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(Exception):
                ids = self.docker("ps", "-aq").stdout.split()
                if ids:
                    self.docker("rm", "-f", *ids)
            with contextlib.suppress(Exception):
                self.stop()
            if self._process.poll() is None:
                self.kill()
        self._end_containerd()
        self._end_shims()
        self._end_containers()
        for mount in reversed(_mounts_under(self.root)):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False, timeout=120)
        shutil.rmtree(self.root, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.root / "log").read_text(errors="replace")[-4000:]
        return self.docker("info", timeout_s=20).returncode == 0

    def _end_containerd(self) -> None:
        """What dockerd started and names our folder on its command line: nobody else's does."""
        self._end(b"containerd")

    def _end_shims(self) -> None:
        self._end(b"containerd-shim-runc-v2")

    def _end_containers(self) -> None:
        """Whose root lies in our folder: a container whose shim died in its start waits forever, and for nobody."""
        mark = f"{self.root}/"
        for entry in _processes():
            with contextlib.suppress(OSError):
                mounts = (entry / "mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
                # The fifth field is the mount's place as the process sees it (proc_pid_mountinfo(5)).
                if any(line.split()[4] == "/" and mark in line for line in mounts):
                    os.kill(int(entry.name), signal.SIGKILL)

    def _end(self, program: bytes) -> None:
        mark = str(self.root).encode()
        for entry in _processes():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].rpartition(b"/")[2] == program and any(mark in word for word in words):
                    os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(0.2)  # mounts go with the last process that holds them


def _processes() -> list[Path]:
    return [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _mounts_under(root: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [words[1] for words in (line.split() for line in lines) if words[1].startswith(f"{root}/")]
