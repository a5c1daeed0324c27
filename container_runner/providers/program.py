"""Starts and ends an agent's program: the environment it gets, the errors of its start, its process group.

The program runs in a new process group. The runner's own variables (CLAWBUS_*, its virtual environment, PYTHON*) are
not passed on.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar, cast

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

from container_runner.shared.children import Children
from container_runner.shared.errors import (
    CannotStartError,
    CommandNotExecutableError,
    CommandNotFoundError,
    TurnFailedError,
)
from schema.layout import FOR_THE_PROGRAM
from schema.os_faults import Fault, as_host_error, fault_of

_DRAIN_S: Final = 1.0  # seconds to read what the program wrote before its end
TERM_WAIT_S: Final = 1.0
# Errors that are the fault of the program or its arguments. Any other error of fork and exec is the machine's fault.
_THE_PROGRAMS_OWN: Final = frozenset({errno.E2BIG, errno.ETXTBSY, errno.EINVAL, errno.ELIBBAD, errno.ELIBACC})
_RUNNERS_OWN: Final = ("CLAWBUS_", "VIRTUAL_ENV", "PYTHON")

_Stream = TypeVar("_Stream", ByteReceiveStream, ByteSendStream)


async def start_program(
    command: Sequence[str],
    cwd: Path | None,
    environ: Mapping[str, str],
    children: Children,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start the program and register it with `children`. Raise CannotStartError or a TurnFailedError.

    It inherits its three streams and the descriptors in `pass_fds`.
    """
    program = command[0]
    try:
        return await _open(command, cwd, environ, children, pass_fds)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CommandNotFoundError(f"The program {program!r} does not exist.") from error
    except PermissionError as error:
        raise CommandNotExecutableError(f"The program {program!r} may not be executed.") from error
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            raise CommandNotExecutableError(f"The program {program!r} has no format to execute.") from error
        if error.errno not in _THE_PROGRAMS_OWN and fault_of(error) is Fault.HOST:
            raise CannotStartError(f"the program {program!r} cannot be started: {error.strerror}.") from error
        raise TurnFailedError(f"The program {program!r} cannot be started: {error.strerror}.") from error
    except RuntimeError as error:  # a thread waits for the program, and may fail to start
        if (trouble := as_host_error(error, f"the program {program!r} cannot be started")) is None:
            raise
        raise CannotStartError(str(trouble)) from error


async def _open(
    command: Sequence[str], cwd: Path | None, environ: Mapping[str, str], children: Children, pass_fds: Sequence[int]
) -> Process:
    """Start the program. A cancellation takes effect after the start, so that SIGTERM comes before SIGKILL."""
    started: list[Process] = []
    with children.starting(), anyio.CancelScope(shield=True):
        process = await anyio.open_process(command, cwd=cwd, env=environ, start_new_session=True, pass_fds=pass_fds)
        children.await_(process.pid)
        _expect_broken_pipe(process)
        started.append(process)
    return started[0]


def _expect_broken_pipe(process: Process) -> None:
    """Mark a broken standard input as seen: `send` tells its caller, but older Pythons print a traceback as well.

    CPython's issue 104340. The future is asyncio's own; where it has another name, nothing is marked.
    """
    protocol = getattr(getattr(process.stdin, "_stream", None), "_protocol", None)
    closed: object = getattr(protocol, "_stdin_closed", None)
    if isinstance(closed, asyncio.Future):
        cast("asyncio.Future[None]", closed).add_done_callback(lambda future: future.cancelled() or future.exception())


async def end_program(process: Process) -> None:
    """End and reap everything in the program's process group: SIGTERM, up to TERM_WAIT_S seconds, SIGKILL."""
    if process.returncode is None:
        signal_group(process, signal.SIGTERM)
        with anyio.move_on_after(TERM_WAIT_S):
            await process.wait()
    signal_group(process, signal.SIGKILL)
    await process.aclose()


async def no_more_output(process: Process) -> None:
    """Return a moment after the program has exited, and kill what is left of its process group.

    A child that has left the group may keep the output open, and then its end never comes.
    """
    await process.wait()
    signal_group(process, signal.SIGKILL)
    await anyio.sleep(_DRAIN_S)


def has_ended(process: Process) -> bool:
    """Return whether the program has exited, also when the event loop has not noticed yet."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the thread that waits for it has reaped it
        return True


def signal_group(process: Process, number: signal.Signals) -> None:
    """Send a signal to the program's process group, if there still is one."""
    # start_new_session made the program its group's leader, so the group's id is its pid.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def program_environment(environ: Mapping[str, str], runner_prefix: str) -> dict[str, str]:
    """Return the runner's environment without its own variables, and with what is for the program alone.

    `runner_prefix` is the runner's virtual environment.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith(_RUNNERS_OWN)}
    for_program = (name for name in environ if name.startswith(FOR_THE_PROGRAM))
    kept.update({name.removeprefix(FOR_THE_PROGRAM): environ[name] for name in for_program})
    if "PATH" in kept:
        own = os.path.join(runner_prefix, "")  # noqa: PTH118 -- compared as text with PATH's entries
        entries = kept["PATH"].split(os.pathsep)
        kept["PATH"] = os.pathsep.join(entry for entry in entries if not f"{entry}/".startswith(own)) or os.defpath
    return kept


def opened(stream: _Stream | None) -> _Stream:
    """Return one of the program's streams. Raise TurnFailedError if it was started without."""
    if stream is None:
        raise TurnFailedError("The program was started without its streams.")
    return stream


def signal_name(number: int) -> str:
    """Return a signal's name, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def by_whom(number: int) -> str:
    """Return the likely reason for a SIGKILL that the runner did not send; its own kills are reported as other errors."""
    return ": the system does that to a program that reaches its memory limit" if number == signal.SIGKILL else ""
