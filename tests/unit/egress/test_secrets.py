"""A route's secret is what its file holds now, and is read only where the file may have changed."""

import errno
import os
import threading
import time
from pathlib import Path

import anyio
import pytest

from daemon.config.secret_files import read_secret_file
from daemon.egress import secrets
from daemon.egress.refusals import HostTroubledError, SecretUnavailableError
from daemon.egress.rules import Secret
from daemon.egress.secrets import Secrets
from tests.support.clock import MovedClock

AHEAD_MS = 60_000


@pytest.mark.anyio
@pytest.mark.parametrize("settled", [True, False])
async def test_every_change_is_seen_at_the_next_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    reads: list[Path] = []

    def reading(path: Path) -> str:
        reads.append(path)
        return read_secret_file(path)

    monkeypatch.setattr(secrets, "read_secret_file", reading)
    path = tmp_path / "key"
    path.write_text("first\n")
    kept = Secrets(MovedClock(time.time_ns() // 1_000_000 + (AHEAD_MS if settled else 0)))
    secret = Secret(b"authorization", "Bearer {secret}", path)
    for _ in range(3):
        assert await kept.header(secret) == (b"authorization", b"Bearer first")
    assert len(reads) == (1 if settled else 3)  # a file that has just changed may change again with the same times
    path.write_text("other\n")
    assert await kept.header(secret) == (b"authorization", b"Bearer other")
    path.chmod(0o640)
    await kept.header(secret)
    assert len(reads) == (3 if settled else 5)
    (tmp_path / "new").write_text("moved")
    (tmp_path / "new").rename(path)
    assert await kept.header(secret) == (b"authorization", b"Bearer moved")
    path.unlink()
    with pytest.raises(SecretUnavailableError):
        await kept.header(secret)


@pytest.mark.anyio
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.ESTALE])
async def test_a_host_that_cannot_read_now_does_not_blame_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "key"
    path.write_text("first\n")
    left = [3]
    real = os.open

    def opened(name: str | Path, *arguments: int, **more: int) -> int:
        if name == path and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(name, *arguments, **more)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(secrets, "_AGAIN_S", 0.01)
    kept, secret = Secrets(MovedClock(time.time_ns() // 1_000_000)), Secret(b"x-api-key", "{secret}", path)
    assert await kept.header(secret) == (b"x-api-key", b"first")
    left[0] = 10**9
    monkeypatch.setattr(secrets, "_PATIENCE_S", 0.05)
    with pytest.raises(HostTroubledError, match=os.strerror(number)):
        await kept.header(secret)


@pytest.mark.anyio
async def test_a_mount_that_hangs_holds_up_its_own_file_only_and_takes_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, path, other = threading.Event(), tmp_path / "hangs" / "key", tmp_path / "other"
    path.parent.mkdir()
    for one in (path, other):
        one.write_text(one.name)
    real = os.stat

    def waits(name: str | Path, **more: bool) -> os.stat_result:
        if name == path:
            hung.wait(2)
        return real(name, **more)

    monkeypatch.setattr(os, "stat", waits)
    monkeypatch.setattr(secrets, "_PATIENCE_S", 0.2)
    kept = Secrets(MovedClock(time.time_ns() // 1_000_000))
    secret, another = (Secret(b"x-api-key", "{secret}", one) for one in (path, other))
    before = threading.active_count()
    refused: list[str] = []

    async def ask() -> None:
        with pytest.raises(HostTroubledError, match="its disk or mount hangs") as found:
            await kept.header(secret)
        refused.append(str(found.value))

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)
            assert await kept.header(another) == (b"x-api-key", b"other")
            assert threading.active_count() <= before + 2
        assert len(refused) == 8
        monkeypatch.undo()
        hung.set()
        assert await kept.header(secret) == (b"x-api-key", b"key")
    finally:
        hung.set()
        kept.close()
