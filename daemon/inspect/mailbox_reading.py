"""Reads the entries of the local channel's mailboxes. Read-only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from daemon.inspect.open_registry import require_folder
from daemon.store.data_layout import Layout
from daemon.store.mailbox import MailboxEntry, cursor_before_last, mailbox_names, read_mailbox
from daemon.store.rebuild import found_sessions
from schema.connect import holds_pages
from schema.errors import StorageError

_LOST_HINT: Final = (
    "`clawbus serve` makes a new one. What no client had read is in a backup; the sessions still have each answer"
    " (`clawbus message show`)."
)


def mailbox_entries(data_dir: Path, mailbox: str, after: int, limit: int) -> list[MailboxEntry]:
    """Return the entries of one mailbox above a cursor, oldest first; none if nothing was ever delivered to it.

    Raise StorageError, also where the file was lost.
    """
    require_folder(data_dir)
    layout = Layout(data_dir)
    if not holds_pages(layout.mailbox_db) and any(found_sessions(layout.sessions_dir)):  # made before any session is
        raise StorageError(f"{layout.mailbox_db} is missing or empty: its entries were lost.", hint=_LOST_HINT)
    return read_mailbox(layout.mailbox_db, mailbox, after, limit)


def before_newest(data_dir: Path, mailbox: str, count: int) -> int:
    """Return the cursor above which the newest `count` entries of one mailbox lie."""
    require_folder(data_dir)
    return cursor_before_last(Layout(data_dir).mailbox_db, mailbox, count)


def known_mailboxes(data_dir: Path, limit: int) -> list[str]:
    """Return the names of at most `limit` mailboxes that hold an entry, sorted."""
    require_folder(data_dir)
    return mailbox_names(Layout(data_dir).mailbox_db, limit)
