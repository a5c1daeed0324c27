"""Unix signals, from the start of `clawbus serve` to its end: each one is kept until it is handled.

Installed before anything else is done, so that a signal during start-up neither ends the process nor is lost, and
never handed back to Python: a second SIGTERM during the end must not turn an orderly end into a death by signal.

The handlers are built-in functions, never Python ones. Python runs waiting handlers whenever a Python function begins,
a handler's own beginning included, so that signals in quick succession would nest until the stack is exhausted.
"""

from __future__ import annotations

import asyncio
import errno
import operator
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import anyio

STOP: Final = frozenset({signal.SIGTERM, signal.SIGINT})
RELOAD: Final = signal.SIGHUP
# What log rotation and habit send to daemons. The log file needs no signal: it is reopened when it was moved away.
IGNORED: Final = frozenset(
    {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO}
)
_TERMINAL: Final = "/dev/tty"
# The errors of opening the controlling terminal that prove that there is none, or that it was hung up. Others (EMFILE) do not.
_NO_TERMINAL: Final = frozenset({errno.ENXIO, errno.EIO, errno.ENOTTY, errno.ENODEV, errno.ENOENT})


class SignalInbox:
    """The process's signals. Made once, in the main thread; `next` waits for the next one in the event loop."""

    def __init__(self) -> None:
        # Number -> frame, as Python calls a handler. A set of the numbers in the order in which they first came.
        self._waiting: dict[int, FrameType | None] = {}
        self._closed = False
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # A process that was started with SIGHUP ignored (nohup) does not belong to its terminal.
        self._has_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and not _terminal_gone()

    @contextmanager
    def installed(self) -> Generator[None]:
        """Take the signals over. They have handlers and not SIG_IGN, which the agents' processes would inherit."""
        before = {number: signal.getsignal(number) for number in (*STOP, RELOAD, *IGNORED)}
        earlier_writer = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in before:
            # `is_` compares its two arguments and does nothing.
            signal.signal(number, operator.is_ if number in IGNORED else self._waiting.setdefault)
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier_writer)
            for number, handler in before.items():
                # Python's own end resets handlers to the default, but leaves an ignored signal ignored. A mask would
                # hold for one thread only, and a worker thread may outlive the others by a moment.
                signal.signal(number, signal.SIG_IGN if self._closed else handler)
            os.close(self._wake_reader)
            os.close(self._wake_writer)

    @property
    def has_terminal(self) -> bool:
        """Whether the daemon was started in a terminal."""
        return self._has_terminal

    def terminal_closed(self) -> bool:
        """Return whether the terminal that the daemon was started in is gone."""
        return self._has_terminal and _terminal_gone()

    def hang_up(self) -> None:
        """Ask for an orderly end, as SIGTERM does. To be called in the event loop's thread."""
        self._waiting.setdefault(signal.SIGTERM, None)
        with suppress(BlockingIOError):  # the pipe is full of unread wake-ups, and one is enough
            os.write(self._wake_writer, b"\0")

    async def next(self) -> signal.Signals:
        """Wait for the next signal that the daemon acts on: one of STOP, or RELOAD."""
        while not self._waiting:
            await anyio.wait_readable(self._wake_reader)
            self._drain()
        waiting = tuple(self._waiting)  # copied in one step: a handler may add to the dictionary between two
        number = waiting[0]
        del self._waiting[number]
        return signal.Signals(number)

    @contextmanager
    def interruptible_start(self) -> Generator[anyio.CancelScope]:
        """Run a part of the start-up that SIGTERM and SIGINT cancel. The signal itself stays for `next`."""
        loop = asyncio.get_running_loop()
        with anyio.CancelScope() as scope:

            def cancel_on_stop() -> None:
                self._drain()
                if STOP & self._waiting.keys():
                    scope.cancel()

            loop.add_reader(self._wake_reader, cancel_on_stop)
            cancel_on_stop()
            try:
                yield scope
            finally:
                loop.remove_reader(self._wake_reader)

    def close(self) -> None:
        """Block the signals for good, so that none ends the process while the handlers are restored and Python exits."""
        self._closed = True
        signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP, RELOAD, *IGNORED})

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake_reader, 4096):
                pass


def _terminal_gone() -> bool:
    """Return whether this process has no controlling terminal, or one that was hung up."""
    try:
        descriptor = os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error.errno in _NO_TERMINAL
    os.close(descriptor)
    return False
