"""A real daemon for a benchmark: a folder, a configuration, the process, and what the kernel says it costs.

It ends everything that it started and nothing else, whatever the benchmark did.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from daemon.api.client import ControlClient
from daemon.core.clock import SystemClock
from daemon.inspect.status_report import status_report
from demo.leftovers import end_containers, end_processes
from schema.errors import ClawbusError

READY_S: Final = 120.0
_STOP_S: Final = 30.0
_LOOK_S: Final = 0.002
_TICKS: Final = os.sysconf("SC_CLK_TCK")
ECHO: Final = "echo"


class BenchFailed(Exception):
    """The benchmark cannot go on; the text says why, for people."""


def config_text(data: Path, *, runtime: str = "process", tables: str = "") -> str:
    """The defaults that ship, with an agent that repeats what it is told. `tables` is more TOML."""
    kind = f"[runtime]\nkind = {json.dumps(runtime)}\n"
    return f'data_dir = {json.dumps(str(data))}\n{kind}{tables}\n[agents.{ECHO}]\nprovider = "echo"\n'


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used: processor seconds since its start, resident bytes now."""

    cpu_s: float
    rss_bytes: int


def usage(pid: int) -> Usage:
    """From /proc. Raises FileNotFoundError when the process is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, pages * os.sysconf("SC_PAGE_SIZE"))


class BenchStage:
    """One daemon over one data folder inside `parent`. Use as a context manager."""

    def __init__(self, parent: Path, *, runtime: str = "process", tables: str = "") -> None:
        # A name of its own and short: a unix socket's path has at most 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="b", dir=parent))
        self.data = self.root / "d"
        self.config = self.root / "clawbus.toml"
        self.config.write_text(config_text(self.data, runtime=runtime, tables=tables), encoding="utf-8")
        self._runtime = runtime
        self._output = self.root / "daemon.log"
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as steps:  # each is done, whatever comes of the ones before it; the last one first
            steps.callback(shutil.rmtree, self.root, ignore_errors=True)
            steps.callback(self._end_agents)
            steps.callback(self.stop)

    @property
    def pid(self) -> int:
        """The daemon's."""
        assert self._daemon is not None
        return self._daemon.pid

    @property
    def runs(self) -> bool:
        """Whether the daemon runs."""
        return self._daemon is not None and self._daemon.poll() is None

    def client(self) -> ControlClient:
        """A client of its control socket."""
        return ControlClient(self.data / "control.sock")

    def start(self) -> float:
        """Start it and wait until it is ready: the seconds that took."""
        began = time.monotonic()
        with self._output.open("ab") as output:
            self._daemon = subprocess.Popen(
                [str(Path(sys.executable).with_name("clawbus")), "serve", "--config", str(self.config), "--json"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environment(), start_new_session=True,
            )  # fmt: skip
        while not self._is_ready():
            if time.monotonic() - began > READY_S:
                raise BenchFailed(f"the daemon was not ready within {READY_S:g} s:\n{self.tail()}")
            time.sleep(_LOOK_S)
        return time.monotonic() - began

    def stop(self) -> None:
        """SIGTERM, then the end of the process; agents go on."""
        if self._daemon is None or not self.runs:
            return
        self._daemon.send_signal(signal.SIGTERM)
        try:
            self._daemon.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def usage(self) -> Usage:
        """The daemon's, without its agents."""
        return usage(self.pid)

    def agents_usage(self) -> Usage:
        """Of every living runner together; memory that they share is counted for each."""
        cpu_s, rss_bytes = 0.0, 0
        for record in (self.data / "run" / "process").glob("*.json"):
            with suppress(OSError, ValueError, KeyError):
                leader = int(json.loads(record.read_text(encoding="utf-8"))["pid"])
                children = Path(f"/proc/{leader}/task/{leader}/children").read_text(encoding="utf-8").split()
                for found in (usage(int(pid)) for pid in (leader, *children)):
                    cpu_s, rss_bytes = cpu_s + found.cpu_s, rss_bytes + found.rss_bytes
        return Usage(cpu_s, rss_bytes)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The daemon's log events of one name, oldest first."""
        found: list[dict[str, Any]] = []
        for path in sorted((self.data / "logs").glob("clawbus.log*"), reverse=True):
            for line in path.read_text(encoding="utf-8").splitlines():
                if f'"{name}"' in line:
                    event = json.loads(line)
                    found += [event] if event.get("event") == name else []
        return found

    def tail(self, lines: int = 20) -> str:
        """The end of what the daemon said."""
        with suppress(OSError):
            return "\n".join(self._output.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        return ""

    def _is_ready(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise BenchFailed(f"the daemon ended with {self._daemon.returncode}:\n{self.tail()}")
        # Not `status`, which looks into sessions: asking must cost the daemon nothing that is measured.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.data / "control.sock")) != 0:
                return False
            probe.settimeout(_STOP_S)
            probe.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            return b" 200 " in probe.makefile("rb").readline()

    def _end_agents(self) -> None:
        end_processes(self.data / "run" / "process")
        if self._runtime != "docker":
            return
        with suppress(ClawbusError):  # without a registry it never came so far as to start a container
            install_id = status_report(self.data, SystemClock())["install_id"]
            if install_id:
                end_containers(str(install_id))


def _environment() -> dict[str, str]:
    """The caller's, without what would change the configuration or speak to a service manager."""
    left_out = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM")
    return {
        name: value for name, value in os.environ.items() if not name.startswith("CLAWBUS_") and name not in left_out
    }
