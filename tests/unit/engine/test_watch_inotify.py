"""The watcher on the kernel's own events: the bell at once, a commit soon, other files never, and the poll for the deaf."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.watch import Watch
from daemon.store.session_files import SessionFiles
from schema.bell import ring
from schema.connect import open_owner
from schema.inotify import Inotify
from schema.migrate import Role
from schema.plain_file import ReadLimits
from tests.support.bus_kit import until

pytestmark = [pytest.mark.anyio]

NEVER = 600.0


class Folders:
    """Sessions over real folders, and what the watcher said of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: list[str] = []
        self.limiter = anyio.CapacityLimiter(1)

    def session(self, name: str) -> Session:
        files = SessionFiles(self.root / name, ReadLimits())
        files.folder.outbox.mkdir(parents=True)
        return Session(SessionKey("a", name), files, self.limiter)

    @asynccontextmanager
    async def watching(
        self,
        *,
        poll_s: float = NEVER,
        linger_s: float = NEVER,
        burst_s: float = 0.0,
        open_events: Callable[[], Inotify] = Inotify,
    ) -> AsyncGenerator[Watch]:
        def on_change(session: Session) -> None:
            self.seen.append(session.key.session)

        watch = Watch(on_change, poll_s=poll_s, linger_s=linger_s, burst_s=burst_s, open_events=open_events)
        async with anyio.create_task_group() as tasks:
            await tasks.start(watch.run)
            yield watch
            tasks.cancel_scope.cancel()

    async def heard(self, watch: Watch, names: list[str]) -> None:
        """Until all events so far are read: those of one more session come after them."""
        last = self.session(f"last{len(self.seen)}")
        watch.add(last)
        count = self.seen.count(last.key.session)
        ring(last.files.folder.outbox)
        await until(lambda: self.seen.count(last.key.session) > count)
        assert [name for name in self.seen if not name.startswith("last")] == names
        watch.remove(last.key)
        self.seen.clear()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def commit(session: Session) -> None:
    with open_owner(session.files.folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
        db.execute("INSERT OR REPLACE INTO session_state(key, value, updated_at) VALUES ('k', 'v', 't')")


async def test_it_begins_with_a_look(folders: Folders) -> None:
    async with folders.watching() as watch:
        watch.add(folders.session("one"))
        await folders.heard(watch, ["one"])


async def test_a_ring_is_told_at_once_and_of_its_own_session_alone(folders: Folders) -> None:
    one, two = folders.session("one"), folders.session("two")
    ring(two.files.folder.outbox)  # the bell is there already: its touch alone must do
    async with folders.watching() as watch:
        watch.add(one)
        watch.add(two)
        await folders.heard(watch, ["one", "two"])
        ring(two.files.folder.outbox)
        await folders.heard(watch, ["two"])


async def test_a_session_that_was_added_before_it_ran_is_watched(folders: Folders) -> None:
    one = folders.session("one")
    seen: list[str] = []
    watch = Watch(lambda session: seen.append(session.key.session), poll_s=NEVER, linger_s=NEVER, burst_s=0.0)
    watch.add(one)
    async with anyio.create_task_group() as tasks:
        await tasks.start(watch.run)
        assert seen == ["one"]
        ring(one.files.folder.outbox)
        await until(lambda: len(seen) > 1)
        tasks.cancel_scope.cancel()


async def test_one_that_rings_without_end_gets_a_look_now_and_then(folders: Folders) -> None:
    one = folders.session("one")
    async with folders.watching(linger_s=0.001, burst_s=NEVER) as watch:
        watch.add(one)
        for _ in range(100):
            ring(one.files.folder.outbox)
        await until(lambda: len(folders.seen) > 1)
        assert len(folders.seen) < 20, "one for each moment, not one for each ring"


async def test_a_commit_without_a_ring_is_told_after_a_moment(folders: Folders) -> None:
    one = folders.session("one")
    async with folders.watching(linger_s=0.001) as watch:
        watch.add(one)
        await folders.heard(watch, ["one"])
        commit(one)
        await until(lambda: folders.seen == ["one"])


async def test_a_commit_is_not_looked_at_before_its_moment(folders: Folders) -> None:
    one = folders.session("one")
    async with folders.watching(linger_s=NEVER) as watch:
        watch.add(one)
        await folders.heard(watch, ["one"])
        commit(one)
        await folders.heard(watch, [])


async def test_other_files_are_no_news(folders: Folders) -> None:
    one = folders.session("one")
    async with folders.watching(linger_s=0.0) as watch:
        watch.add(one)
        await folders.heard(watch, ["one"])
        heartbeat = one.files.folder.outbox / ".heartbeat"
        heartbeat.touch()
        os.utime(heartbeat)
        heartbeat.unlink()
        await folders.heard(watch, [])


async def test_one_that_was_removed_is_watched_no_more(folders: Folders) -> None:
    one = folders.session("one")
    async with folders.watching(poll_s=0.001, linger_s=0.0) as watch:
        watch.add(one)
        await folders.heard(watch, ["one"])
        watch.remove(one.key)
        ring(one.files.folder.outbox)
        commit(one)
        await folders.heard(watch, [])


async def test_a_folder_that_goes_away_disturbs_no_other(folders: Folders) -> None:
    gone, one = folders.session("gone"), folders.session("one")
    async with folders.watching() as watch:
        watch.add(gone)
        watch.add(one)
        await folders.heard(watch, ["gone", "one"])
        gone.files.folder.outbox.rmdir()
        ring(one.files.folder.outbox)
        await folders.heard(watch, ["one"])
        watch.remove(gone.key)


async def test_a_folder_that_is_no_folder_is_left_to_the_poll(folders: Folders) -> None:
    one = folders.session("one")
    one.files.folder.outbox.rmdir()
    with capture_logs() as logs:
        async with folders.watching(poll_s=0.001) as watch:
            watch.add(one)
            one.files.folder.outbox.mkdir()
            commit(one)
            await until(lambda: len(folders.seen) > 1)
    assert [(entry["event"], entry["fallback"]) for entry in logs] == [("watch_failed", "poll")]


async def test_a_link_in_the_folders_place_is_not_followed(folders: Folders, tmp_path: Path) -> None:
    one = folders.session("one")
    one.files.folder.outbox.rmdir()
    (tmp_path / "elsewhere").mkdir()
    one.files.folder.outbox.symlink_to(tmp_path / "elsewhere")
    with capture_logs() as logs:
        async with folders.watching() as watch:
            watch.add(one)
    assert [entry["event"] for entry in logs] == ["watch_failed"]


async def test_where_events_do_not_cross_the_poll_takes_over(folders: Folders) -> None:
    one = folders.session("one")
    commit(one)

    def deaf() -> Inotify:
        events = Inotify()
        events.watch = lambda folder, mask: 1_000_000  # type: ignore[method-assign]
        return events

    with capture_logs() as logs:
        async with folders.watching(poll_s=0.001, open_events=deaf) as watch:
            watch.add(one)
            for number in range(4):
                count = len(folders.seen)
                with one.files.folder.outbound_db.open("ab") as file:
                    file.write(b"x" * number + b"y")
                await until(lambda count=count: len(folders.seen) > count)
    assert [entry["event"] for entry in logs] == ["watch_deaf"], "told once, and not for each change"
