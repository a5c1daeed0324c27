"""Repeats a request that stores something under an id of its own while a daemon starts, or hands over to another slot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock
from daemon.core.errors import LostAnswerError, NotListeningError

T = TypeVar("T")

_HAND_OVER_S: Final = 10.0
_HAND_OVER_LOOK_S: Final = 0.1


def insist(invocation: Invocation, ask: Callable[[], T]) -> T:
    """Return what `ask` returns. A daemon that is starting, and a hand-over between slots, answer soon: try again for a while.

    What is asked for must have its id, so that an attempt whose answer was lost stores it no second time.
    """
    clock = SystemClock()
    deadline = clock.monotonic() + _HAND_OVER_S
    while True:
        try:
            return ask()
        except (NotListeningError, LostAnswerError) as error:
            starting = isinstance(error, NotListeningError) and invocation.silent_daemon() is not None
            hand_over = (invocation.place.data_dir / "deploy" / "state.json").exists()
            if clock.monotonic() > deadline or not (starting or hand_over):
                raise
            time.sleep(_HAND_OVER_LOOK_S)
