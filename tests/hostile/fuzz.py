"""The fuzzer: it does with mutated databases all that the host does with a container's files.

Run `python -m tests.hostile.fuzz --files 100000 --seed 1`. Each worker is a process with a memory limit and a deadline, so
that a crash, a hang and growth are noticed and reported. A case is a seed and a number: `--seed 1 --case 4711` repeats one.
A failing case's files are kept in --keep. Ctrl-C or SIGTERM ends the run early and prints the figures so far.
"""

import argparse
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.hostile.fuzz_case import Bench, scratch

ROOT: Final = Path(__file__).parents[2]
SILENT_S: Final = 60.0  # a worker that says nothing for this long hangs
PROGRESS: Final = 5000  # files between two lines of progress
WORKING: Final = 100  # also report this many files, to show soon after the start that it works
GROWTH_BYTES: Final = 96 * 1024**2  # how much a worker may grow; more fails the run


@dataclass(slots=True)
class Totals:
    """What a run found. `slowest` is in seconds, `growth` and `peak` are bytes."""

    files: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    failures: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    slowest: float = 0.0
    growth: int = 0
    peak: int = 0


class Worker:
    """A process that runs cases `first`, `first + step` and so on below `end`. It is restarted after a case that ends it."""

    def __init__(
        self, seed: int, first: int, step: int, end: int, totals: Totals, module: str = "tests.hostile.fuzz_case"
    ) -> None:
        self._module = module
        self._seed, self._next, self._step, self._end = seed, first, step, end
        self._totals = totals
        self._folder = Path(
            tempfile.mkdtemp(prefix="clawbus-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the worker
        self._case: int | None = None
        self._warm: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.heard, self.spoke = 0.0, False

    def start(self) -> bool:
        """Start the process, or start it again. Return False when no case is left."""
        if self._next >= self._end:
            return False
        for item in self._folder.iterdir():
            shutil.rmtree(item)
        command = [sys.executable, "-m", self._module, str(self._folder)]
        command += [str(number) for number in (self._seed, self._next, self._step, self._end)]
        # In a session of its own, so that a terminal's Ctrl-C reaches only us: in a worker it would fail a case.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, cwd=ROOT, start_new_session=True
        )
        self.heard, self.spoke, self._warm = time.monotonic(), False, None
        return True

    def read(self) -> bool:
        """Read one line of output. Return False at its end."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.heard, self.spoke = time.monotonic(), True
        if not line:
            return False
        said = json.loads(line)
        if "begin" in said:
            self._case = said["begin"]
        else:
            self._note(said)
        return True

    def hangs(self, silent_s: float) -> bool:
        """Return whether it has been silent for too long. Allow at least SILENT_S for the interpreter to start."""
        return time.monotonic() - self.heard > (silent_s if self.spoke else max(silent_s, SILENT_S))

    def end_hung(self, silent_s: float) -> None:
        """Kill the process, and count that as a failure of its case. Raise RuntimeError if it was in no case."""
        self._reap()
        if self._case is None:
            raise RuntimeError("a worker hung outside any case")
        self._fail(self._case, f"a worker said nothing for {silent_s:g} s")

    def close(self) -> None:
        self._reap()
        self._errors.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _reap(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _note(self, said: dict[str, Any]) -> None:
        totals = self._totals
        self._case, self._next = None, said["end"] + self._step
        totals.files += 1
        if totals.files == WORKING or totals.files % PROGRESS == 0:
            print(f"{totals.files} files, {len(totals.failures)} failed", file=sys.stderr, flush=True)
        totals.outcomes.update(f"{name}: {outcome}" for name, outcome in said["outcomes"].items())
        totals.slowest = max(totals.slowest, said["seconds"])
        totals.peak = max(totals.peak, said["resident"])
        if said["failure"]:
            totals.failures.append((said["end"], said["mutation"], said["failure"]))
        if said["end"] // self._step % 200 == 199:
            # A worker's first 200 cases fill its caches; after that it must not grow.
            self._warm = self._warm or said["resident"]
            totals.growth = max(totals.growth, said["resident"] - self._warm)

    def ended(self) -> None:
        """Wait for a process whose output has ended. If it died in a case, count that; raise RuntimeError if in none."""
        assert self.process is not None
        code = self.process.wait()
        self._reap()
        if self._case is not None:
            self._errors.seek(0)
            last = self._errors.read()[-2000:].decode("utf-8", "replace")
            self._fail(self._case, f"the interpreter ended with {code}: {last}")
        elif code:
            raise RuntimeError(f"a worker ended with {code} outside any case")

    def _fail(self, case: int, why: str) -> None:
        self._totals.files += 1
        self._totals.failures.append((case, "?", why))
        self._next, self._case = case + self._step, None


def fuzz(files: int, seed: int, workers: int, keep: Path | None = None, over: threading.Event | None = None) -> Totals:
    """Run cases 0 to `files` - 1 of a seed, or fewer if `over` is set before the end."""
    totals = Totals()
    attend([Worker(seed, first, workers, files, totals) for first in range(workers)], over=over)
    if keep is not None and totals.failures:
        with scratch() as folder:
            bench = Bench(folder)
            for index, _, _ in totals.failures[:100]:
                bench.keep(keep / f"{seed}-{index}", seed, index)
    return totals


def attend(workers: list[Worker], silent_s: float = SILENT_S, over: threading.Event | None = None) -> None:
    """Run the workers until all cases are done, or until `over` is set: the cases under way then do not count."""
    try:
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                _register(selector, worker)
            while selector.get_map() and not (over and over.is_set()):
                for key, _ in selector.select(min(1.0, silent_s)):
                    if not key.data.read():
                        selector.unregister(key.fileobj)
                        key.data.ended()
                        _register(selector, key.data)
                for key in list(selector.get_map().values()):
                    if key.data.hangs(silent_s):
                        selector.unregister(key.fileobj)
                        key.data.end_hung(silent_s)
                        _register(selector, key.data)
    finally:
        for worker in workers:
            worker.close()


def _register(selector: selectors.BaseSelector, worker: Worker) -> None:
    if worker.start():
        assert worker.process is not None
        assert worker.process.stdout is not None
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)


def table(totals: Totals, seed: int, seconds: float) -> str:
    """Return what to print about a run."""
    lines = [f"{totals.files} files, seed {seed}, {seconds:.0f} s, {totals.files / max(seconds, 0.001):.0f} a second"]
    lines += [f"  {name:<48}{count:>9}" for name, count in sorted(totals.outcomes.items())]
    lines.append(
        f"  slowest case {totals.slowest:.2f} s, largest worker {totals.peak / 1e6:.0f} MB, growth {totals.growth / 1e6:.1f} MB"
    )
    for index, mutation, why in totals.failures:
        lines.append(f"FAILED case {index} ({mutation}): {why}")
        lines.append(f"  again: python -m tests.hostile.fuzz --seed {seed} --case {index}")
    if totals.growth > GROWTH_BYTES:
        lines.append(f"FAILED: a worker grew by more than {GROWTH_BYTES / 1e6:.1f} MB")
    lines.append(f"fuzz: {totals.files} files, {len(totals.failures)} failed")
    return "\n".join(lines)


def once(seed: int, index: int) -> int:
    """Run one case in this process, so that a debugger sees it."""
    with scratch() as folder:
        result = Bench(folder).run(seed, index)
    print(f"case {index} of seed {seed}: {result.mutation}")
    for name, outcome in result.outcomes.items():
        print(f"  {name:<30}{outcome}")
    print(f"{result.seconds:.2f} s: {result.failure or 'no promise broken'}")
    return 1 if result.failure else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", type=int, help="only this one, in this process")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where failing cases are kept")
    options = parser.parse_args()
    if options.case is not None:
        return once(options.seed, options.case)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell left SIGINT ignored
        signal.signal(number, lambda *_: over.set())
    began = time.monotonic()
    totals = fuzz(options.files, options.seed, options.workers, options.keep, over)
    print(table(totals, options.seed, time.monotonic() - began))
    return 1 if totals.failures or totals.growth > GROWTH_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
