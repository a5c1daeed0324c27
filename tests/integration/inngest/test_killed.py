"""Killed with SIGKILL at every step: nothing is half done, and running it again completes it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.inngest.plan import Scope
from daemon.inngest.sweep import Outcome, Request, sweep
from tests.support import inngest_victim
from tests.support.inngest_db import HEALTH, NOW, TRIAGE, Night

BEFORE = ["planned", "backup_copy", "backup_verify", "backed_up", "transaction_begun", "history_written", "finishes_written",
          "spans_written", "statuses_written"]  # fmt: skip


def kill_at(night: Night, step: str) -> None:
    words = [sys.executable, inngest_victim.__file__, str(night.db.path), step, night.unregistered.key]
    done = subprocess.run(words, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def again(night: Night) -> Outcome:
    scope = Scope(functions=(TRIAGE, HEALTH), exclude=(night.unregistered.key,))
    return sweep(Request(night.db.path, scope, "ada", apply=True), NOW)


@pytest.mark.faults
@pytest.mark.parametrize("step", BEFORE)
def test_before_the_commit_nothing_has_happened(night: Night, step: str) -> None:
    before = night.db.dump()
    kill_at(night, step)
    assert night.db.one("PRAGMA integrity_check") == "ok"
    assert night.db.dump() == before
    outcome = again(night)
    assert outcome.error is None
    assert outcome.written is not None
    assert (outcome.written.history, outcome.written.finishes, outcome.written.statuses) == (6, 7, 9)


@pytest.mark.faults
def test_after_the_commit_there_is_nothing_left_to_do(night: Night) -> None:
    kill_at(night, "committed")
    outcome = again(night)
    assert (outcome.error, outcome.written, outcome.plan.candidates) == (None, None, ())
    assert len(night.db.span_list("Cancelled")) == 7


@pytest.mark.faults
def test_an_interrupted_backup_is_not_taken_for_one(night: Night) -> None:
    kill_at(night, "backup_copy")
    folder = Path(night.db.path.parent)
    assert list(folder.glob("*.sqlite")) == []
    assert len(list(folder.glob("*.sqlite.partial"))) == 1
