"""Runs any program as the agent: the turn as JSON on its stdin, the answer on its stdout (docs/write-an-agent.md).

The program runs in its own process group, and no process of that group outlives the turn. The runner's own variables
(CLAWBUS_*, its virtual environment, PYTHON*) are not passed on.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, TypeVar

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

from container_runner.providers.error_output import ErrorOutput, last_words, own_reason
from container_runner.providers.lines import Event, OutputParser, ProgressNote, ToolStart
from container_runner.providers.protocol import Answer, DeclaredTimeout, Progress, ProviderContext, Turn
from container_runner.shared.errors import (
    AnswerTooLargeError,
    CannotStartError,
    CommandExitError,
    CommandNotExecutableError,
    CommandNotFoundError,
    CommandSignalError,
    CommandTimeoutError,
    TurnDeferredError,
    TurnFailedError,
)
from container_runner.shared.running_time import cancel_after_running
from schema.os_faults import Fault, as_host_error, fault_of

_TERM_WAIT_S: Final = 1.0
# A process that left the group may hold stdout open for ever. The program's own output is read long before this.
_DRAIN_S: Final = 1.0
# Errors that are the fault of the program or its arguments. Any other error of fork and exec is the machine's fault.
_THE_PROGRAMS_OWN: Final = frozenset({errno.E2BIG, errno.ETXTBSY, errno.EINVAL, errno.ELIBBAD, errno.ELIBACC})
_RUNNERS_OWN: Final = ("CLAWBUS_", "VIRTUAL_ENV", "PYTHON")

_Stream = TypeVar("_Stream", ByteReceiveStream, ByteSendStream)


class CommandProvider:
    """Starts the program for each turn."""

    accepts_follow_ups = False

    def __init__(self, context: ProviderContext) -> None:
        self._command = context.settings.command
        self._timeout_s = context.settings.timeout_s
        self._max_bytes = context.settings.max_answer_bytes
        self._output = context.settings.output
        self._children = context.children
        self._cwd = context.agent_folder if context.agent_folder.is_dir() else None
        self._environ = program_environment(context.environ, sys.prefix)
        # Killing the program also takes time without any progress, so include it.
        self.silence: DeclaredTimeout | None = DeclaredTimeout("command", self._timeout_s + _TERM_WAIT_S)

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """Run the program and return its answer. Raise a TurnFailedError; when cancelled, kill the program first."""
        process = await self._start()
        try:
            return await _Conversation(process, self._max_bytes, self._output, progress).run(turn, self._timeout_s)
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
            self._children.forget(process.pid)

    async def _start(self) -> Process:
        program = self._command[0]
        try:
            return await self._open()
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

    async def _open(self) -> Process:
        """Start the program. A cancellation takes effect after the start, so that SIGTERM comes before SIGKILL."""
        started: list[Process] = []
        with self._children.starting(), anyio.CancelScope(shield=True):
            process = await anyio.open_process(self._command, cwd=self._cwd, env=self._environ, start_new_session=True)
            self._children.await_(process.pid)
            started.append(process)
        return started[0]


class _Conversation:
    """One program's streams, from its start to its end."""

    def __init__(self, process: Process, max_bytes: int, output: str, progress: Progress) -> None:
        self._process = process
        self._max_bytes = max_bytes
        self._progress = progress
        self._parser = OutputParser(output)
        self._failure: TurnFailedError | None = None
        self._stderr = ErrorOutput(progress.wrote)

    async def run(self, turn: Turn, timeout_s: float) -> Answer:
        code = 0
        with anyio.CancelScope() as limit:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel_after_running, limit, timeout_s)
                code = await self._talk(json.dumps(turn.to_json(), ensure_ascii=True).encode() + b"\n")
                group.cancel_scope.cancel()
        if limit.cancelled_caught:
            tail = self._stderr.tail()
            raise CommandTimeoutError(f"The program did not end within {timeout_s:g} s.{last_words(tail)}", detail=tail)
        if self._failure is not None:
            self._failure.detail = self._stderr.tail()
            raise self._failure
        self._check_later(code)
        self._check_exit(code)
        return self._parser.answer()

    async def _talk(self, turn: bytes) -> int:
        """Write the turn, read all output and return the exit code. An invalid answer ends it early and sets `_failure`."""
        code = -int(signal.SIGTERM)
        async with anyio.create_task_group() as group:
            reading = anyio.Event()
            group.start_soon(_send, _opened(self._process.stdin), turn)
            group.start_soon(self._stderr.read, _opened(self._process.stderr))
            group.start_soon(self._read_answer, _opened(self._process.stdout), reading, group.cancel_scope)
            code = await self._process.wait()
            # Kill the rest of its process group, which would keep the pipes open.
            _signal(self._process, signal.SIGKILL)
            with anyio.move_on_after(_DRAIN_S):
                await reading.wait()
            group.cancel_scope.cancel()
        return code

    async def _read_answer(self, stream: ByteReceiveStream, done: anyio.Event, scope: anyio.CancelScope) -> None:
        try:
            await self._read_lines(stream)
        except TurnFailedError as failure:
            self._failure = failure
            scope.cancel()
        done.set()

    async def _read_lines(self, stream: ByteReceiveStream) -> None:
        """Read and parse the lines. Limit only the answer's size: progress may be reported without limit."""
        rest = bytearray()
        async for chunk in stream:
            rest += chunk
            if b"\n" in chunk:
                *lines, last = rest.split(b"\n")
                rest = last
                for line in lines:
                    await self._feed(bytes(line))
            self._check_size(len(rest))
        if rest:
            await self._feed(bytes(rest))

    async def _feed(self, line: bytes) -> None:
        self._check_size(len(line))
        await self._tell(self._parser.feed(line))

    def _check_size(self, more: int) -> None:
        if self._parser.held + more > self._max_bytes + 1:  # the last newline is not part of the answer
            raise AnswerTooLargeError(f"The answer has more than {self._max_bytes} bytes.")

    async def _tell(self, event: Event | None) -> None:
        match event:
            case None:
                pass
            case ProgressNote():
                self._progress.event()
            case ToolStart(name, timeout_s):
                await self._progress.tool_started(name, timeout_s)
            case _:
                await self._progress.tool_ended()

    def _check_later(self, code: int) -> None:
        """Raise TurnDeferredError when the program asked to be tried later: by its exit code, or by a `later` line."""
        wish = self._parser.later
        if code == os.EX_TEMPFAIL:
            reason = wish.reason if wish is not None else None
            raise TurnDeferredError(reason or own_reason(self._stderr.tail()), after_s=wish.after_s if wish else None)
        if code == 0 and wish is not None:
            raise TurnDeferredError(wish.reason, after_s=wish.after_s)

    def _check_exit(self, code: int) -> None:
        if code == 0:
            return
        tail = self._stderr.tail()
        if code < 0:
            raise CommandSignalError(
                f"The program was ended by {_signal_name(-code)}{_by_whom(-code)}.{last_words(tail)}", detail=tail
            )
        raise CommandExitError(f"The program ended with exit code {code}.{last_words(tail)}", detail=tail)


