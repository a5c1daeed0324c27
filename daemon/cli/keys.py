"""The key that ends a screen that draws itself again and again."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Generator
from typing import Final

_QUIT: Final = frozenset(b"qQ\x04")


@contextlib.contextmanager
def quit_key() -> Generator[Callable[[float], bool]]:
    """Yield a function that waits for a number of seconds and returns whether `q` was pressed meanwhile.

    Keys are read one at a time until the end of the block, and the terminal is then as it was. Where standard input is no
    terminal, the function only waits.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield _only_wait
        return
    tty.setcbreak(descriptor)  # signals stay: Ctrl-C is still one
    try:
        yield lambda seconds: _pressed(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _only_wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _pressed(descriptor: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            keys = os.read(descriptor, 64)
            if not keys:  # the terminal is gone
                return True
            if _QUIT & set(keys):
                return True
    return False
