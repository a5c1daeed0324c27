"""Reads a route's secret from its file at each use, so that a new key needs no restart. The secret is never kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from daemon.egress.refusals import SecretUnavailableError
from daemon.egress.rules import Secret

_MAX_BYTES: Final = 16 * 1024


def read_secret(path: Path) -> str:
    """Return the file's text without the newline at its end. Blocks. Raise SecretUnavailableError; it names the file only."""
    try:
        # Without O_NONBLOCK the opening of a fifo would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SecretUnavailableError(f"the secret file {path} is not a regular file.")
            found = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SecretUnavailableError(f"the secret file {path} cannot be read: {error.strerror}.") from error
    text = found.strip(b"\r\n \t")
    if not text:
        raise SecretUnavailableError(f"the secret file {path} is empty.")
    if len(found) > _MAX_BYTES or not text.isascii() or any(byte < 0x21 or byte == 0x7F for byte in text):
        raise SecretUnavailableError(
            f"the secret file {path} must hold one line of ASCII without blanks, at most 16 KiB."
        )
    return text.decode("ascii")


def secret_header(secret: Secret) -> tuple[bytes, bytes]:
    """Return the header with the secret in it. Blocks. Raise SecretUnavailableError."""
    return secret.header, secret.value.replace("{secret}", read_secret(secret.file)).encode("ascii")
