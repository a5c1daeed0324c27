"""Many seeds over several processes, until a number or a time is reached, and the figures of all of them.

.venv/bin/python -m tests.simulation.soak --minutes 10 --workers 2
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.simulation.run import SCOPES, Result, run_seed


@dataclass
class Totals:
    """The sum over seeds."""

    seeds: int = 0
    steps: int = 0
    callbacks: int = 0
    virtual_s: float = 0.0
    accepted: int = 0
    effects: int = 0
    doubles: int = 0
    wall_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter[str])
    failed: dict[int, list[str]] = field(default_factory=dict[int, list[str]])

    def add(self, result: Result) -> None:
        """One more seed."""
        self.seeds += 1
        self.steps += result.steps
        self.callbacks += result.callbacks
        self.virtual_s += result.virtual_s
        self.accepted += result.accepted
        self.effects += result.effects
        self.doubles += result.doubles
        self.counts.update(result.counts)
        if result.findings:
            self.failed[result.seed] = result.findings

    def report(self) -> str:
        """For people."""
        lines = [f"{kind:<28}{count:>10}" for kind, count in sorted(self.counts.items())]
        lines += [
            f"seeds {self.seeds}, steps {self.steps}, callbacks {self.callbacks}, virtual hours {self.virtual_s / 3600:.1f}",
            f"messages accepted {self.accepted}, effects {self.effects}, repeated in doubt {self.doubles}",
        ]
        if self.wall_s:
            lines.append(
                f"{self.wall_s:.1f} s: {self.seeds / self.wall_s:.1f} seeds/s, {self.steps / self.wall_s:.0f} steps/s"
            )
        for seed, findings in sorted(self.failed.items()):
            lines += [f"seed {seed} FAILED:", *(f"  {text}" for text in findings)]
            lines.append(f"  again: .venv/bin/python -m tests.simulation --seed {seed} --trace")
        lines.append(f"simulation: {self.seeds} seeds, {self.steps} steps, {len(self.failed)} failed")
        return "\n".join(lines)


def run_many(
    *, first: int, count: int | None, workers: int, seconds: float | None = None, keep_going: bool = False
) -> Totals:
    """Seeds `first`, `first + 1`, ... over processes; `count` None: until `seconds` are over."""
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    totals, pipes = Totals(), {}
    for number in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(theirs, first + number, workers, first, count, seconds), daemon=True
        )
        process.start()
        theirs.close()
        pipes[ours] = process
    try:
        _gather(pipes, totals, keep_going=keep_going)
    except KeyboardInterrupt:
        pass  # the figures so far are figures
    finally:
        for process in pipes.values():
            process.terminate()
            process.join()
    totals.wall_s = time.monotonic() - began
    return totals


def _gather(pipes: dict[Any, Any], totals: Totals, *, keep_going: bool) -> None:
    open_pipes: list[Any] = list(pipes)
    while open_pipes:
        for pipe in wait(open_pipes):
            assert isinstance(pipe, Connection)
            try:
                result: Result = pipe.recv()
            except EOFError:
                open_pipes.remove(pipe)
                continue
            totals.add(result)
            if result.findings and not keep_going:
                return


def _work(pipe: Connection, start: int, stride: int, first: int, count: int | None, seconds: float | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    SCOPES.install()
    gc.collect()
    gc.freeze()
    until = time.monotonic() + seconds if seconds is not None else None
    seed = start
    while (count is None or seed < first + count) and (until is None or time.monotonic() < until):
        pipe.send(run_seed(seed))
        seed += stride
    pipe.close()


def main() -> int:
    """The exit code: 0 when every invariant held."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.soak", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--first", type=int, default=int(time.time()) % 10**6 * 10**4, help="the first seed")
    parser.add_argument("--json", action="store_true", help="one JSON object with the figures")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # both end it early, also where a shell left SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    totals = run_many(
        first=arguments.first, count=None, workers=arguments.workers, seconds=arguments.minutes * 60, keep_going=True
    )
    print(json.dumps({**vars(totals), "counts": dict(totals.counts)}) if arguments.json else totals.report())
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
