"""Runs any program as the agent: the turn as JSON on its stdin, the answer on its stdout (docs/write-an-agent.md).

The program runs in its own process group, and no process of that group outlives the turn.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

from container_runner.providers.answer_pipe import AnswerPipe
from container_runner.providers.error_output import ErrorOutput, last_words, own_reason
from container_runner.providers.lines import OutputParser
from container_runner.providers.program import (
    TERM_WAIT_S,
    by_whom,
    end_program,
    opened,
    program_environment,
    signal_group,
    signal_name,
    start_program,
)
from container_runner.providers.protocol import Answer, DeclaredTimeout, Progress, ProviderContext, Turn
from container_runner.providers.turn_output import TurnOutput
from container_runner.shared.errors import (
    CommandExitError,
    CommandSignalError,
    CommandTimeoutError,
    TurnDeferredError,
    TurnFailedError,
    TurnStoppedError,
)
from container_runner.shared.running_time import cancel_after_running

# Seconds to read on after the exit: a process that left the group may hold stdout open forever. The program's own output is
# read long before that.
_DRAIN_S: Final = 1.0


class CommandProvider:
    """Starts the program anew for each turn."""

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
        self.silence: DeclaredTimeout | None = DeclaredTimeout("command", self._timeout_s + TERM_WAIT_S)

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """Run the program and return its answer. Raise a TurnFailedError or TurnDeferredError. When cancelled, kill it first."""
        with AnswerPipe() as answers:
            passed = (answers.descriptor,)
            process = await start_program(self._command, self._cwd, self._environ, self._children, passed)
            try:
                conversation = _Conversation(process, self._max_bytes, self._output, progress, answers)
                return await conversation.run(turn, self._timeout_s)
            finally:
                with anyio.CancelScope(shield=True):
                    await end_program(process)
                self._children.forget(process.pid)

    async def close(self) -> None:
        """Do nothing: no program outlives a turn."""


class _Conversation:
    """One program's streams, from its start to its end."""

    def __init__(self, process: Process, max_bytes: int, output: str, progress: Progress, answers: AnswerPipe) -> None:
        self._process = process
        self._parser = OutputParser(output)
        self._output = TurnOutput(self._parser, max_bytes, progress, answers.write)
        self._failure: TurnFailedError | None = None
        self._stderr = ErrorOutput(progress.wrote)
        self._answers = answers
        self._progress = progress
        self._stopped = False

    async def run(self, turn: Turn, timeout_s: float) -> Answer:
        code = 0
        with anyio.CancelScope() as limit:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel_after_running, limit, timeout_s, lambda: self._output.waiting > 0)
                group.start_soon(self._heed_stop, limit)
                given = {**turn.to_json(), "answers": self._answers.path}
                code = await self._talk(json.dumps(given, ensure_ascii=True).encode() + b"\n")
                group.cancel_scope.cancel()
        if limit.cancelled_caught:
            tail = self._stderr.tail()
            if self._stopped:
                raise TurnStoppedError("The message was cancelled, and the program was ended.", detail=tail)
            raise CommandTimeoutError(f"The program did not end within {timeout_s:g} s.{last_words(tail)}", detail=tail)
        if self._failure is not None:
            self._failure.detail = self._stderr.tail()
            raise self._failure
        self._check_later(code)
        self._check_exit(code)
        return self._parser.answer()

    async def _heed_stop(self, limit: anyio.CancelScope) -> None:
        """When a stop is requested, end the program as its time-out does: SIGTERM, then SIGKILL."""
        await self._progress.stop_asked()
        self._stopped = True
        limit.cancel()

    async def _talk(self, turn: bytes) -> int:
        """Write the turn, read all output and return the exit code. An invalid line stops this early and sets `_failure`."""
        code = -int(signal.SIGTERM)
        async with anyio.create_task_group() as group:
            reading = anyio.Event()
            self._output.tasks = group
            group.start_soon(_send, opened(self._process.stdin), turn)
            group.start_soon(self._stderr.read, opened(self._process.stderr))
            group.start_soon(self._read_answer, opened(self._process.stdout), reading, group.cancel_scope)
            code = await self._process.wait()
            # Kill the rest of its process group, which would keep the pipes open.
            signal_group(self._process, signal.SIGKILL)
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
        async for chunk in stream:
            for line in self._output.lines(chunk):
                await self._output.feed(line)
            self._output.check_rest()
        if rest := self._output.last():
            await self._output.feed(rest)

    def _check_later(self, code: int) -> None:
        """Raise TurnDeferredError if the program asked for a later try, by exit code 75 (EX_TEMPFAIL) or by a `later` line."""
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
                f"The program was ended by {signal_name(-code)}{by_whom(-code)}.{last_words(tail)}", detail=tail
            )
        raise CommandExitError(f"The program ended with exit code {code}.{last_words(tail)}", detail=tail)


async def _send(stream: ByteSendStream, turn: bytes) -> None:
    """Write the turn to the program, which may stop reading it at any point."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await stream.send(turn)
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await stream.aclose()
