"""A route's secret as a header, as its file has it at each use.

A thread for the reading costs more than all the rest of a request on a busy machine. So what was read is used again while stat(2)
says that the file is the same: any change to it, to its mode or to its place is seen at the next request.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from daemon.config.secret_files import read_secret_file
from daemon.core.clock import Clock
from daemon.egress.refusals import HostTroubledError, SecretUnavailableError
from daemon.egress.rules import Secret
from schema.errors import StorageError
from schema.os_faults import typed_host_errors

# A file that changed so recently may change again without another time: the kernel's clock for files is coarse.
_SETTLED_MS: Final = 3000

# How long a request waits for a host that is short of something.
_PATIENCE_S: Final = 10.0
_AGAIN_S: Final = 0.2

_Stamp = tuple[int, int, int, int, int]


class Secrets:
    """Built once. Called in the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[Path, tuple[_Stamp, str]] = {}

    async def header(self, secret: Secret) -> tuple[bytes, bytes]:
        """Return the header with the secret in it. Raise SecretUnavailableError or HostTroubledError."""
        return secret.header, secret.value.replace("{secret}", await self._text(secret.file)).encode("ascii")

    async def _text(self, path: Path) -> str:
        stamp = _stamp(path)
        kept = self._kept.pop(path, None)
        if kept is None or kept[0] != stamp:
            text = await _read(path)
        else:
            text = kept[1]
        if stamp is not None and self._clock.now_ms() - stamp[4] // 1_000_000 > _SETTLED_MS:
            self._kept[path] = (stamp, text)
        return text


async def _read(path: Path) -> str:
    until = anyio.current_time() + _PATIENCE_S
    while True:
        try:
            with typed_host_errors(f"the secret file {path} cannot be read"):
                return await to_thread.run_sync(read_secret_file, path)
        except ValueError as error:
            raise SecretUnavailableError(str(error)) from error
        except StorageError as error:
            if anyio.current_time() >= until:
                raise HostTroubledError(str(error)) from error
        await anyio.sleep(_AGAIN_S)


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - of the file itself, also behind a link, as the reading is
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
