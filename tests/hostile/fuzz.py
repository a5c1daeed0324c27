"""The fuzzer: `python -m tests.hostile.fuzz --files 100000 --seed 1`. Mutated databases through all that the host does.

Workers have their own process, memory limit and deadline, so that a crash, a hang and growth are seen and named. A case is
its seed and its number: `--seed 1 --case 4711` repeats one. A failing case's files are kept in --keep. Ctrl-C or SIGTERM ends
it early, with the figures so far.
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
SILENT_S: Final = 60.0  # a worker that says nothing for so long hangs
PROGRESS: Final = 5000
WORKING: Final = 100  # so many files are told of, too: soon after the start, that it works
GROWTH_BYTES: Final = 96 * 1024**2


@dataclass(slots=True)
class Totals:
    """What a run found."""

    files: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    failures: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    slowest: float = 0.0
    growth: int = 0
    peak: int = 0


class Worker:
    """One process with every n-th case, started again behind a case that ended it."""

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
        """Start, or start again; False when nothing is left to do."""
        if self._next >= self._end:
            return False
        for item in self._folder.iterdir():
            shutil.rmtree(item)
        command = [sys.executable, "-m", self._module, str(self._folder)]
        command += [str(number) for number in (self._seed, self._next, self._step, self._end)]
        # A session of its own: a terminal's Ctrl-C is for us, and in a worker it would be a case's failure.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, cwd=ROOT, start_new_session=True
        )
        self.heard, self.spoke, self._warm = time.monotonic(), False, None
        return True

    def read(self) -> bool:
        """One line, if there is one; False at the process's end."""
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
        """Whether it has been silent for too long. An interpreter that starts may take its time."""
        return time.monotonic() - self.heard > (silent_s if self.spoke else max(silent_s, SILENT_S))

    def hung(self, silent_s: float) -> None:
        """End it, and count that against its case."""
        self._reap()
        self._fail(f"a worker said nothing for {silent_s:g} s")

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
            # The first hundreds fill caches; from then on a worker stays as large as it is.
            self._warm = self._warm or said["resident"]
            totals.growth = max(totals.growth, said["resident"] - self._warm)

    def ended(self) -> None:
        """Its output is at its end: was that its own?"""
        assert self.process is not None
        code = self.process.wait()
        self._reap()
        if self._case is not None:
            self._errors.seek(0)
            last = self._errors.read()[-2000:].decode("utf-8", "replace")
            self._fail(f"the interpreter ended with {code}: {last}")
        elif code:
            raise RuntimeError(f"a worker ended with {code} outside any case")

    def _fail(self, why: str) -> None:
        if self._case is not None:
            self._totals.files += 1
            self._totals.failures.append((self._case, "?", why))
            self._next, self._case = self._case + self._step, None


def fuzz(files: int, seed: int, workers: int, keep: Path | None = None, over: threading.Event | None = None) -> Totals:
    """Run cases 0 to `files` - 1 of a seed, or fewer when it is over before."""
    totals = Totals()
    attend([Worker(seed, first, workers, files, totals) for first in range(workers)], over=over)
    if keep is not None and totals.failures:
        with scratch() as folder:
            bench = Bench(folder)
            for index, _, _ in totals.failures[:100]:
                bench.keep(keep / f"{seed}-{index}", seed, index)
    return totals


def attend(workers: list[Worker], silent_s: float = SILENT_S, over: threading.Event | None = None) -> None:
    """Run them until each has done its cases, or until it is over; the cases that are under way then do not count."""
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
                        key.data.hung(silent_s)
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
    """What a run came to, for people."""
    lines = [f"{totals.files} files, seed {seed}, {seconds:.0f} s, {totals.files / max(seconds, 0.001):.0f} a second"]
    lines += [f"  {name:<48}{count:>9}" for name, count in sorted(totals.outcomes.items())]
    lines.append(
        f"  slowest case {totals.slowest:.2f} s, largest worker {totals.peak / 1e6:.0f} MB, growth {totals.growth / 1e6:.1f} MB"
    )
    for index, mutation, why in totals.failures:
        lines.append(f"FAILED case {index} ({mutation}): {why}")
        lines.append(f"  again: python -m tests.hostile.fuzz --seed {seed} --case {index}")
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
