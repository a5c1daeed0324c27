"""Repeats a request while the daemon starts, or while one slot's daemon hands over to the other's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock
from daemon.core.errors import LostAnswerError, NotListeningError

T = TypeVar("T")

_PATIENCE_S: Final = 10.0  # how long to repeat
_PAUSE_S: Final = 0.1


def insist(invocation: Invocation, ask: Callable[[], T]) -> T:
    """Call `ask` and return its result. While a daemon starts or slots hand over, repeat it for at most ten seconds.

    The request must carry its own id. An attempt whose answer was lost may have stored it, and a repetition must not store
    it twice. Raise the errors of `ask`.
    """
    clock = SystemClock()
    deadline = clock.monotonic() + _PATIENCE_S
    while True:
        try:
            return ask()
        except (NotListeningError, LostAnswerError) as error:
            starting = isinstance(error, NotListeningError) and invocation.silent_daemon() is not None
            hand_over = (invocation.place.data_dir / "deploy" / "state.json").exists()
            if clock.monotonic() > deadline or not (starting or hand_over):
                raise
            time.sleep(_PAUSE_S)
