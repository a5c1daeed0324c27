"""Checks a database after a sweep: swept runs read as ended everywhere, and the list holds only live ones.

Changes nothing. It cannot see that a fresh run completes: that needs the server (`canary.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.inngest.database import Shape, read_database
from daemon.inngest.plan import Candidate, Plan, Scope, make_plan
from daemon.inngest.reading import read_runs, running_keys
from daemon.inngest.rows import Run
from daemon.inngest.truth import judge, listed_live
from daemon.inngest.values import Status
from daemon.maintenance.backup import Backup, read_contents
from schema.frozen import frozen
from schema.handles import Reader

if TYPE_CHECKING:
    from daemon.inngest.writing import Written


@frozen
class Verification:
    """What was verified. `wrong` is empty if everything is correct."""

    sampled: tuple[tuple[str, Status], ...]
    still_listed: dict[str, int]  # runs that are listed as running, by why they are left alone
    wrong: tuple[str, ...]

    def report(self) -> dict[str, object]:
        """Return the values that the command line shows."""
        return {
            "ok": not self.wrong,
            "sampled": [{"run_id": key, "status": str(status)} for key, status in self.sampled],
            "still_listed_as_running": self.still_listed,
            "wrong": list(self.wrong),
        }


def verify(path: Path, plan: Plan, scope: Scope, now_ms: int, backup: Backup | None, written: Written) -> Verification:
    """`backup`: compare the row counts with it too; None where others may write meanwhile. Errors as of opening."""

    def work(reader: Reader, shape: Shape) -> Verification:
        wrong = [f"quick_check: {row[0]}" for row in reader.all("PRAGMA quick_check(3)") if row[0] != "ok"]
        lost = scope.lost_before_ms
        running = set(running_keys(reader, shape, scheduled=lost is not None))
        wrong += [f"run {key} is still listed as running" for key in plan.keys if key in running]
        sample = _spread(plan.candidates, scope.sample)
        found = {run.key: run for run in read_runs(reader, shape, [one.run.key for one in sample])}
        wrong += [text for one in sample for text in _faults(one, found.get(one.run.key), now_ms, scope)]
        after = make_plan(read_runs(reader, shape, sorted(running)), scope, now_ms)
        wrong += [f"run {one.run.key} is a candidate again" for one in after.candidates]
        if backup is not None:
            wrong += _miscounted(reader, backup, written)
        sampled = tuple((key, judge(run, now_ms, scope.older_than_ms, lost).status) for key, run in found.items())
        return Verification(sampled, dict(Counter(str(why) for _, why in after.held)), tuple(wrong))

    return read_database(path, work)


def _spread(candidates: Sequence[Candidate], size: int) -> list[Candidate]:
    """Return a sample that is spread evenly, so that it includes every function."""
    if len(candidates) <= size:
        return list(candidates)
    return [candidates[index * len(candidates) // size] for index in range(size)]


def _faults(wanted: Candidate, run: Run | None, now_ms: int, scope: Scope) -> list[str]:
    key = wanted.run.key
    if run is None:
        return [f"run {key} is gone"]
    verdict = judge(run, now_ms, scope.older_than_ms, scope.lost_before_ms)
    faults: list[str] = []
    if verdict.status is not wanted.status or listed_live(run, scope.lost_before_ms):
        faults.append(f"run {key} reads as {verdict.status} instead of {wanted.status}")
    if run.listed is not None and run.listed.status is not wanted.status:
        faults.append(f"run {key} is listed as {run.listed.status}")
    if wanted.run.registered is None:  # neither can be written for it
        return faults
    if run.finish is None or len(run.endings) != max(1, len(wanted.run.endings)):
        faults.append(
            f"run {key} has {len(run.endings)} terminal history rows and {'a' if run.finish else 'no'} finish"
        )
    return faults


def _miscounted(reader: Reader, backup: Backup, written: Written) -> list[str]:
    """Return the tables that do not have exactly the backup's rows plus the sweep's."""
    added = {"history": written.history, "function_finishes": written.finishes, "spans": written.spans}
    now = read_contents(reader).tables
    return [
        f"table {table} has {now.get(table)} rows instead of {rows + added.get(table, 0)}"
        for table, rows in backup.contents.tables.items()
        if now.get(table) != rows + added.get(table, 0)
    ]
