"""The demo's stage: a temporary folder with a configuration, a daemon in it, and the way to speak to it.

Whatever happens, `close` ends the daemon and the agents that it started, and nothing else: processes by their recorded
identity, containers by this installation's label.
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
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from daemon.api.client import ControlClient
from daemon.config.models import DEFAULT_IMAGE
from daemon.core.clock import SystemClock
from daemon.core.session_verbs import KillSession
from daemon.inspect.session_report import session_report
from daemon.inspect.status_report import status_report
from demo.leftovers import end_containers, end_processes
from schema.errors import ClawbusError

READY_S: Final = 60.0
STOP_S: Final = 30.0
POLL_S: Final = 0.05
_SOCKET_BYTES: Final = 100

T = TypeVar("T")


class DemoFailed(Exception):
    """The demo cannot go on; the text says why, for people."""


def poll(what: str, look: Callable[[], T | None], timeout_s: float) -> T:
    """What `look` finds, asked until it finds something. DemoFailed after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise DemoFailed(f"waited {timeout_s:g} s for {what}")
        time.sleep(POLL_S)


def free_port() -> int:
    """A port of the loopback that nobody has at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Stage:
    """One demo's folder and daemon. Use as a context manager."""

    def __init__(self, runtime: str, *, keep: bool) -> None:
        self.runtime = runtime
        self.root = _make_folder()
        self.data = self.root / "data"
        self.config = self.root / "clawbus.toml"
        self._keep = keep
        self._daemon: subprocess.Popen[bytes] | None = None
        self._stderr = self.root / "daemon.log"
        self._clawbus = Path(sys.executable).with_name("clawbus")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def client(self) -> ControlClient:
        """A client of the daemon's control socket."""
        return ControlClient(self.data / "control.sock")

    def clawbus(self, *arguments: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Run the real command with --json; returns its `result`. DemoFailed with its error and fix otherwise."""
        command = [str(self._clawbus), *arguments, "--json", "--config", str(self.config)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=_environment(), check=False
        )
        try:
            envelope = cast(Mapping[str, Any], json.loads(done.stdout))
        except ValueError:
            raise DemoFailed(f"{' '.join(command)} answered no JSON: {done.stdout}{done.stderr}") from None
        if envelope.get("ok") is not True or done.returncode != 0:
            error = cast(Mapping[str, Any], envelope.get("error") or {})
            fix = f"\n  fix: {envelope['fix']}" if envelope.get("fix") else ""
            raise DemoFailed(f"clawbus {arguments[0]}: {error.get('code')}: {error.get('message')}{fix}")
        return cast(dict[str, Any], envelope["result"])

    def start(self) -> int:
        """Start the daemon and wait until it is ready; returns its process id."""
        with self._stderr.open("ab") as log:
            self._daemon = subprocess.Popen(
                [str(self._clawbus), "serve", "--config", str(self.config), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the demo, which then ends the daemon in order
            )
        poll("the daemon to be ready", self._is_ready, READY_S)
        return self._daemon.pid

    def session(self, agent: str, session: str) -> dict[str, Any]:
        """The report about one session, from its files."""
        return session_report(self.data, agent, session, SystemClock())

    def tail(self, lines: int = 40) -> str:
        """The end of what the daemon said."""
        with suppress(OSError):
            return "\n".join(self._stderr.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        return ""

    def clean_up(self) -> str:
        """The commands that remove what stays after `close`, on one line."""
        steps = ["make clean"]
        if self.runtime == "docker":
            steps.insert(0, f"docker image rm {DEFAULT_IMAGE}")
        if self._keep:
            steps.insert(0, f"rm -r {self.root}")
        return " && ".join(steps)

    def close(self) -> None:
        """End the agents, the daemon and what is left of either; then remove the folder, unless it is to be kept."""
        with ExitStack() as steps:  # each is done, whatever comes of the ones before it; the last one first
            steps.callback(self._clear_folder)
            steps.callback(self._end_leftovers)
            steps.callback(self._stop_daemon)
            steps.callback(self._stop_agents)

    def _is_ready(self) -> bool | None:
        if self._daemon is None or self._daemon.poll() is not None:
            raise DemoFailed("the daemon ended before it was ready")
        try:
            with self.client() as client:
                return True if client.status() else None
        except ClawbusError:
            return None

    def _end_leftovers(self) -> None:
        end_processes(self.data / "run" / "process")
        if self.runtime != "docker":
            return
        try:
            install_id = status_report(self.data, SystemClock())["install_id"]
        except ClawbusError:
            return  # it never came so far as to start a container
        if install_id:
            end_containers(str(install_id))

    def _clear_folder(self) -> None:
        if self._keep:
            print(f"kept: {self.root}")
        else:
            shutil.rmtree(self.root, ignore_errors=True)

    def _stop_agents(self) -> None:
        """Through the daemon: a restart spares agents by design, so they must be ended by name."""
        if self._daemon is None or self._daemon.poll() is not None:
            return
        try:
            with self.client() as client:
                for one in status_report(self.data, SystemClock())["incarnations"]:
                    client.execute(KillSession(one["agent"], one["session"], reason="the demo is over"))
        except ClawbusError as error:
            print(f"could not end the agents through the daemon ({error}); ending them directly")

    def _stop_daemon(self) -> None:
        if self._daemon is None or self._daemon.poll() is not None:
            return
        self._daemon.send_signal(signal.SIGTERM)
        try:
            self._daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            print(f"the daemon did not end within {STOP_S:g} s of SIGTERM; killing it")
            self._daemon.kill()
            self._daemon.wait()


def _make_folder() -> Path:
    """In the usual temporary folder, or in /tmp where that has too long a name for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="clawbus-demo-"))
    if len(os.fsencode(folder)) > _SOCKET_BYTES - len("/data/control.sock"):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="clawbus-demo-", dir="/tmp"))
    return folder


def _environment() -> dict[str, str]:
    """The caller's, without what would change the demo's configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CLAWBUS_")}
