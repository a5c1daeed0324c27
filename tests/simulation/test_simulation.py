"""A bounded slice of the simulation in every test run; `make soak` and CLAWBUS_SIMULATION_SEEDS run more.

The slice runs in processes of its own: the simulation takes over the clock, threads and files of the process it is in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS_VARIABLE = "CLAWBUS_SIMULATION_SEEDS"


def simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


def test_every_invariant_holds_over_a_slice_of_seeds() -> None:
    seeds = os.environ.get(SEEDS_VARIABLE, "150")
    found = simulate("--first", "1", "--seeds", seeds, "--workers", str(min(2, os.cpu_count() or 1)), "--keep-going")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1].startswith(f"simulation: {seeds} seeds")


@pytest.mark.parametrize("holds", ["READY", "command 1 "])
def test_a_seed_repeats_itself_to_the_last_line(holds: str) -> None:
    """Also one in which commands work on the files, each in a thread, while no daemon runs."""
    traces = ((seed, simulate("--seed", str(seed), "--trace")) for seed in range(1, 50))
    seed, first = next((seed, trace) for seed, trace in traces if holds in trace.stdout)
    second = simulate("--seed", str(seed), "--trace", hash_seed="17")
    assert first.returncode == 0, first.stdout + first.stderr
    assert len(first.stdout.splitlines()) > 100
    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    "mutation",
    [
        "a signal counts as an exit",
        "send before the intent",
        "status without history",
        "no dedupe",
        "a kill is answered before the exit",
    ],
)
def test_it_notices_a_protection_that_is_gone(mutation: str) -> None:
    """All of them: `python -m tests.simulation.mutations`."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.simulation.mutations", mutation, "--limit", "40"],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert "seeds  seed" in found.stdout


def test_each_mutation_still_fits_the_product() -> None:
    """Without a seed each is only put in place and taken out again."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.simulation.mutations", "--limit", "0"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert found.stderr == ""
    assert found.stdout.count("NOT NOTICED") == len(found.stdout.splitlines()) > 50
