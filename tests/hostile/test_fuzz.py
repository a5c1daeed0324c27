"""The bounded slice of the fuzzer, and proof that it sees what it is there for."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from schema.errors import HostileFileError
from tests.hostile import fuzz_case
from tests.hostile.fuzz import GROWTH_BYTES, ROOT, Totals, Worker, attend, fuzz, table
from tests.hostile.fuzz_case import Bench
from tests.support.daemon import eventually

pytestmark = pytest.mark.faults

SEED = 3
FILES = 2000


def test_two_thousand_mutated_files_harm_nobody(tmp_path: Path) -> None:
    totals = fuzz(FILES, SEED, 2, tmp_path / "kept")
    assert totals.files == FILES
    assert not totals.failures, table(totals, SEED, 1)
    assert totals.growth < GROWTH_BYTES
    # The cases reach everything: files read as they are, refused, raced with, rolled back.
    for name in ("collect: ok", "collect: HOSTILE_FILE", "collect: READ_RACE", "finish: ok", "report: told"):
        assert totals.outcomes[name] > FILES / 100, table(totals, SEED, 1)


def test_a_crash_a_hang_and_a_broken_promise_are_named_and_the_rest_is_run() -> None:
    totals = Totals()
    attend([Worker(SEED, 0, 1, 5, totals, "tests.support.fuzz_stub")], silent_s=3.0)
    assert [(index, why.split(":")[0]) for index, _, why in totals.failures] == [
        (1, "the interpreter ended with -6"),
        (2, "a worker said nothing for 3 s"),
        (3, "a promise"),
    ]
    assert totals.files == 5
    assert "--seed 3 --case 1" in table(totals, SEED, 1)


def test_a_worker_that_hangs_outside_any_case_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started again it would hang again, for ever."""
    monkeypatch.setattr("tests.hostile.fuzz.SILENT_S", 0.5)
    with pytest.raises(RuntimeError, match="hung outside any case"):
        attend([Worker(SEED, 0, 1, 5, Totals(), "tests.support.fuzz_mute")], silent_s=0.5)


def test_growth_that_fails_a_run_is_named() -> None:
    assert "FAILED: a worker grew" in table(Totals(growth=GROWTH_BYTES + 1), SEED, 1)
    assert "FAILED" not in table(Totals(growth=GROWTH_BYTES), SEED, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_early_it_tells_what_it_did(number: signal.Signals) -> None:
    # As a shell's background process, which has SIGINT ignored, and as a terminal does it: the whole group is struck.
    command = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "tests.hostile.fuzz"]
    command += ["--files", "1000000", "--seed", "1", "--workers", "1"]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=said, stderr=errors, cwd=ROOT, start_new_session=True) as process:
            try:
                eventually("its first files are done", lambda: os.fstat(errors.fileno()).st_size, 60)
                os.killpg(process.pid, number)
                code = process.wait(30)
            finally:
                process.kill()
        said.seek(0)
        errors.seek(0)
        last = said.read().splitlines()[-1:]
        assert code == 0, errors.read()
        assert re.fullmatch(r"fuzz: [1-9]\d* files, 0 failed", "".join(last)), errors.read()


def _untyped(bench: Bench) -> object:
    raise KeyError("seq")


def _typed(bench: Bench) -> object:
    raise HostileFileError("as it should be")


def _writes(bench: Bench) -> object:
    (bench.files.folder.outbox / "outbound.db").write_bytes(b"")
    return SimpleNamespace()


def _leaves(bench: Bench) -> object:
    (bench.files.folder.outbox / "outbound.db-shm").touch()
    return SimpleNamespace()


def _breaks(bench: Bench) -> object:
    with bench.files.inbound() as db, db.transaction():
        db.execute("UPDATE messages_in SET status = 'completed' WHERE id = 'm1'")
    return SimpleNamespace()


@pytest.mark.parametrize(
    ("operation", "failure"),
    [
        (_typed, None),
        (_untyped, "collect: KeyError"),
        (_writes, "wrote outbound.db"),
        (_leaves, "the host made"),
        (_breaks, "m1"),
    ],
)
def test_what_breaks_a_promise_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: Callable[[Bench], object], failure: str | None
) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setattr(fuzz_case, "host_operations", lambda *_: {"collect": lambda: operation(bench)})
    found = bench.run(SEED, 1).failure
    assert (found is None) if failure is None else (failure in (found or "")), found


def test_a_case_is_the_same_every_time(tmp_path: Path) -> None:
    one, two = (Bench(tmp_path / name) for name in "ab")
    for index in range(5):
        assert one.run(SEED, index).outcomes == two.run(SEED, index).outcomes
        for bench, name in ((one, "1"), (two, "2")):
            bench.keep(tmp_path / name, SEED, index)
        assert (tmp_path / "1" / "outbound.db").read_bytes() == (tmp_path / "2" / "outbound.db").read_bytes()
