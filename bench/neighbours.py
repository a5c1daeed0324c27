"""How busy the machine is while the suite itself does nothing: figures beside busy neighbours are no figures of the bus.

Looks at the whole machine's counters and at no process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_STAT: Final = Path("/proc/stat")
_IDLE: Final = (3, 4)  # idle, iowait (proc_stat(5))
_COUNTED: Final = 8  # user .. steal; guest time is in user's already
LOOK_S: Final = 1.0
LIMIT: Final = 0.15


def counters(text: str) -> tuple[int, int]:
    """(busy, all) clock ticks of all processors together, from the text of /proc/stat."""
    values = [int(value) for value in text.splitlines()[0].split()[1 : 1 + _COUNTED]]
    return sum(values) - sum(values[place] for place in _IDLE), sum(values)


def share(before: tuple[int, int], after: tuple[int, int]) -> float:
    """The busy share between two looks, 0 to 1."""
    ticks = after[1] - before[1]
    return (after[0] - before[0]) / ticks if ticks > 0 else 0.0


def busy_share(seconds: float = LOOK_S) -> float:
    """What others use of the processors, looked at for `seconds`."""
    before = counters(_STAT.read_text(encoding="utf-8"))
    time.sleep(seconds)
    return share(before, counters(_STAT.read_text(encoding="utf-8")))


def disturbance(shares: Sequence[float]) -> str | None:
    """Why the processors were not the suite's own, from looks before and after it; None when they were."""
    worst = max(shares)
    return f"others used {worst:.0%} of the processors just before or after it" if worst > LIMIT else None
