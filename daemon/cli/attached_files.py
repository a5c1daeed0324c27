"""Reads the files that `clawbus send --file` names, within the configured limits, before anything is sent."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.core.errors import AttachmentError

if TYPE_CHECKING:
    from daemon.config.models import Config


def read_files(paths: Sequence[Path], config: Config) -> list[dict[str, str]]:
    """Return each file's name and its bytes in base64, as the control API takes them. Raise AttachmentError."""
    from daemon.config.policies import intake_limits  # noqa: PLC0415
    from daemon.core.attachments import Attachment, check_attachments  # noqa: PLC0415

    limits = intake_limits(config)
    if len(paths) > limits.max_attachments:  # before any of them is read
        raise AttachmentError(f"{len(paths)} files are attached; limits.max_attachments is {limits.max_attachments}.")
    room = limits.max_attachment_bytes + 1
    files: list[Attachment] = []
    for path in paths:
        files.append(Attachment(path.name, _read(path, room)))
        room -= len(files[-1].data)
    check_attachments(files, limits)
    return [{"name": one.name, "data": base64.b64encode(one.data).decode()} for one in files]


def _read(path: Path, limit: int) -> bytes:
    """Return at most `limit` bytes of a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo without a writer would block
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise AttachmentError(f"{path} is not a regular file.", hint="Name a regular file.")
            return file.read(limit)
    except OSError as error:
        raise AttachmentError(
            f"{path} cannot be read: {error.strerror}.", hint="Name a file that you can read."
        ) from error
