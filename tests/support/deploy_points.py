"""The durable steps of a deploy, counted in real releases, and deaths at them.

`armed` is code for the end of a file of a release: the processes of that release that serve a slot or run `deploy` then
write down each step before and after it, and at the one that a trial names they kill who is to die: themselves or another
process. A point is `WHO STEP:PHASE`, with WHO `old`, `new` or `tool`. The steps are found, not listed: each state of slots,
each transaction, each link of a slot, each change of the folder's lock. What else waits for a disk (fsync) is written down
by its place, so that a new durable step cannot stay unseen.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from daemon.core.slots import SlotState
from daemon.deploy import releases, state_file
from daemon.store import data_folder
from tests.support.crash_points.points import Points

_ROOT: Final = Path(__file__).parents[2]
_TRIAL: Final = "trial.json"
_PASSED: Final = "passed"
PHASES: Final = ("before", "after")
VICTIMS: Final = ("tool", "old", "new")
FILE: Final = "daemon/deploy/state_file.py"  # every process of a deploy imports it


def armed(folder: Path, name: str) -> str:
    """Code for the end of FILE, which arms the points; `name` makes another release of it."""
    return f"""
import sys as _sys
_sys.path.append({str(_ROOT)!r})  # behind the release's own packages
from tests.support.deploy_points import arm as _arm
_arm({str(folder)!r})  # release {name}
"""


@dataclass(frozen=True, slots=True)
class Death:
    """Who is killed at which point."""

    point: str
    victim: str

    def __str__(self) -> str:
        return f"{self.victim} killed at {self.point}"


class Trials:
    """A test's side: names the deaths of the next deploy, and reads what its processes passed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def begin(self, old: str, new: str, deaths: Sequence[Death] = ()) -> None:
        """Count from now on. `old` and `new` are slots; the deaths come in this order."""
        for name in (_PASSED, *(path.name for path in self.folder.glob("fired-*"))):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "tool.pid").unlink(missing_ok=True)
        trial = {"who": {old: "old", new: "new"}, "deaths": [[one.point, one.victim] for one in deaths]}
        fresh = self.folder / "trial.new"
        fresh.write_text(json.dumps(trial))
        fresh.replace(self.folder / _TRIAL)

    def end(self) -> list[str]:
        """Count no longer; return the points that were passed, in their order."""
        (self.folder / _TRIAL).unlink()
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / _PASSED).read_text().splitlines()
        return []

    def is_passed(self, point: str) -> bool:
        """Return whether a process stood at the point, and did not die there."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / _PASSED).read_text().splitlines()
            return point in lines and f"{point} killed {point.partition(' ')[0]}" not in lines
        return False

    def fired(self) -> int:
        """Return how many of the deaths have happened."""
        return len(list(self.folder.glob("fired-*")))


def arm(folder: str) -> None:
    """Patch this process, if it serves a slot or begins a deploy."""
    words = sys.argv[1:]
    if "serve" in words and "--slot" in words:
        party = words[words.index("--slot") + 1]
    elif "deploy" in words and "start" in words:
        party = "tool"
    else:
        return
    points = DeployPoints(Path(folder), party)
    points.transactions()
    points.states()
    points.wrap(releases.Releases, "link", "releases.link")
    points.wrap(data_folder, "take_lock", "data_folder.take_lock")
    points.wrap(data_folder, "write_holder", "data_folder.write_holder")
    points.wrap(data_folder.DataFolder, "close", "data_folder.close")
    points.syncs()


class DeployPoints(Points):
    """The points of one process of a deploy. `party` is its slot, or `tool`."""

    def __init__(self, folder: Path, party: str) -> None:
        super().__init__(folder, party)
        (folder / f"{party}.pid").write_text(str(os.getpid()))
        self._passed = folder / _PASSED

    def step(self, label: str) -> str:
        """Return the step's name: each is passed once in a deploy, or its first time is meant."""
        return label

    def at(self, step: str, phase: str) -> None:
        """The process stands at this point now."""
        trial = self._trial()
        if trial is None:
            return
        point = f"{trial['who'].get(self._party, self._party)} {step}:{phase}"
        self._write(point)
        number = len(list(self._folder.glob("fired-*")))
        if trial["deaths"][number : number + 1] and trial["deaths"][number][0] == point:
            with contextlib.suppress(FileExistsError):
                (self._folder / f"fired-{number}").touch(exist_ok=False)
                self._write(f"{point} killed {trial['deaths'][number][1]}")
                self._kill(trial["who"], trial["deaths"][number][1])

    def states(self) -> None:
        """Each write of the state is a step, named by what the state says and, for a daemon's start or stop, by that."""
        original = state_file.write_state

        @functools.wraps(original)
        def stepped(data_dir: Path, state: SlotState) -> None:
            step = f"{_writer()}{_said(state)}"
            self.at(step, "before")
            original(data_dir, state)
            self.at(step, "after")

        state_file.write_state = stepped

    def syncs(self) -> None:
        """Write down who waits for the disk."""
        original = os.fsync

        def fsync(descriptor: Any) -> None:
            if self._trial() is not None:
                self._write(f"{self._party} fsync {_place()}")
            original(descriptor)

        os.fsync = fsync

    def _trial(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self._folder / _TRIAL).read_text())
        return None

    def _write(self, line: str) -> None:
        with self._passed.open("a") as file:
            file.write(f"{line}\n")

    def _kill(self, who: Mapping[str, str], victim: str) -> None:
        party = next((slot for slot, name in who.items() if name == victim), victim)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self._folder / f"{party}.pid").read_text()), signal.SIGKILL)


def _said(state: SlotState) -> str:
    deploy = state.deploy
    if deploy is None:
        return "none"
    if deploy.is_over:
        return deploy.state + (".reported" if deploy.reported else "")
    reached = [f"{one.name}.{one.status}" for one in deploy.gates if one.status != "pending"]
    return reached[-1] if reached else "begun"


def _writer() -> str:
    frame = sys._getframe(2)
    return f"{frame.f_code.co_name}." if frame.f_globals["__name__"] == "daemon.app.lease" else ""


def _place() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals["__name__"] == "schema.durable_files":
        frame = frame.f_back
    return f"{frame.f_globals['__name__'].rpartition('.')[2]}.{frame.f_code.co_name}"
