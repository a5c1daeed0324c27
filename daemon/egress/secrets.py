"""A route's secret as a header, as its file has it at each use.

What was read is used again while stat(2) says that the file is the same: any change to it, to its mode or to its place is seen
at the next request. Even stat(2) waits for a mount that hangs, so each file has one thread of its own, and the requests that
wait for it share the next look.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from daemon.config.secret_files import read_secret_file
from daemon.core.clock import Clock
from daemon.egress.refusals import HostTroubledError, SecretUnavailableError
from daemon.egress.rules import Secret
from schema.errors import StorageError
from schema.os_faults import typed_host_errors

# A file that changed so recently may change again without another time: the kernel's clock for files is coarse.
_SETTLED_MS: Final = 3000

# How long a request waits for a host that is short of something, or for a disk or mount that does not answer.
_PATIENCE_S: Final = 10.0
_AGAIN_S: Final = 0.2

_Stamp = tuple[int, int, int, int, int]


class Secrets:
    """Built once. Called in the event loop, until `close`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._files: dict[Path, _File] = {}

    async def header(self, secret: Secret) -> tuple[bytes, bytes]:
        """Return the header with the secret in it. Raise SecretUnavailableError or HostTroubledError."""
        return secret.header, secret.value.replace("{secret}", await self._text(secret.file)).encode("ascii")

    def close(self) -> None:
        """End the threads. One that hangs is left alone."""
        for file in self._files.values():
            file.close()

    async def _text(self, path: Path) -> str:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _File(path, self._clock)
        until = anyio.current_time() + _PATIENCE_S
        trouble: Exception | None = None
        with anyio.move_on_at(until):
            while True:
                try:
                    with typed_host_errors(f"the secret file {path} cannot be read"):
                        return await file.text()
                except ValueError as error:
                    raise SecretUnavailableError(str(error)) from error
                except StorageError as error:
                    trouble = error
                await anyio.sleep(_AGAIN_S)
        if trouble is not None:
            raise HostTroubledError(str(trouble)) from trouble
        raise HostTroubledError(
            f"the secret file {path} was not read within {_PATIENCE_S:g} s: its disk or mount hangs."
        )


class _File:
    """One secret file, its thread, and what the thread read last."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="secret")
        self._next: Future[str] | None = None  # the latest look, which has perhaps not begun
        self._kept: tuple[_Stamp, str] | None = None  # the thread's

    async def text(self) -> str:
        """Return what the file holds, seen by a look that begins after the call."""
        look = self._next
        if look is None or look.running() or look.done():
            look = self._next = self._thread.submit(self._look)
        done = asyncio.Event()
        look.add_done_callback(partial(_wake, asyncio.get_running_loop(), done))
        await done.wait()  # a request that is given up leaves the look to the others
        return look.result()

    def close(self) -> None:
        """Start no look any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> str:
        stamp = _stamp(self._path)
        kept, self._kept = self._kept, None
        text = kept[1] if kept is not None and kept[0] == stamp else read_secret_file(self._path)
        if stamp is not None and self._clock.now_ms() - stamp[4] // 1_000_000 > _SETTLED_MS:
            self._kept = (stamp, text)
        return text


def _wake(loop: asyncio.AbstractEventLoop, done: asyncio.Event, look: Future[str]) -> None:
    del look
    with suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(done.set)


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - of the file itself, also behind a link, as the reading is
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
