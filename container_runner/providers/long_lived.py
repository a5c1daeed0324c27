"""Runs one program for many turns: JSON lines in and out, one process for as long as the container lives.

The program prints the line `ready` once. It then reads a line `turn` for each turn and prints a line `end` when it is done.
The first turn starts it; if it exits, the next turn starts it again. A turn during which it exits has failed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, cast

import anyio
import anyio.lowlevel
from anyio.abc import Process

from container_runner.providers.error_output import ErrorOutput, last_words, own_reason
from container_runner.providers.lines import OutputParser, type_of
from container_runner.providers.program import (
    TERM_WAIT_S,
    by_whom,
    end_program,
    has_ended,
    no_more_output,
    opened,
    program_environment,
    signal_name,
    start_program,
)
from container_runner.providers.protocol import Answer, DeclaredTimeout, Progress, ProviderContext, Turn
from container_runner.providers.turn_output import TurnOutput
from container_runner.shared.errors import (
    CommandEndedError,
    CommandExitError,
    CommandNotReadyError,
    CommandReportedError,
    CommandSignalError,
    CommandTimeoutError,
    TurnDeferredError,
    TurnFailedError,
    TurnStoppedError,
)
from container_runner.shared.running_time import cancel_after_running

_CANCEL_WAIT_S: Final = 5.0  # from the line `cancel` to the line `end`; then the program is killed
_CLOSE_WAIT_S: Final = 1.0  # from the end of standard input to SIGTERM
_EXIT_WAIT_S: Final = 1.0  # from the end of standard output to the exit
_DRAIN_CHUNKS: Final = 64  # chunks of output dropped between two turns; a program that prints more is ended
_LOOP_STEPS: Final = 2  # in the first step the event loop polls the pipe, in the second it reads
_MAX_UNREAD: Final = 64  # lines queued for the program
_MAX_REASON: Final = 1000


class LongLivedProvider:
    """Keeps one program running over many turns."""

    accepts_follow_ups = False

    def __init__(self, context: ProviderContext) -> None:
        self._command = context.settings.command
        self._timeout_s = context.settings.timeout_s
        self._max_bytes = context.settings.max_answer_bytes
        self._children = context.children
        self._cwd = context.agent_folder if context.agent_folder.is_dir() else None
        self._environ = program_environment(context.environ, sys.prefix)
        self._process: Process | None = None
        # Cancelling a turn and ending the program take time without any progress, so include it.
        longest = self._timeout_s + _CANCEL_WAIT_S + _CLOSE_WAIT_S + TERM_WAIT_S
        self.silence: DeclaredTimeout | None = DeclaredTimeout("command", longest)

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """Give the program the turn and return its answer. When cancelled, end the program first."""
        keep = False
        try:
            fresh = not await self._still_there(progress)
            if fresh:
                self._process = await start_program(self._command, self._cwd, self._environ, self._children)
            conversation = _Conversation(cast("Process", self._process), self._max_bytes, progress)
            try:
                return await conversation.run(turn, self._timeout_s, fresh=fresh)
            finally:
                keep = conversation.over
        finally:
            if not keep:
                await self.close()

    async def close(self) -> None:
        """End the program, if one runs: the end of its standard input, SIGTERM, SIGKILL."""
        process, self._process = self._process, None
        if process is None:
            return
        with anyio.CancelScope(shield=True):
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                await opened(process.stdin).aclose()
            with anyio.move_on_after(_CLOSE_WAIT_S):
                await process.wait()
            await end_program(process)
        self._children.forget(process.pid)

    async def _still_there(self, progress: Progress) -> bool:
        """Return whether the last turn's program still runs. Drop what it has printed since: that belongs to no turn."""
        process = self._process
        if process is None:
            return False
        if await _drained(process) and not has_ended(process):
            return True
        with anyio.move_on_after(_EXIT_WAIT_S):
            await process.wait()
            await ErrorOutput(progress.wrote).read(opened(process.stderr))
        code = process.returncode
        ended = "still prints" if code is None else f"ended with code {code}"
        progress.wrote(f"clawbus: the program {ended} between two turns; it is started again")
        await self.close()
        return False


