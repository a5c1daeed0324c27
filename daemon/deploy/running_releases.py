"""Finds the releases that processes of this machine were started from, as far as /proc tells. Reads only."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from schema.os_faults import host_error, passes

_EXEC_LOOKS: Final = 200  # a process may have erased its own command line: then it is not waited for any longer
_EXEC_S: Final = 0.001


def running_releases(folder: Path) -> set[str]:
    """Return the names of the releases in this folder that a process was started from.

    Raise StorageError when this host cannot look at all of them now: what is not seen would be removed.
    """
    start = os.fsencode(folder.resolve()) + b"/"
    found: set[str] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = _command_line(path).split(b"\0")
        except OSError as error:  # it ended, or belongs to somebody who hides it
            if passes(error):
                raise host_error(error, f"{path} cannot be read") from error
            continue
        found |= {os.fsdecode(one[len(start) :].split(b"/")[0]) for one in words if one.startswith(start)}
    return found


def _command_line(path: Path) -> bytes:
    """Read a process's command line. In the midst of exec it is empty for a moment: then read it again. Raise OSError."""
    for _ in range(_EXEC_LOOKS):
        found = path.read_bytes()
        # Kernel threads and zombies have none either, and no program.
        if found or not _has_program(path):
            return found
        time.sleep(_EXEC_S)
    return b""


def _has_program(command_line: Path) -> bool:
    try:
        command_line.with_name("exe").readlink()
    except OSError:
        return False
    return True
