"""Reads a secret from its file: for each use of it, so that a new one needs no restart, and for forensics."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from schema.os_faults import host_error, passes

_MAX_BYTES: Final = 16 * 1024


def read_secret_file(path: Path) -> str:
    """Return the file's text without the newline at its end. Blocks.

    Raise ValueError, which names the file only, and StorageError for what this host cannot do now.
    """
    try:
        # Without O_NONBLOCK the opening of a fifo would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"the secret file {path} is not a regular file.")
            found = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        if passes(error):
            raise host_error(error, f"the secret file {path} cannot be read") from error
        raise ValueError(f"the secret file {path} cannot be read: {error.strerror}.") from error
    text = found.strip(b"\r\n \t")
    if not text:
        raise ValueError(f"the secret file {path} is empty.")
    if len(found) > _MAX_BYTES or any(not 0x21 <= byte < 0x7F for byte in text):
        raise ValueError(f"the secret file {path} must hold one line of ASCII without blanks, at most 16 KiB.")
    return text.decode("ascii")
