"""The doctor's reader and the stale sweep's judge the same rows alike, also when incarnation ids are out of claim order."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Final

import pytest

from daemon.core.run_evidence import RunRead, RuntimeContext
from daemon.core.run_state import RunStatus
from daemon.core.session_key import SessionKey
from daemon.core.stale_plan import Seen
from daemon.inspect import reading
from daemon.inspect.reading import read_runs_of, read_suspect_runs
from daemon.maintenance.stale_sweep import read_runs
from daemon.store.messages import note_claim
from schema.plain_file import ReadLimits
from tests.support.session_world import NOW, SessionWorld

KEY: Final = SessionKey("echo", "s")
NAMES: Final = ("I1", "I2", "I3")
OLD: Final = NOW - 3_600_000
CASES: Final = 40
GONE: Final = RuntimeContext(NOW, synced=False)


def _one_message(world: SessionWorld, dice: random.Random, message_id: str) -> None:
    """Write one message with up to three runs, claimed in any order of their ids."""
    world.accept(message_id)
    names = dice.sample(NAMES, dice.randint(1, 3))
    for number, name in enumerate(names):
        last = number == len(names) - 1
        outcome = dice.choice((None, None, "orphaned", "released") if not last else (None, None, "orphaned"))
        with world.files.inbound() as db, db.transaction():
            note_claim(db, message_id, name, OLD + 1000 * (number + 1), OLD + 1000 * (number + 1))
        if outcome is not None:
            world.change(f"UPDATE attempts SET outcome = '{outcome}', ended_at = {OLD + 1000 * (number + 1) + 500}"
                         f" WHERE message_id = '{message_id}' AND incarnation = '{name}'")  # fmt: skip
    acked = dice.choice((None, "processing", "completed", "failed"))
    if acked == "processing":
        world.claim(message_id, by=names[-1])
    elif acked is not None:
        world.claim(message_id, by=names[-1])
        world.say(
            f"a-{message_id}", in_reply_to=message_id, content="done" if acked == "completed" else '{"error": "no"}'
        )
        world.ack(acked, message_id, by=names[-1])
    if dice.random() < 0.2:
        world.change(f"UPDATE messages_in SET status = 'completed' WHERE id = '{message_id}'")


def _verdict(run: RunRead | Seen) -> tuple[str, bool, str, str, bool, bool]:
    seen, verdict = run.evidence, run.verdict
    return run.run_id, seen.latest, verdict.status.value, verdict.confidence.value, verdict.stale, verdict.inconsistent


@pytest.mark.parametrize("seed", range(CASES))
def test_both_readers_judge_random_runs_alike(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    world = SessionWorld(tmp_path / "sessions" / "echo" / "s", OLD)
    for number in range(3):
        _one_message(world, dice, f"m{number}")
    alive = frozenset(name for name in NAMES if dice.random() < 0.3)
    context = RuntimeContext(NOW, synced=False, alive=alive, occupied=bool(alive))
    doctor = read_suspect_runs(world.files.folder, context, ReadLimits())
    assert not doctor.errors
    sweep = read_runs(world.files, KEY, context)
    told = {_verdict(run) for run in doctor.runs if run.evidence.latest or run.verdict.stale}
    judged = {_verdict(run) for run in sweep}
    assert {run for run in told if run[4]} == {run for run in judged if run[4]}, (
        "the same runs are stale, for the same reason"
    )
    assert {run for run in told if run[1]} == {run for run in judged if run[1]}, "the latest runs are the same"


def test_the_latest_run_is_the_one_claimed_last_not_the_one_with_the_greatest_id(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "sessions" / "echo" / "s", OLD)
    world.accept("m")
    with world.files.inbound() as db, db.transaction():
        note_claim(db, "m", "I9", OLD + 1000, OLD + 1000)
        note_claim(db, "m", "I1", OLD + 2000, OLD + 2000)
    runs = read_runs(world.files, KEY, GONE)
    assert [(run.run_id, run.evidence.latest) for run in runs] == [("m@I9", False), ("m@I1", True)]


def _failed(world: SessionWorld, message_id: str, error: object) -> None:
    """Its agent failed at it, and the host has not taken note."""
    world.claim(message_id, by="I1")
    world.say(f"a-{message_id}", in_reply_to=message_id, content=json.dumps({"error": error, "more": "x" * 20_000}))
    world.ack("failed", message_id, by="I1")


def test_a_long_error_answer_is_a_failure_and_no_contradiction(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "sessions" / "echo" / "s", OLD)
    world.accept("m")
    _failed(world, "m", "e" * 20_000)
    (run,) = read_suspect_runs(world.files.folder, GONE, ReadLimits()).runs
    assert (run.verdict.status, run.verdict.inconsistent) == (RunStatus.FAILED, False)
    (swept,) = read_runs(world.files, KEY, GONE)
    assert swept.verdict == run.verdict


def test_an_answer_to_several_messages_counts_for_each_however_long_it_is(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "sessions" / "echo" / "s", OLD)
    for name in ("m1", "m2"):
        world.accept(name)
        world.claim(name, by="I1")
    content = json.dumps({"text": "t" * 20_000, "answers": ["m1", "m2"]})
    world.say("a", in_reply_to="m1", content=content)
    world.ack("completed", "m1", "m2", by="I1")
    runs = read_suspect_runs(world.files.folder, GONE, ReadLimits()).runs
    assert [(one.message.message_id, [a.message_out_id for a in one.evidence.answers]) for one in runs] == [
        ("m1", ["a"]), ("m2", ["a"]),
    ]  # fmt: skip


def test_an_answer_is_found_however_many_and_however_long_the_later_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_NEWEST_ANSWERS", 3)
    monkeypatch.setattr(reading, "_CHARACTERS", 1000)
    world = SessionWorld(tmp_path / "sessions" / "echo" / "s", OLD)
    for name in ("m1", "m2"):
        world.accept(name)
        world.claim(name, by="I1")
    for number in range(3):
        world.say(f"early-{number}", in_reply_to="m1", content=f"{number}" * 900)
    for number in range(9):
        world.say(f"late-{number}", in_reply_to="m2", content="y" * 900)
    runs = read_runs_of(world.files.folder, ["m1", "m2"], GONE, ReadLimits()).runs
    assert [len(run.evidence.answers) for run in runs] == [3, 9]
    assert [one.message_out_id for one in runs[0].evidence.answers] == ["early-0", "early-1", "early-2"]


def test_a_finish_that_its_history_contradicts_is_a_suspect_for_both(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "sessions" / "echo" / "s", OLD)
    world.accept("m")
    world.change("UPDATE messages_in SET status = 'completed' WHERE id = 'm'")
    world.change(f"INSERT INTO message_history(message_id, event, at) VALUES ('m', 'failed', {OLD})")
    assert [one.verdict.inconsistent for one in read_runs(world.files, KEY, GONE)] == [True]
    assert [one.verdict.inconsistent for one in read_suspect_runs(world.files.folder, GONE, ReadLimits()).runs] == [
        True
    ]
