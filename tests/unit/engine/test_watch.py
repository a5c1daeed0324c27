"""The watcher over real folders: watchfiles where there is no inotify, the poll beside it, arming anew, a prompt end.

The kernel's own events are in test_watch_inotify.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.core.session_key import SessionKey
from daemon.engine import watch_portable
from daemon.engine.session import Session
from daemon.engine.watch import Watch
from daemon.store.session_files import SessionFiles
from schema.inotify import Inotify
from schema.plain_file import ReadLimits
from tests.support.bus_kit import until

pytestmark = [pytest.mark.anyio]

NEVER = 600.0


def no_inotify() -> Inotify:
    raise OSError("not on this system")


class Folders:
    """Sessions over real folders, and what the watcher said of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: list[str] = []
        self.limiter = anyio.CapacityLimiter(1)

    def session(self, name: str, *, made: bool = True) -> Session:
        files = SessionFiles(self.root / name, ReadLimits())
        if made:
            files.folder.outbox.mkdir(parents=True)
        return Session(SessionKey("a", name), files, self.limiter)

    def on_change(self, session: Session) -> None:
        self.seen.append(session.key.session)

    @asynccontextmanager
    async def watching(self, **intervals: float) -> AsyncGenerator[Watch]:
        watch = Watch(
            self.on_change,
            poll_s=intervals.get("poll_s", NEVER),
            rearm_s=intervals.get("rearm_s", NEVER),
            open_events=no_inotify,
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(watch.run)
            yield watch
            tasks.cancel_scope.cancel()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture
def armings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Every watcher that was armed, with the names of its sessions."""
    made: list[tuple[str, ...]] = []
    real: Callable[..., Any] = watch_portable.awatch

    def counted(*paths: str, **options: Any) -> Any:
        made.append(tuple(sorted(Path(path).parent.name for path in paths)))
        return real(*paths, **options)

    monkeypatch.setattr(watch_portable, "awatch", counted)
    return made


def write(session: Session, name: str = "outbound.db") -> None:
    (session.files.folder.outbox / name).write_bytes(b"x")


async def armed(folders: Folders, armings: list[tuple[str, ...]], *names: str) -> None:
    """Until a watcher over just these is armed: its first look at them was taken."""
    await until(lambda: armings[-1:] == [tuple(sorted(names))])
    await until(lambda: set(names) <= set(folders.seen))
    await anyio.wait_all_tasks_blocked()
    folders.seen.clear()


async def test_a_write_is_noticed_by_its_event(folders: Folders, armings: list[tuple[str, ...]]) -> None:
    one, two = folders.session("one"), folders.session("two")
    async with folders.watching() as watch:
        watch.add(one)
        watch.add(two)
        await armed(folders, armings, "one", "two")
        write(two)
        await until(lambda: folders.seen != [])
        assert set(folders.seen) == {"two"}


async def test_other_files_are_no_news(folders: Folders, armings: list[tuple[str, ...]]) -> None:
    one = folders.session("one")
    async with folders.watching() as watch:
        watch.add(one)
        await armed(folders, armings, "one")
        write(one, ".heartbeat")
        write(one, "outbound.db-journal")
        await until(lambda: folders.seen != [])
        count = len(folders.seen)
        assert count == 1, "the journal's event alone"


async def test_without_events_the_poll_notices(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any, **__: Any) -> Any:
        raise OSError("no space left on device: the inotify watches are used up")

    monkeypatch.setattr(watch_portable, "awatch", none_left)
    one = folders.session("one")
    with capture_logs() as logs:
        async with folders.watching(poll_s=0.005) as watch:
            watch.add(one)
            await until(lambda: bool(logs))
            await anyio.wait_all_tasks_blocked()
            folders.seen.clear()
            write(one)
            await until(lambda: folders.seen == ["one"])
    assert [entry["event"] for entry in logs[:2]] == ["watch_portable", "watch_failed"]
    assert logs[1]["fallback"] == "poll"


async def test_a_bug_in_the_watcher_leaves_the_poll_and_is_tried_again(
    folders: Folders, armings: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = watch_portable.awatch, [ValueError("a bug")]

    def fails_first(*paths: str, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*paths, **options)

    monkeypatch.setattr(watch_portable, "awatch", fails_first)
    one = folders.session("one")
    async with folders.watching(rearm_s=0.005) as watch:
        watch.add(one)
        await armed(folders, armings, "one")
        write(one)
        await until(lambda: folders.seen != [])


async def test_arming_anew_loses_nothing(folders: Folders, armings: list[tuple[str, ...]]) -> None:
    one = folders.session("one")
    async with folders.watching() as watch:
        watch.add(one)
        await armed(folders, armings, "one")
        for number in range(5):
            other = folders.session(f"other{number}")
            watch.add(other)  # the watcher that is armed now will end
            write(one)
            await until(lambda: "one" in folders.seen)
            write(other)
            await until(lambda wanted=other.key.session: wanted in folders.seen)
            watch.remove(other.key)
            await armed_again(folders, armings)


async def armed_again(folders: Folders, armings: list[tuple[str, ...]]) -> None:
    await until(lambda: armings[-1:] == [("one",)])
    await anyio.wait_all_tasks_blocked()
    folders.seen.clear()


async def test_a_session_that_was_removed_is_watched_no_more(folders: Folders, armings: list[tuple[str, ...]]) -> None:
    one, two = folders.session("one"), folders.session("two")
    async with folders.watching(poll_s=0.005) as watch:
        watch.add(one)
        watch.add(two)
        await armed(folders, armings, "one", "two")
        watch.remove(one.key)
        await until(lambda: armings[-1] == ("two",))
        folders.seen.clear()
        write(one)
        write(two)
        await until(lambda: "two" in folders.seen)
        assert "one" not in folders.seen


async def test_a_folder_that_is_gone_disturbs_no_other(folders: Folders, armings: list[tuple[str, ...]]) -> None:
    gone, one = folders.session("gone", made=False), folders.session("one")
    async with folders.watching() as watch:
        watch.add(gone)
        watch.add(one)
        await armed(folders, armings, "one")
        write(one)
        await until(lambda: "one" in folders.seen)


async def test_a_folder_that_is_deleted_under_the_watcher_disturbs_no_other(
    folders: Folders, armings: list[tuple[str, ...]]
) -> None:
    gone, one = folders.session("gone"), folders.session("one")
    async with folders.watching() as watch:
        watch.add(gone)
        watch.add(one)
        await armed(folders, armings, "gone", "one")
        gone.files.folder.outbox.rmdir()
        write(one)
        await until(lambda: "one" in folders.seen)


async def test_it_ends_promptly(folders: Folders, armings: list[tuple[str, ...]]) -> None:
    watch = Watch(folders.on_change, poll_s=NEVER, open_events=no_inotify)
    asked = 0.0
    async with anyio.create_task_group() as tasks:
        await tasks.start(watch.run)
        watch.add(folders.session("one"))
        await armed(folders, armings, "one")
        asked = anyio.current_time()
        tasks.cancel_scope.cancel()
    assert anyio.current_time() - asked < 2, "its thread was waited for"
