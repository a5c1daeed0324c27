"""Whether another process can open anything: a daemon without a free descriptor cannot say so itself, nor answer."""

from __future__ import annotations

import resource
from pathlib import Path

from daemon.core.facts import UsedUp


def open_files_used_up(pid: int) -> UsedUp | None:
    """Return the limit that the process has reached; None when it has room, is gone, or may not be looked at."""
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return None
    # The limit is on the number of a new descriptor, not on how many there are (getrlimit(2)).
    if soft == resource.RLIM_INFINITY or any(number not in taken for number in range(soft)):
        return None
    return UsedUp(pid, soft, hard)
