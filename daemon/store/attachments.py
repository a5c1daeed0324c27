"""The files of messages on disk: in/inbox/<message id>/, which only the host writes and agents can only read.

They are there, and synced, before the row that names them. A crash in between leaves a folder without a row: the same
message replaces it when it is sent again, and retention removes it otherwise.
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from daemon.core.attachments import Attachment
from schema.durable_files import remove_any, sync_folder, write_new_file
from schema.handles import Reader
from schema.ids import is_message_id
from schema.layout import INBOX_FILES, SessionFolder
from schema.os_faults import host_error

_TYPES: Final = mimetypes.MimeTypes(filenames=())  # the table built into Python: the same answer on every machine
_PARTIAL: Final = ".partial"  # begins like no message id


def media_type(name: str) -> str:
    """Return the media type that a file's name suggests."""
    return _TYPES.guess_type(name)[0] or "application/octet-stream"


def place_attachments(folder: SessionFolder, message_id: str, files: Sequence[Attachment]) -> None:
    """Put the files into the message's folder, all or none. Raise StorageError.

    Call it under the session's lock and before the message has a row: a folder of that name is a crash's and is replaced.
    """
    inbox = folder.inbox / INBOX_FILES
    partial, target = inbox / _PARTIAL, inbox / message_id
    try:
        inbox.mkdir(mode=0o755, exist_ok=True)
        inbox.chmod(0o755)
        remove_any(partial)
        partial.mkdir()
        for one in files:
            write_new_file(partial / one.name, one.data, 0o644)
        partial.chmod(0o755)
        sync_folder(partial)
        remove_any(target)
        partial.rename(target)
        sync_folder(inbox)
        sync_folder(folder.inbox)
    except OSError as error:
        with suppress(OSError):
            remove_any(partial)
        raise host_error(error, f"the message's files cannot be written to {inbox}") from error


def remove_attachments(db: Reader, folder: SessionFolder, ids: Sequence[str]) -> None:
    """Remove the folders of these messages, except one that another message names: a retry under another id."""
    root, going = folder.inbox / INBOX_FILES, set(ids)
    if not os.path.lexists(root):
        return  # as in most sessions: no message had a file
    for identity in filter(is_message_id, ids):
        # Strings: a Path for each message costs more than all the rest of a step of retention.
        if os.path.lexists(f"{root}/{identity}") and _named_by(db, identity) <= going:
            remove_any(root / identity)


def remove_unnamed(db: Reader, folder: SessionFolder, cutoff: int) -> None:
    """Remove folders that were made before `cutoff` (epoch milliseconds) and that no message has or names."""
    for path in _folders(folder.inbox / INBOX_FILES):
        if path.lstat().st_mtime_ns // 1_000_000 < cutoff and not _named_by(db, path.name):
            remove_any(path)


def _folders(inbox: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from list(inbox.iterdir())


def _named_by(db: Reader, identity: str) -> set[str]:
    rows = db.all(
        "SELECT id FROM messages_in WHERE id = ? OR instr(content, ?) > 0", (identity, f'"{INBOX_FILES}/{identity}/')
    )
    return {row["id"] for row in rows}
