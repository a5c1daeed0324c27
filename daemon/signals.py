"""Unix signals, from the first moment of `clawbus run` to the last: each is kept until somebody takes it.

Installed before anything else is done, so that a signal during start-up neither ends the process nor is lost, and
never handed back to Python: a second SIGTERM during the end must not turn an orderly end into a death by signal.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
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
# What opening the controlling terminal answers when there is none, or when it was hung up. Nothing else (EMFILE) says so.
_NO_TERMINAL: Final = frozenset({errno.ENXIO, errno.EIO, errno.ENOTTY, errno.ENODEV, errno.ENOENT})


class SignalInbox:
    """The process's signals. Made once, in the main thread; `next` waits for the next one in the event loop."""

    def __init__(self) -> None:
        self._waiting: list[signal.Signals] = []
        self._stopped = False
        self._closed = False
        self._wake: Callable[[], object] | None = None
        self._start: anyio.CancelScope | None = None
        # A process that was started with SIGHUP ignored (nohup) does not belong to its terminal.
        self._has_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and not _terminal_gone()

    @contextmanager
    def installed(self) -> Generator[None]:
        """Take the signals over. They are Python handlers and not SIG_IGN, which the agents' processes would inherit."""
        before = {number: signal.getsignal(number) for number in (*STOP, RELOAD, *IGNORED)}
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                # Python's own end resets handlers to the default, but leaves an ignored signal ignored. A mask would
                # hold for one thread only, and a worker thread may outlive the others by a moment.
                signal.signal(number, signal.SIG_IGN if self._closed else handler)

    @property
    def has_terminal(self) -> bool:
        """Whether the daemon was started in a terminal."""
        return self._has_terminal

    def terminal_closed(self) -> bool:
        """Whether the terminal that the daemon was started in is gone."""
        return self._has_terminal and _terminal_gone()

    def hang_up(self) -> None:
        """Ask for an orderly end, as SIGTERM does."""
        self._add(signal.SIGTERM)

    async def next(self) -> signal.Signals:
        """Wait for the next signal that means something: one of STOP, or RELOAD."""
        while not self._waiting:
            woken = anyio.Event()
            self._attach(woken.set)
            if not self._waiting:
                await woken.wait()
        return self._waiting.pop(0)

    @contextmanager
    def interruptible_start(self) -> Generator[anyio.CancelScope]:
        """A part of the start-up that SIGTERM and SIGINT cancel. The signal itself stays for `next`."""
        with anyio.CancelScope() as scope:
            self._start = scope
            self._attach(self._cancel_start)
            self._cancel_start()
            try:
                yield scope
            finally:
                self._start = None

    def close(self) -> None:
        """From now on no signal ends the process: not while the handlers are given back, nor while Python itself ends."""
        self._closed = True
        signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP, RELOAD, *IGNORED})

    def _cancel_start(self) -> None:
        if self._stopped and self._start is not None:
            self._start.cancel()

    def _attach(self, wake: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()

        def call() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(wake)

        self._wake = call

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number not in IGNORED:
            self._add(signal.Signals(number))

    def _add(self, number: signal.Signals) -> None:
        self._stopped = self._stopped or number in STOP
        if number not in self._waiting:  # 300 times SIGHUP are one reload
            self._waiting.append(number)
        if self._wake is not None:
            self._wake()


def _terminal_gone() -> bool:
    """Whether this process has no controlling terminal, or one that was hung up."""
    try:
        descriptor = os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error.errno in _NO_TERMINAL
    os.close(descriptor)
    return False
