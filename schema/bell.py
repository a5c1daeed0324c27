"""`.bell`: touched by a side that has committed something for the other. A hint and nothing else.

A commit alone does not say whether it matters to the other side, and its file may still be locked when its journal goes. Who
hears the bell reads at once. A commit without a bell is noticed a moment later, at the latest by the poll.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from schema.inotify import IN_ATTRIB, IN_DELETE, FileEvent
from schema.layout import BELL

BELL_EVENTS: Final = IN_ATTRIB | IN_DELETE


def ring(folder: Path) -> None:
    """Touch the bell in a folder of ours, made if need be. Never raises and follows no link: nothing depends on it."""
    path = folder / BELL
    with suppress(OSError):
        try:
            os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))
            os.utime(path, follow_symlinks=False)


def is_ring(event: FileEvent) -> bool:
    """Return whether this event is the other side's bell."""
    return event.name == BELL and bool(event.mask & IN_ATTRIB)


def is_commit(event: FileEvent, database: str) -> bool:
    """Return whether a transaction of this file just ended: in DELETE mode its journal goes at that moment."""
    return bool(event.mask & IN_DELETE) and event.name == f"{database}-journal"
