"""Repeats a request that no daemon answers, because one may be starting, or handing over to the other slot's."""

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
# How long a daemon that was just started, as by `clawbus serve &`, may take to lock its folder.
_BEGIN_S: Final = 3.0


def insist(invocation: Invocation, ask: Callable[[], T]) -> T:
    """Call `ask` and return its result. If no daemon answers, repeat it for at most ten seconds while one starts.

    In an installation with slots, repeat it for as long in any case, after a lost answer too: a slot may be handing over
    to the other. If there is no sign of a daemon, repeat it for three seconds: one may just have been started.

    The request must carry its own id: an attempt whose answer was lost may have stored it, and a repeat must not store it
    twice. Raise the errors of `ask`.
    """
    clock = SystemClock()
    begun = clock.monotonic()
    while True:
        try:
            return ask()
        except (NotListeningError, LostAnswerError) as error:
            starting = isinstance(error, NotListeningError) and invocation.silent_daemon() is not None
            slots = (invocation.place.data_dir / "deploy" / "state.json").exists()
            lost = isinstance(error, LostAnswerError) and not slots
            if lost or clock.monotonic() - begun > (_PATIENCE_S if starting or slots else _BEGIN_S):
                raise
            time.sleep(_PAUSE_S)
