"""The test's hand on `shim.c`: it compiles it, says which call is to fail with what, and reads which calls there are."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("shim.c")
DAEMON, RUNNER = 1, 2
ROLES: Final = {DAEMON: "daemon", RUNNER: "runner"}
ERRNOS: Final = (
    "EMFILE", "ENFILE", "EIO", "ENOSPC", "ENOMEM", "ESTALE", "EAGAIN", "ETIMEDOUT", "EINTR", "EDQUOT", "EBUSY", "EROFS",
)  # fmt: skip


def compiler() -> str | None:
    """The C compiler, if this machine has one."""
    return shutil.which("cc") or shutil.which("gcc")


def compiled(folder: Path) -> Path:
    """The shim as a library in this folder."""
    library = folder / "errnos.so"
    command = [compiler() or "cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    return library


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One kind of call: whose, which, and on what file (`-` for what has none)."""

    role: int
    operation: str
    name: str

    def __str__(self) -> str:
        return f"{ROLES[self.role]} {self.operation} {self.name}"


class _Fields(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_int),
        ("recording", ctypes.c_int),
        ("role", ctypes.c_int),
        ("number", ctypes.c_int),
        ("skip", ctypes.c_long),
        ("count", ctypes.c_long),
        ("seen", ctypes.c_long),
        ("fired", ctypes.c_long),
        ("operation", ctypes.c_char * 32),
        ("name", ctypes.c_char * 48),
        ("root", ctypes.c_char * 256),
    )


class Control:
    """The page that the test shares with the processes. `folder` is the test's own; `root` the data folder."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.path = folder / "errnos"
        self._log = folder / "errnos.log"
        self.path.write_bytes(bytes(4096))
        with self.path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)
        self._fields = _Fields.from_buffer(self._map)
        self._fields.root = os.fsencode(root)
        self._read_until = 0

    def environment(self, library: Path, role: int) -> dict[str, str]:
        """What a process of this role is started with."""
        return {"LD_PRELOAD": str(library), "ERRNOS_CONTROL": str(self.path), "ERRNOS_ROLE": str(role)}

    def record(self, on: bool) -> None:
        self._fields.recording = int(on)

    def recorded(self) -> Counter[Site]:
        """The calls since the last time."""
        with self._log.open("rb") as file:
            file.seek(self._read_until)
            data = file.read()
        self._read_until += len(data)
        found: Counter[Site] = Counter()
        for line in data.decode().splitlines():
            role, operation, name = line.split(" ", 2)
            found[Site(int(role), operation, name)] += 1
        return found

    def arm(self, site: Site, number: str, *, skip: int = 0, count: int = 1) -> None:
        """Let calls of this site fail from now on: after `skip` of them, `count` times."""
        self.disarm()
        fields = self._fields
        fields.role, fields.number = site.role, getattr(errno, number)
        fields.skip, fields.count, fields.seen, fields.fired = skip, count, 0, 0
        fields.operation, fields.name = site.operation.encode(), site.name.encode()
        fields.armed = 1

    def disarm(self) -> int:
        """Let everything work again; how many calls failed."""
        self._fields.armed = 0
        return min(self._fields.fired, self._fields.count)

    def close(self) -> None:
        del self._fields
        self._map.close()