def program_environment(environ: Mapping[str, str], runner_prefix: str) -> dict[str, str]:
    """Return the runner's environment without its own variables. `runner_prefix` is its virtual environment."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_RUNNERS_OWN)}
    if "PATH" in kept:
        own = os.path.join(runner_prefix, "")  # noqa: PTH118 -- compared as text with PATH's entries
        entries = kept["PATH"].split(os.pathsep)
        kept["PATH"] = os.pathsep.join(entry for entry in entries if not f"{entry}/".startswith(own)) or os.defpath
    return kept


async def _send(stream: ByteSendStream, turn: bytes) -> None:
    """Write the turn to the program, which may stop reading it at any point."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await stream.send(turn)
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await stream.aclose()


async def _end(process: Process) -> None:
    """End and reap everything in the program's process group: SIGTERM, up to _TERM_WAIT_S seconds, SIGKILL."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with anyio.move_on_after(_TERM_WAIT_S):
            await process.wait()
    _signal(process, signal.SIGKILL)
    await process.aclose()


def _signal(process: Process, number: signal.Signals) -> None:
    # start_new_session made the program its group's leader, so the group's id is its pid.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _by_whom(number: int) -> str:
    """Return the likely reason for a SIGKILL that the runner did not send; its own kills are reported as other errors."""
    return ": the system does that to a program that reaches its memory limit" if number == signal.SIGKILL else ""


def _opened(stream: _Stream | None) -> _Stream:
    if stream is None:
        raise TurnFailedError("The program was started without its streams.")
    return stream
