"""`make soak MINUTES=10`: everything that strikes, and one table of what came of it.

Four phases: the simulation on every core, for so many minutes; real processes beside real containers (with
CLAWBUS_FAULTS_DOCKERD=1 of a private dockerd that is struck too), for as many again; the errno walk, for as many; then the
fuzzer. Each tells its figures as it ends. Ctrl-C or SIGTERM ends a phase early; it heals, counts and reports all the same. Exit code 1 when anything was
lost, doubled or found broken.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.conftest import base_image_name

# After the time is over a part may take this long to heal, to count and to take its containers away.
_GRACE_S: Final = 420.0
_ROWS: Final = (
    "seeds", "steps", "sigkills", "kills", "freezes", "dockerd_restarts", "files", "accepted", "answered", "questions",
    "dead_lettered", "repeated_in_doubt", "lost", "double_receipts", "trials", "fired", "seconds", "failed", "skipped",
)  # fmt: skip


@dataclass(slots=True)
class Part:
    """One process of the soak, and its figures once it is over."""

    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[str] | None = None
    output: IO[str] | None = None
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    problems: list[str] = field(default_factory=list[str])

    def start(self, logs: Path) -> None:
        self.output = (logs / f"{self.name}.json").open("w+", encoding="utf-8")
        with (logs / f"{self.name}.err").open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.command], stdout=self.output, stderr=errors, text=True,
                start_new_session=True,
            )  # fmt: skip

    def end(self, timeout_s: float, logs: Path) -> None:
        """Wait for it, and read what it found."""
        assert self.process is not None
        assert self.output is not None
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
            self.problems.append(f"it did not end within {timeout_s:g} s")
        self.output.seek(0)
        text = self.output.read()
        self.output.close()
        try:
            self.figures = _READERS[self.name](text)
        except (ValueError, KeyError, IndexError) as error:
            self.problems.append(f"it said nothing that can be read ({error}): {_tail(logs / f'{self.name}.err')}")
        self.problems += self.figures.pop("problems", [])
        if code and not self.problems:
            self.problems.append(f"exit code {code}: {_tail(logs / f'{self.name}.err')}")


def _simulation(text: str) -> dict[str, Any]:
    found = json.loads(text)
    failed = [f"seed {seed}: {findings}" for seed, findings in found["failed"].items()]
    return {
        "seeds": found["seeds"], "steps": found["steps"], "accepted": found["accepted"], "failed": len(failed),
        "repeated_in_doubt": found["doubles"], "seconds": round(found["wall_s"], 1), "problems": failed[:20],
    }  # fmt: skip


def _fuzz(text: str) -> dict[str, Any]:
    last = text.strip().splitlines()[-1].split()  # fuzz: N files, M failed
    failed = [line for line in text.splitlines() if line.startswith("FAILED")]
    return {"files": int(last[1]), "failed": int(last[3]), "problems": failed[:20]}


def _errnos(text: str) -> dict[str, Any]:
    last = text.strip().splitlines()[-1].split()  # errnos: N trials, N fired, N failed, N problems at the end
    failed = [line for line in text.splitlines() if line.startswith("FAILED")]
    return {"trials": int(last[1]), "fired": int(last[3]), "failed": int(last[5]), "problems": failed[:20]}


_READERS: Final = {
    "simulation": _simulation, "processes": json.loads, "containers": json.loads, "errnos": _errnos, "fuzz": _fuzz,
}  # fmt: skip


def phases(minutes: float, seed: int, fuzz: int) -> list[tuple[list[Part], float]]:
    """What runs side by side, one list after the other, and the seconds that each may take before it must heal."""
    time_and_seed = ("--minutes", str(minutes), "--seed", str(seed))
    simulation = ("tests.simulation.soak", "--minutes", str(minutes), "--first", str(seed), "--json")
    real = [
        Part("processes", ("tests.faults.soak", "processes", *time_and_seed)),
        Part("containers", ("tests.faults.soak", "containers", *time_and_seed, "--base", base_image_name())),
    ]
    last = Part("fuzz", ("tests.hostile.fuzz", "--files", str(fuzz), "--seed", str(seed)))
    walk = Part("errnos", ("tests.faults.errnos", "--seconds", str(minutes * 60), "--seed", str(seed)))
    timed = [([Part("simulation", simulation)], minutes * 60), (real, minutes * 60), ([walk], minutes * 60)]
    return [*timed, ([last], 24 * 3600.0)] if fuzz else timed


def run(parts: list[Part], seconds: float) -> None:
    """All of them at once; a signal to us is passed on, and they end in order."""
    with tempfile.TemporaryDirectory(prefix="clawbus-soak-") as folder:
        logs = Path(folder)
        for part in parts:
            part.start(logs)

        def end_early(*_: object) -> None:
            for part in parts:
                if part.process is not None and part.process.poll() is None:
                    part.process.send_signal(signal.SIGINT)

        previous = {number: signal.signal(number, end_early) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            deadline = time.monotonic() + seconds + _GRACE_S
            for part in parts:
                part.end(max(1.0, deadline - time.monotonic()), logs)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def table(parts: list[Part]) -> str:
    """One column a part."""
    lines = ["".join([f"{'':<20}", *(f"{part.name:>24}" for part in parts)])]
    lines += [
        "".join([f"{row:<20}", *(f"{_text(part.figures.get(row)):>24}" for part in parts)])
        for row in _ROWS
        if any(row in part.figures for part in parts)
    ]
    lines += [f"PROBLEM {part.name}: {problem}" for part in parts for problem in part.problems]
    lost = sum(part.figures.get("lost", 0) for part in parts)
    doubled = sum(part.figures.get("double_receipts", 0) for part in parts)
    failed = sum(len(part.problems) for part in parts)
    lines.append(f"soak: lost {lost}, double receipts {doubled}, problems {failed}")
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{str(key)[:4]}:{count}" for key, count in value.items()) or "0"
    return str(value)


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--fuzz", type=int, default=100_000, help="files for the fuzzer, afterwards; 0 leaves it out")
    options = parser.parse_args()
    parts: list[Part] = []
    for side_by_side, seconds in phases(options.minutes, options.seed, options.fuzz):
        names = " and ".join(part.name for part in side_by_side)
        how_long = f"{options.fuzz} files" if seconds > options.minutes * 60 else f"{options.minutes:g} minutes"
        print(f"soak: {time.strftime('%H:%M:%S')} {names}, {how_long}, seed {options.seed}", flush=True)
        run(side_by_side, seconds)
        print(table(side_by_side), flush=True)  # now: whoever kills a later phase keeps what this one found
        parts += side_by_side
    print(table(parts))
    return 1 if any(part.problems for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
