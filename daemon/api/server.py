"""The control socket: bound so that only its owner can connect, served, and removed at the end.

The file's mode is the only access control, so the socket must not have a wider mode even for a moment. A socket on which
another daemon answers is never touched.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import socket
import stat
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskStatus
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.core.errors import SocketInUseError, SocketPathError
from daemon.http.asgi import serve
from daemon.http.connections import TRUSTED, ConnectionLimits, guarded

MAX_PATH_BYTES: Final = 107  # sun_path holds 108 with its NUL (unix(7))
MODE: Final = 0o600
_PROBE_S: Final = 1.0
_LOOK_S: Final = 3.0
_LEAST_CLIENTS: Final = 32
_MAX_CLIENTS: Final = 512
_PATIENCE_S: Final = 60.0  # for a first request, and for a response to be read
_KEEP_ALIVE_S: Final = 60.0


async def run(
    app: ASGIApp,
    path: Path,
    *,
    look_s: float = _LOOK_S,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on a unix socket at `path` until cancelled. Raise SocketPathError or SocketInUseError.

    Every `look_s` seconds, check the path, and bind it again if the socket is gone or has been replaced by one that does not
    answer. Otherwise a deleted socket would leave a daemon that works but cannot be reached.
    """
    sock = bind(path)
    ours = path.lstat()
    try:
        async with anyio.create_task_group() as servers:
            await servers.start(_serve, app, sock)
            task_status.started()
            trouble = None
            while True:
                await anyio.sleep(look_s)
                if _is_ours(path, ours):
                    continue
                try:
                    sock = await anyio.to_thread.run_sync(bind, path)
                except SocketPathError as error:
                    if str(error) != trouble:
                        structlog.get_logger("control").error("control_socket_lost", error=str(error), hint=error.hint)
                    trouble = str(error)
                    continue
                trouble, ours = None, path.lstat()
                # The old server finishes its calls; new clients can no longer reach its socket.
                await servers.start(_serve, app, sock)
                structlog.get_logger("control").warning("control_socket_rebound", socket=str(path))
    finally:
        sock.close()
        _remove(path, ours)


async def _serve(app: ASGIApp, sock: socket.socket, *, task_status: TaskStatus[None]) -> None:
    await serve(
        _of_the_owner(app), sock, task_status=task_status, http=guarded(control_limits(), _FullLog(), owner_only=True)
    )


def control_limits() -> ConnectionLimits:
    """Return the limits for clients: at most a quarter of this process's descriptors, and a time limit on idle connections.

    The clients are the owner's programs, but one that leaks connections would leave no descriptors for session files.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(_LEAST_CLIENTS, min(_MAX_CLIENTS, soft // 4 if soft != resource.RLIM_INFINITY else _MAX_CLIENTS))
    return ConnectionLimits(most, most, patience_s=_PATIENCE_S, keep_alive_s=_KEEP_ALIVE_S)


def _of_the_owner(app: ASGIApp) -> ASGIApp:
    """Mark all requests as trusted, so that none under way is dropped for another: only the owner can open the socket."""

    async def trusted(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[TRUSTED] = True
        await app(scope, receive, send)

    return trusted


class _FullLog:
    """Logs at most once a minute that clients were turned away or disconnected."""

    def __init__(self) -> None:
        self._at = -math.inf

    def __call__(self, turned_away: bool) -> None:
        now = anyio.current_time()
        if now - self._at >= _PATIENCE_S:
            self._at = now
            structlog.get_logger("control").warning("control_full", turned_away=turned_away)


def _is_ours(path: Path, ours: os.stat_result) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def check_path(path: Path) -> None:
    """Raise SocketPathError when the path is too long for a unix socket."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise SocketPathError(f"the control socket's path has {length} bytes, at most {MAX_PATH_BYTES} fit: {path}")


def check_unanswered(path: Path) -> None:
    """Raise SocketInUseError if a daemon answers on `path`. Call this before touching that daemon's files."""
    if path.is_socket() and _answers(path):
        raise SocketInUseError(f"a daemon already answers on {path}.")


def bind(path: Path) -> socket.socket:
    """Bind a unix socket at `path`, mode 0600 from the first moment. Raise SocketPathError or SocketInUseError."""
    check_path(path)
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Linux gives the file the socket's mode minus the umask. The umask belongs to the whole process, so leave it alone.
        os.fchmod(sock.fileno(), MODE)
        sock.bind(str(path))
        _check_private(path)
        path.chmod(MODE)  # the umask may have removed bits of the owner
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise SocketInUseError(f"another process just took {path}.") from error
        raise SocketPathError(f"the control socket {path} cannot be made: {error.strerror}.") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _check_private(path: Path) -> None:
    if stat.S_IMODE(path.lstat().st_mode) & ~MODE:
        path.unlink()
        raise SocketPathError(f"{path} could not be made private (mode 0600).")


def _clear_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketPathError(f"the control socket {path} cannot be made: {error.strerror}.") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketPathError(f"{path} exists and is not a socket; it was left alone.")
    if _answers(path):
        raise SocketInUseError(f"a daemon already answers on {path}.")
    _remove(path, found)


def _answers(path: Path) -> bool:
    """Return whether a process listens on the socket. Only a refused connection proves that none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _remove(path: Path, ours: os.stat_result) -> None:
    """Remove the socket file, unless it is no longer the one described by `ours`."""
    try:
        found = path.lstat()
        if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
            path.unlink()
    except FileNotFoundError:
        return
