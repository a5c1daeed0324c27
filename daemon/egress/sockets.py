"""The sockets in `<data>/run/egress/`: a folder for each session, which is mounted, with one socket in it.

The folder is mounted, and not the socket, so that a restarted daemon can put a new socket into it and a container that runs
finds that one. Blocks: call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
from pathlib import Path
from typing import Final

from schema.layout import GATE_SOCKET
from schema.os_faults import host_error

_BACKLOG: Final = 512


def gate_folder(root: Path, agent: str, session: str) -> Path:
    """Return the folder of a session's socket. It is short, whatever the session is called."""
    return root / hashlib.sha256(f"{agent}\0{session}".encode()).hexdigest()[:24]


def listen_in(folder: Path) -> socket.socket:
    """Make the folder and return a socket that listens in it, in the place of an earlier one. Raise StorageError.

    Any user may connect: the container's is another one, and the data folder (0700) keeps this machine's users out.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise host_error(error, "the gate cannot listen") from error
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            (folder / GATE_SOCKET).unlink()
        # By its descriptor, because a socket's path has at most 107 bytes and a data folder's may be longer.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.bind(f"/proc/self/fd/{descriptor}/{GATE_SOCKET}")
        finally:
            os.close(descriptor)
        (folder / GATE_SOCKET).chmod(0o666)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise host_error(error, f"{folder}: the gate cannot listen there") from error
    return sock


def discard(folder: Path) -> None:
    """Remove a session's folder. What cannot be removed stays until the session's next container."""
    shutil.rmtree(folder, ignore_errors=True)
