"""One fuzz case, and the worker that runs many: a mutated outbound.db through everything that the host does with it.

Runs in a process of its own with limits on memory; whatever it prints on standard output is for `fuzz.py`.
"""

import faulthandler
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from daemon.store.session_files import SessionFiles
from schema.errors import ClawbusError
from schema.layout import OUTBOUND_DB
from schema.plain_file import ReadLimits
from tests.hostile.corpus import Pair, build
from tests.hostile.mutate import mutate
from tests.support.hostile_session import HostileSession, host_operations
from tests.support.invariants import session_violations
from tests.support.session_world import NOW

# Small, so that a case that meets one of them costs little.
LIMITS: Final = ReadLimits(
    max_file_bytes=4 * 1024**2, max_row_bytes=256 * 1024, deadline_s=0.5, max_read_bytes=8 * 1024**2
)
MEMORY_BYTES: Final = 1024**3
ALLOWED_S: Final = 0.5 + 5.0  # one operation: the deadline, a lock's wait, and a busy machine
LIVING: Final = ("collect", "sweep", "report", "life")  # while its container lives the host writes nothing in out/


class Failed(Exception):
    """A case that broke a promise; the text says which."""


@dataclass(slots=True)
class Result:
    """What one case came to."""

    index: int
    mutation: str
    outcomes: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0
    failure: str | None = None


class Bench:
    """A folder with a session as the host left it, put back for every case."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "s"
        session = HostileSession(self._root, LIMITS)
        for number in range(1, 8):
            session.accept(f"m{number}")
        session.say("queued", deliver_after=NOW + 1, seq=1)
        session.collect()
        self._inbound = session.files.folder.inbound_db
        self._kept = self._inbound.read_bytes()
        self.files = SessionFiles(self._root, LIMITS)
        self.corpus: list[Pair] = build()

    def run(self, seed: int, index: int) -> Result:
        """Mutate, let the host at it, check what is left."""
        what, database, journal = mutate(self.corpus, f"{seed}:{index}")
        result = Result(index, what)
        self._put_back()
        out = self.files.folder.outbox
        (out / OUTBOUND_DB).write_bytes(database)
        if journal is not None:
            (out / (OUTBOUND_DB + "-journal")).write_bytes(journal)
        names = {item.name for item in out.iterdir()}
        began = time.monotonic()
        try:
            for name, operation in host_operations(self.files, LIMITS, NOW + 1000).items():
                result.outcomes[name] = self._outcome(name, operation)
                if name in LIVING and (out / OUTBOUND_DB).read_bytes() != database:
                    raise Failed(f"{name} wrote outbound.db of a container that lives")
            strange = {item.name for item in out.iterdir()} - names
            if strange:
                raise Failed(f"the host made {sorted(strange)}")
            found = session_violations(self._root, hostile=True)
            if found:
                raise Failed("; ".join(found))
        except Failed as failure:
            result.failure = str(failure)
        result.seconds = time.monotonic() - began
        return result

    def keep(self, into: Path, seed: int, index: int) -> None:
        """Write a case's files where somebody can look at them."""
        _, database, journal = mutate(self.corpus, f"{seed}:{index}")
        into.mkdir(parents=True, exist_ok=True)
        (into / OUTBOUND_DB).write_bytes(database)
        if journal is not None:
            (into / (OUTBOUND_DB + "-journal")).write_bytes(journal)

    def _put_back(self) -> None:
        shutil.rmtree(self.files.folder.outbox)
        self.files.folder.outbox.mkdir()
        self._inbound.write_bytes(self._kept)
        self._inbound.with_name("inbound.db-journal").unlink(missing_ok=True)

    @staticmethod
    def _outcome(name: str, operation: Any) -> str:
        began = time.monotonic()
        try:
            found = operation()
        except ClawbusError as error:
            outcome = error.code
        except BaseException as error:
            raise Failed(f"{name}: {type(error).__name__}: {error}") from error
        else:
            outcome = "ok" if not _told(found) else "told"
        took = time.monotonic() - began
        if took > ALLOWED_S:
            raise Failed(f"{name} took {took:.1f} s")
        return outcome


def _told(found: Any) -> bool:
    """A report that says in words what it could not read."""
    errors = getattr(found, "errors", None) or (found[1] if isinstance(found, tuple) and len(found) == 2 else None)
    return isinstance(errors, list) and bool(errors)


def resident() -> int:
    """This process's memory, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where a durable commit costs nothing."""
    place = Path("/dev/shm")
    folder = (place if place.is_dir() else Path.cwd()) / f"clawbus-fuzz-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """`python -m tests.hostile.fuzz_case FOLDER SEED FIRST STEP END`: a line of JSON before each case, and one after."""
    folder, numbers = Path(sys.argv[1]), [int(text) for text in sys.argv[2:]]
    seed, first, step, end = numbers
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    bench = Bench(folder)
    for index in range(first, end, step):
        print(json.dumps({"begin": index}), flush=True)
        result = bench.run(seed, index)
        said = {"end": index, "mutation": result.mutation, "outcomes": result.outcomes, "seconds": result.seconds,
                "failure": result.failure, "resident": resident()}  # fmt: skip
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
