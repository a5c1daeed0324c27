"""The control socket: bound so that only its owner can ever speak to it, served, and removed at the end.

Access is the file's mode and nothing else, so the socket must never exist with a wider one, not for a moment. A socket
that another daemon answers on is never touched.
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
_MOST_CLIENTS: Final = 512
_PATIENCE_S: Final = 60.0  # for a first request, and for a response to be read
_KEEP_ALIVE_S: Final = 60.0


async def run(
    app: ASGIApp,
    path: Path,
    *,
    look_s: float = _LOOK_S,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on a unix socket at `path` until cancelled. Raises SocketPathError or SocketInUseError.

    Somebody who tidies up must not leave a daemon that works and cannot be spoken to: the path is looked at every
    `look_s` seconds, and bound again when the socket there is gone or is another one that does not answer.
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
                # The server before goes on with its calls; its socket cannot be reached for new ones.
                await servers.start(_serve, app, sock)
                structlog.get_logger("control").warning("control_socket_rebound", socket=str(path))
    finally:
        sock.close()
        _remove(path, ours)


async def _serve(app: ASGIApp, sock: socket.socket, *, task_status: TaskStatus[None]) -> None:
    await serve(_of_the_owner(app), sock, task_status=task_status, http=guarded(control_limits(), _FullLog()))


def control_limits() -> ConnectionLimits:
    """Return what clients may hold: at most a quarter of this process's descriptors, none of them idle for ever.

    They are the owner's own programs, but one that leaks its connections would leave none to open a session's files with.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(_LEAST_CLIENTS, min(_MOST_CLIENTS, soft // 4 if soft != resource.RLIM_INFINITY else _MOST_CLIENTS))
    return ConnectionLimits(most, most, patience_s=_PATIENCE_S, keep_alive_s=_KEEP_ALIVE_S)


def _of_the_owner(app: ASGIApp) -> ASGIApp:
    """Whoever could open the socket is its owner: a request that is being answered is never dropped for another one."""

    async def trusted(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[TRUSTED] = True
        await app(scope, receive, send)

    return trusted


class _FullLog:
    """Says once a minute that clients are turned away or ended, whatever their number."""

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
    """Raise SocketInUseError when a daemon answers on `path`, before this one touches anything that is that daemon's."""
    if path.is_socket() and _answers(path):
        raise SocketInUseError(f"a daemon already answers on {path}.")


def bind(path: Path) -> socket.socket:
    """Bind a unix socket at `path`, mode 0600 from the first moment. Raise SocketPathError or SocketInUseError."""
    check_path(path)
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Linux gives the file the socket's own mode (less the umask, which is the whole process's and left alone).
        os.fchmod(sock.fileno(), MODE)
        sock.bind(str(path))
        _check_private(path)
        path.chmod(MODE)  # a umask may have taken bits of the owner's
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
    """Return whether a process listens. Only a clear refusal means none: in doubt the socket is in use."""
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
    """Remove the socket file if it still is the one that was looked at."""
    try:
        found = path.lstat()
        if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
            path.unlink()
    except FileNotFoundError:
        return