class _Conversation:
    """One turn with the program. When `over` is true, the program has printed `end`, so it can get another turn."""

    def __init__(self, process: Process, max_bytes: int, progress: Progress) -> None:
        self._process = process
        self._stderr = ErrorOutput(progress.wrote)
        self._parser = OutputParser("lines")
        self._to_program, self._unread = anyio.create_memory_object_stream[Mapping[str, object]](_MAX_UNREAD)
        self._output = TurnOutput(self._parser, max_bytes, progress, self._send)
        self._failure: TurnFailedError | TurnDeferredError | None = None
        self._ready = False
        self._progress = progress
        self._stopped = False
        self._ended = False
        self.over = False

    async def run(self, turn: Turn, timeout_s: float, *, fresh: bool) -> Answer:
        """Return the answer. Raise TurnDeferredError or a TurnFailedError."""
        self._ready = not fresh
        given = {"type": "turn", **turn.to_json()}
        with self._to_program, self._unread:
            async with anyio.create_task_group() as group:
                self._output.tasks = group
                group.start_soon(self._stderr.read, opened(self._process.stderr))
                group.start_soon(self._write)
                if not await self._in_time(given, timeout_s):
                    if self._ended:
                        self._failure = await self._why_it_ended()
                    else:
                        await self._cancel(self._why_cancelled(timeout_s))
                group.cancel_scope.cancel()
        if self._failure is not None:
            if isinstance(self._failure, TurnFailedError):
                self._failure.detail = self._stderr.tail()
            raise self._failure
        if (wish := self._parser.later) is not None:
            raise TurnDeferredError(wish.reason, after_s=wish.after_s)
        return self._parser.answer()

    async def _in_time(self, turn: Mapping[str, object], timeout_s: float) -> bool:
        with anyio.CancelScope() as limit:
            async with anyio.create_task_group() as clock:
                clock.start_soon(cancel_after_running, limit, timeout_s, lambda: self._output.waiting > 0)
                clock.start_soon(self._heed_stop, limit)
                clock.start_soon(self._notice_end, limit)
                if self._ready:
                    self._send(turn)
                await self._read(turn)
                clock.cancel_scope.cancel()
        return not limit.cancelled_caught

    async def _heed_stop(self, limit: anyio.CancelScope) -> None:
        await self._progress.stop_asked()
        self._stopped = True
        limit.cancel()

    async def _notice_end(self, limit: anyio.CancelScope) -> None:
        await no_more_output(self._process)
        self._ended = True
        limit.cancel()

    async def _cancel(self, why: TurnFailedError) -> None:
        """Tell the program to stop, and wait up to 5 s for its line `end`. If it comes, the program is kept."""
        if self._ready:
            self._send({"type": "cancel"})
            with anyio.move_on_after(_CANCEL_WAIT_S):
                await self._read({})
        self._failure = why

    def _why_cancelled(self, timeout_s: float) -> TurnFailedError:
        words = last_words(self._stderr.tail())
        if self._stopped:
            return TurnStoppedError("The message was cancelled, and the program was asked to stop.")
        if self._ready:
            return CommandTimeoutError(f"The program did not end its turn within {timeout_s:g} s.{words}")
        return CommandNotReadyError(f"The program printed no line `ready` within {timeout_s:g} s.{words}")

    async def _read(self, turn: Mapping[str, object]) -> None:
        """Read up to the line `end`. An invalid line, or an end of the output before it, becomes `_failure`."""
        try:
            stream = opened(self._process.stdout)
            while not self.over:
                for line in self._output.lines(await stream.receive()):
                    if not self.over:
                        await self._take(line, turn)
                self._output.check_rest()
        except anyio.EndOfStream:
            self._failure = await self._why_it_ended()
        except TurnFailedError as failure:
            self.over = isinstance(failure, CommandReportedError)
            self._failure = failure

    async def _take(self, line: bytes, turn: Mapping[str, object]) -> None:
        kind = type_of(line) if line.strip() else None
        if not self._ready:
            if kind != "ready":
                raise CommandNotReadyError("The program's first line is not the line `ready`.")
            self._ready = True
            self._send(turn)
        elif kind == "end":
            self.over = True
            error = json.loads(line).get("error")
            if error:
                raise CommandReportedError(str(error)[:_MAX_REASON])
        elif kind != "ready":
            await self._output.feed(line)

    def _send(self, line: Mapping[str, object]) -> bool:
        try:
            self._to_program.send_nowait(line)
        except anyio.WouldBlock:
            return False
        return True

    async def _write(self) -> None:
        """Write the queued lines to the program. The reader and the timeout notice a program that has exited or does not read."""
        stream = opened(self._process.stdin)
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            async for line in self._unread:
                await stream.send(json.dumps(line, ensure_ascii=True).encode() + b"\n")

    async def _why_it_ended(self) -> TurnFailedError | TurnDeferredError:
        with anyio.move_on_after(_EXIT_WAIT_S):
            await self._process.wait()
        code, tail = self._process.returncode, self._stderr.tail()
        words = last_words(tail)
        if code == os.EX_TEMPFAIL:
            wish = self._parser.later
            return TurnDeferredError(
                (wish.reason if wish is not None else None) or own_reason(tail), after_s=wish.after_s if wish else None
            )
        if code is None:
            return CommandEndedError(f"The program closed its standard output before its line `end`.{words}")
        if code < 0:
            return CommandSignalError(f"The program was ended by {signal_name(-code)}{by_whom(-code)}.{words}")
        if code > 0:
            return CommandExitError(f"The program ended with exit code {code} before its line `end`.{words}")
        return CommandEndedError(f"The program ended before its line `end`.{words}")


async def _drained(process: Process) -> bool:
    """Drop what the program has printed by now. Return False if it has exited or does not stop printing."""
    stream = opened(process.stdout)
    for _ in range(_DRAIN_CHUNKS):
        for _ in range(_LOOP_STEPS):
            await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(0) as empty:
            try:
                await stream.receive()
            except anyio.EndOfStream:
                return False
        if empty.cancelled_caught:
            return True
    return False
