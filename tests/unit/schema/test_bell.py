"""The bell and the file events that carry it: what is heard, how rings and commits are told apart, and that no link is
followed.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from schema.bell import BELL_EVENTS, is_commit, is_ring, ring
from schema.connect import open_owner
from schema.inotify import FileEvent, Inotify
from schema.migrate import Role


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Inotify]:
    made = Inotify()
    made.watch(tmp_path, BELL_EVENTS)
    yield made
    made.close()


def heard(events: Inotify) -> list[FileEvent]:
    readable, _, _ = select.select([events], [], [], 0)
    return events.read() if readable else []


def test_a_ring_is_heard_the_first_time_and_every_time(tmp_path: Path, events: Inotify) -> None:
    for _ in range(3):
        ring(tmp_path)
        assert any(is_ring(event) for event in heard(events))


def test_a_commit_is_told_apart_from_a_ring(tmp_path: Path, events: Inotify) -> None:
    with open_owner(tmp_path / "outbound.db", Role.OUTBOUND) as db, db.transaction():
        db.execute("INSERT INTO session_state VALUES ('k', 'v', 't')")
    found = heard(events)
    assert any(is_commit(event, "outbound.db") for event in found)
    assert not any(is_commit(event, "inbound.db") or is_ring(event) for event in found)


def test_without_events_nothing_is_read(events: Inotify) -> None:
    assert events.read() == []


def test_a_bell_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    os.utime(target, (1, 1))
    (tmp_path / ".bell").symlink_to(target)
    ring(tmp_path)
    assert target.stat().st_mtime == 1


def test_a_dangling_link_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".bell").symlink_to(tmp_path / "elsewhere")
    ring(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    ring(tmp_path / "gone")


def test_a_folder_that_is_a_link_is_not_watched(tmp_path: Path, events: Inotify) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match=r"Not a directory|loop|symbolic"):
        events.watch(tmp_path / "link", BELL_EVENTS)


def test_a_watch_that_was_taken_back_is_silent(tmp_path: Path) -> None:
    quiet, other = tmp_path / "quiet", tmp_path / "other"
    quiet.mkdir()
    other.mkdir()
    events = Inotify()
    numbers = {folder: events.watch(folder, BELL_EVENTS) for folder in (quiet, other)}

    def rung() -> set[int]:
        for folder in numbers:
            ring(folder)
        return {event.watch for event in heard(events) if is_ring(event)}

    assert rung() == set(numbers.values()), "both are heard while they are watched"
    events.unwatch(numbers[quiet])
    heard(events)  # drop the event with which the kernel ends the watch
    assert rung() == {numbers[other]}
    events.close()
    events.close()  # a second time does no harm
