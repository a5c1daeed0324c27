"""The floor does the work that it is the floor of: its commits, and two wakes between two processes."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from bench.floor import SAME, RoundTripFloor, commit_times, commits_cpu_ms, open_durable, row_cpu_us, rows_per_second
from bench.inotify import DeleteWatch


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM rows").fetchone()[0])


def test_a_round_trip_is_question_answer_and_receipt(tmp_path: Path) -> None:
    with RoundTripFloor(tmp_path) as floor:
        found = floor.measure(3, warm_up=2)
        other = floor._other
    assert len(found) == 3
    assert all(value > 0 for value in found)
    assert rows(tmp_path / "in" / "in.db") == 10
    assert rows(tmp_path / "out" / "out.db") == 5
    assert other.poll() is not None


def test_the_same_commits_as_the_bus_are_two_more(tmp_path: Path) -> None:
    with RoundTripFloor(tmp_path, SAME) as floor:
        assert len(floor.measure(3, warm_up=2)) == 3
    assert rows(tmp_path / "in" / "in.db") == 10, "message and intent"
    assert rows(tmp_path / "out" / "out.db") == 10, "claim and answer"
    assert rows(tmp_path / "box.db") == 5, "the receiver's copy"


def test_commits_are_as_durable_as_the_bus_makes_them(tmp_path: Path) -> None:
    with closing(open_durable(tmp_path / "x.db")) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 3
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"


def test_every_row_is_committed(tmp_path: Path) -> None:
    assert len(commit_times(tmp_path, 4)) == 4
    assert rows(tmp_path / "commits.db") == 5
    assert rows_per_second(tmp_path, 25, 10) > 0
    assert rows(tmp_path / "rows.db") == 26


def test_a_watch_wakes_for_its_own_file_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    with DeleteWatch(tmp_path, "b") as watch:
        (tmp_path / "a").unlink()
        with pytest.raises(TimeoutError):
            watch.wait(timeout_s=0)
        remover = threading.Thread(target=(tmp_path / "b").unlink)
        remover.start()
        watch.wait()
        remover.join()
    assert not (tmp_path / "b").exists()


def test_a_wake_that_came_before_the_wait_is_made_up_for(tmp_path: Path) -> None:
    with RoundTripFloor(tmp_path) as floor:
        floor.measure(1, warm_up=0)
        swallowed = DeleteWatch(tmp_path / "in", "out.db-journal")  # hears nothing of the answers
        heard, floor._watch = floor._watch, swallowed
        assert len(floor.measure(1, warm_up=0)) == 1
        heard.__exit__(None, None, None)
    assert rows(tmp_path / "out" / "out.db") == 2


def test_an_other_process_that_died_ends_the_floor(tmp_path: Path) -> None:
    with RoundTripFloor(tmp_path) as floor:
        floor._other.kill()
        floor._other.wait()
        with pytest.raises(TimeoutError):
            floor.measure(1, warm_up=0)


def test_the_processor_time_of_commits_is_counted_for_each_message_and_row(tmp_path: Path) -> None:
    assert all(found > 0 for found in commits_cpu_ms(tmp_path, 3, 4))
    assert rows(tmp_path / "cpu-a.db") == 8
    assert rows(tmp_path / "cpu-b.db") == 4
    assert row_cpu_us(tmp_path, 10, 5, 2) > 0
    assert rows(tmp_path / "row-cpu.db") == 21


def test_two_commits_before_the_first_wait_are_two_deletions(tmp_path: Path) -> None:
    with DeleteWatch(tmp_path, "b") as watch:
        for _ in range(2):
            (tmp_path / "b").touch()
            (tmp_path / "b").unlink()
        watch.wait(timeout_s=0, deletions=2)
