"""Gives the runner's files in `out/` the rights back that the agent, which is the same user, took from them.

`chmod -R a-w /workspace` would otherwise be the end of the session: no answer could be committed, in this container or the next.
Anything but a plain file in place of outbound.db or its journal stays: the host judges it.
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
    """Mend `out/`, its databases, its small files and `out/outbox/`. Return the names of what was mended. Never raise.

    Remove what is no folder in place of `out/outbox/`, and no plain file in place of the heartbeat and the words: each is
    made again when it is needed.
    """
    outbox = out_folder / OUTBOX_FILES
    mended = [out_folder.name] * _mend(out_folder, stat.S_ISDIR, _FOLDER)
    mended += [name for name in _DATABASE if _mend(out_folder / name, stat.S_ISREG, _FILE)]
    mended += [name for name in _DISPOSABLE if _mend(out_folder / name, stat.S_ISREG, _FILE, remove=True)]
    mended += [outbox.name] * _mend(outbox, stat.S_ISDIR, _FOLDER, remove=True)
    return mended


def _mend(path: Path, is_kind: Callable[[int], bool], wanted: int, *, remove: bool = False) -> bool:
    """Return whether the path lacked its rights and has them now, or was something else and has been removed."""
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
