"""Two slots of real daemons from real releases, each started again when it ends, as systemd would."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from daemon.core.slots import SLOTS, SlotState
from daemon.deploy.releases import Releases
from daemon.deploy.standby_client import StandbyClient
from daemon.deploy.state_file import read_state
from tests.support.daemon import RealDaemon, eventually
from tests.support.releases import variant

_AGAIN_S: Final = 0.2
_MAKE_S: Final = 600.0  # a loaded machine compiles and syncs thousands of files for minutes
_QUICK: Final[Mapping[str, float]] = MappingProxyType(
    {
        "warm_s": 0.3, "warm_limit_s": 12.0, "probe_s": 60.0, "cutover_s": 4.0, "unready_s": 6.0, "bake_s": 1.5,
        "bake_check_s": 0.1, "slow_s": 1.0, "cooldown_s": 0.0,
    }
)  # fmt: skip
# For tests that are not about the limits: a loaded machine passes these gates too.
PATIENT: Final[Mapping[str, float]] = MappingProxyType(
    {"warm_limit_s": 120.0, "probe_s": 180.0, "cutover_s": 60.0, "unready_s": 12.0, "slow_s": 60.0}
)


class SlotHost:
    """One data folder and two slots. `bus` has its configuration, its command line and its socket."""

    def __init__(self, tables: str = "", limits: Mapping[str, float] | None = None) -> None:
        self.bus = RealDaemon()
        self.root = self.bus.root / "opt"
        self._text = self.bus.config.read_text(encoding="utf-8") + tables
        self._limits = {**_QUICK, **(limits or {})}
        self.configure()
        try:
            made = self.bus.cli("release", "make", timeout_s=_MAKE_S).result
        except BaseException:
            self._remove()
            raise
        self.first = self.root / "releases" / made["id"]
        self.bus.command = str(self.first / "bin" / "clawbus")
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._kept: set[str] = set()
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="like systemd", daemon=True)
        self._keeper.start()

    def configure(self, **limits: float) -> None:
        """Write the configuration, with these limits in the place of the host's."""
        keys = "".join(f"{name} = {value}\n" for name, value in {**self._limits, **limits}.items())
        text = f'{self._text}\n[deploy]\nroot = "{self.root}"\n{keys}'
        self.bus.config.write_text(text, encoding="utf-8")

    def variant(
        self, edit: str = "", file: str = "daemon/cli/version.py", manifest: Mapping[str, Any] | None = None
    ) -> Path:
        """Another release: the first one with these lines at the end of a file, and another manifest."""
        return variant(self.first, edit, file=file, manifest=manifest)

    # --- slots

    def begin(self) -> None:
        """Both slots from the first release; returns when blue serves and green stands by."""
        for slot in SLOTS:
            assert self.bus.cli("release", "link", slot, self.first.name).ok
        self.start("blue")
        eventually("blue serves", lambda: self.state().serving == "blue" and self.bus.listens(), 120)
        self.start("green")
        self.wait_standby("green")

    def start(self, slot: str) -> None:
        """Start a slot's daemon, and again whenever it ends."""
        with self._lock:
            self._kept.add(slot)
            self._launch(slot)

    def _launch(self, slot: str) -> None:
        with (self.bus.root / f"{slot}.log").open("ab") as log:
            self._processes[slot] = subprocess.Popen(
                [str(self.root / "slots" / slot / "bin" / "clawbus"), "serve", "--slot", slot, "--config", str(self.bus.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _keep(self) -> None:
        while not self._over.wait(_AGAIN_S):
            with self._lock:
                for slot in self._kept:
                    if self._processes[slot].poll() is not None:
                        self._launch(slot)

    def kill(self, slot: str, *, again: bool = True) -> None:
        """SIGKILL a slot's daemon; without `again` it stays down."""
        with self._lock:
            if not again:
                self._kept.discard(slot)
            self._processes[slot].kill()
            self._processes[slot].wait(timeout=60)

    def terminate(self, slot: str, *, again: bool = True) -> int:
        """SIGTERM; return the exit code. It is started again, unless without `again`."""
        with self._lock:
            if not again:
                self._kept.discard(slot)
            process = self._processes[slot]
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=60)

    def stop(self, slot: str) -> None:
        """SIGSTOP: it holds what it holds, and does nothing."""
        self._processes[slot].send_signal(signal.SIGSTOP)

    def pid(self, slot: str) -> int:
        return self._processes[slot].pid

    def state(self) -> SlotState:
        return read_state(self.bus.data)

    def wait_standby(self, slot: str, release: str | None = None) -> dict[str, Any]:
        """Return what the slot's standby says once it answers, and runs this release."""

        def look() -> dict[str, Any] | None:
            found = StandbyClient(self.bus.data, slot).look()
            return found if found is not None and (release is None or found["release"].startswith(release)) else None

        return eventually(f"standby {slot}", look, 120)

    def ready(self) -> None:
        """The slot that is recorded answers, and the other stands by."""

        def answers() -> bool:
            with contextlib.suppress(Exception):
                source = self.bus.status()["live"]["source"]
                return (source["slot"], source["release"]) == (self.state().serving, self.state().release)
            return False

        eventually("the recorded slot answers", answers, 120)
        self.wait_standby("green" if self.state().serving == "blue" else "blue")

    def releases(self) -> Releases:
        return Releases(self.root)

    def log(self, slot: str) -> str:
        path = self.bus.root / f"{slot}.log"
        return path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""

    def close(self) -> None:
        """End all of it."""
        self._over.set()
        self._keeper.join()
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait(timeout=60)
        self._remove()

    def _remove(self) -> None:
        for folder, _, _ in os.walk(self.root):
            Path(folder).chmod(0o755)
        self.bus.close()
