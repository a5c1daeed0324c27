"""Restores the permissions of the runner's files in `out/` if the agent, which is the same user, has removed them.

Otherwise `chmod -R a-w /workspace` would end the session: no answer could be committed, in this container or the next.
If outbound.db or its journal is anything but a plain file, it is left for the host to judge.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from schema.durable_files import remove_any
from schema.layout import HEARTBEAT, OUTBOUND_DB, OUTBOX_FILES, WORDS, WORDS_BEFORE

_FOLDER: Final = 0o755
_FILE: Final = 0o644
_DATABASE: Final = (OUTBOUND_DB, f"{OUTBOUND_DB}-journal")
_DISPOSABLE: Final = (HEARTBEAT, WORDS, WORDS_BEFORE)


def give_rights_back(out_folder: Path) -> list[str]:
    """Repair `out/`, outbound.db and its journal, the small files and `out/outbox/`. Return the names of what was repaired.

    Remove `out/outbox/` if it is not a folder, and a small file (the heartbeat, the agent's words) if it is not a plain
    file: each is made again when it is needed. Never raise.
    """
    outbox = out_folder / OUTBOX_FILES
    repaired = [out_folder.name] * _repair(out_folder, stat.S_ISDIR, _FOLDER)
    repaired += [name for name in _DATABASE if _repair(out_folder / name, stat.S_ISREG, _FILE)]
    repaired += [name for name in _DISPOSABLE if _repair(out_folder / name, stat.S_ISREG, _FILE, remove=True)]
    repaired += [outbox.name] * _repair(outbox, stat.S_ISDIR, _FOLDER, remove=True)
    return repaired


def _repair(path: Path, is_kind: Callable[[int], bool], wanted: int, *, remove: bool = False) -> bool:
    """Return whether the path was repaired: its missing permissions were added, or it was of the wrong kind and was removed."""
    with suppress(OSError, RecursionError):
        mode = os.lstat(path).st_mode
        if is_kind(mode):
            if stat.S_IMODE(mode) & wanted == wanted:
                return False
            path.chmod(stat.S_IMODE(mode) | wanted)
            return True
        if remove:
            remove_any(path)
            return True
    return False
