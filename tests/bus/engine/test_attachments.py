"""Files that come with a message: they are in place before its row, also after a crash at any step, and never partly."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.channels.protocol import Accepted, Incoming
from daemon.core.attachments import Attachment
from daemon.core.errors import AttachmentError, IdConflictError
from daemon.engine import ingress
from daemon.store import attachments, messages
from schema.errors import StorageError
from tests.support.bus_kit import AGENT, BusKit

pytestmark = [pytest.mark.anyio]

FILES = (Attachment("a.txt", b"first"), Attachment("b.bin", b"\0\xff"))


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncGenerator[BusKit]:
    made = BusKit(tmp_path / "data", limits={"max_attachments": 2, "max_attachment_bytes": 1024})
    async with made.running():
        yield made


async def send(kit: BusKit, *files: Attachment, message_id: str = "m1") -> Accepted:
    return await kit.bus.ingress.accept(Incoming(AGENT, "main", {"text": "look"}, message_id, files=files))


def inbox(kit: BusKit) -> Path:
    return kit.root / "sessions" / AGENT / "main" / "in" / "inbox"


def stored(kit: BusKit) -> dict[str, bytes]:
    root = inbox(kit)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_the_files_are_in_the_session_and_the_row_names_them(kit: BusKit) -> None:
    await send(kit, *FILES)
    assert stored(kit) == {"m1/a.txt": b"first", "m1/b.bin": b"\0\xff"}
    [row] = await kit.inbound("SELECT content FROM messages_in")
    named = json.loads(row["content"])["attachments"]
    assert [(one["localPath"], one["size"]) for one in named] == [("inbox/m1/a.txt", 5), ("inbox/m1/b.bin", 2)]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (inbox(kit), inbox(kit) / "m1", inbox(kit) / "m1" / "a.txt")]
    assert modes == [0o755, 0o755, 0o644], "another user in the container can read them"


async def test_the_same_files_again_are_a_duplicate_and_other_ones_a_conflict(kit: BusKit) -> None:
    await send(kit, *FILES)
    assert (await send(kit, *FILES)).duplicate
    for other in ((), (Attachment("a.txt", b"other"),)):
        with pytest.raises(IdConflictError):
            await send(kit, *other)
    assert stored(kit) == {"m1/a.txt": b"first", "m1/b.bin": b"\0\xff"}


@pytest.mark.parametrize(
    "files",
    [
        (Attachment("../a", b""),),
        (Attachment("a", b"x" * 1025),),
        tuple(Attachment(name, b"") for name in "abc"),
    ],
)
async def test_what_is_refused_stores_nothing(kit: BusKit, files: tuple[Attachment, ...]) -> None:
    with pytest.raises(AttachmentError):
        await send(kit, *files)
    assert list((kit.root / "sessions").iterdir()) == []


async def test_a_content_that_says_where_its_files_are_is_refused(kit: BusKit) -> None:
    await send(kit, *FILES)
    for claimed in ("inbox/m1/a.txt", "../../other/in/inbox/m9/a"):
        content = {"text": "look", "attachments": [{"name": "a", "localPath": claimed}]}
        with pytest.raises(AttachmentError, match="localPath"):
            await kit.bus.ingress.accept(Incoming(AGENT, "main", content, "m2"))
    assert [row["id"] for row in await kit.inbound("SELECT id FROM messages_in")] == ["m1"]


async def test_a_full_disk_refuses_the_message_and_the_next_try_stores_it(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(attachments, "write_new_file", full)
        with pytest.raises(StorageError):
            await send(kit, *FILES)
    assert await kit.inbound("SELECT * FROM messages_in") == []
    assert stored(kit) == {}
    assert not (await send(kit, *FILES)).duplicate
    assert len(stored(kit)) == 2


class Killed(BaseException):
    """Stands for the death of the process: no `except Exception` catches it."""


async def test_a_crash_at_any_step_leaves_no_row_without_its_files(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(kit, message_id="first")  # makes the session
    deaths = 0
    while True:
        message_id = f"m{deaths}"
        with monkeypatch.context() as patched:
            steps = _Steps(deaths)
            patched.setattr(ingress, "store", steps.counted(ingress.store))
            patched.setattr(os, "fsync", steps.before(os.fsync))
            patched.setattr(Path, "mkdir", steps.before(Path.mkdir))
            patched.setattr(Path, "rename", steps.before(Path.rename))
            patched.setattr(messages, "insert", steps.before(messages.insert))
            try:
                await send(kit, *FILES, message_id=message_id)
            except Killed:
                assert not await kit.inbound(f"SELECT * FROM messages_in WHERE id = '{message_id}'")
            else:
                break
        deaths += 1
        assert not (await send(kit, *FILES, message_id=message_id)).duplicate
        assert {name: data for name, data in stored(kit).items() if name.startswith(f"{message_id}/")} == {
            f"{message_id}/a.txt": b"first", f"{message_id}/b.bin": b"\0\xff"
        }  # fmt: skip
        assert not (inbox(kit) / ".partial").exists()
    assert deaths >= 9, "mkdir twice, two files, two folders, the rename, its folder, the row"


class _Steps:
    """Lets the storing thread do `number` steps, and raises Killed in place of the next one."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._thread: int | None = None

    def counted(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **named: Any) -> Any:
            self._thread = threading.get_ident()
            try:
                return work(*given, **named)
            finally:
                self._thread = None

        return counting

    def before(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*given: Any, **named: Any) -> Any:
            self._left -= threading.get_ident() == self._thread
            if self._left < 0 and threading.get_ident() == self._thread:
                raise Killed
            return step(*given, **named)

        return stepped
