"""Reads the entries of the local channel's mailboxes. Read-only."""

from __future__ import annotations

from pathlib import Path

from daemon.inspect.open_registry import require_folder
from daemon.store.data_layout import Layout
from daemon.store.mailbox import MailboxEntry, cursor_before_last, mailbox_names, read_mailbox


def mailbox_entries(data_dir: Path, mailbox: str, after: int, limit: int) -> list[MailboxEntry]:
    """Return the entries of one mailbox above a cursor, oldest first; none if nothing was ever delivered to it."""
    require_folder(data_dir)
    return read_mailbox(Layout(data_dir).mailbox_db, mailbox, after, limit)


def before_newest(data_dir: Path, mailbox: str, count: int) -> int:
    """Return the cursor above which the newest `count` entries of one mailbox lie."""
    require_folder(data_dir)
    return cursor_before_last(Layout(data_dir).mailbox_db, mailbox, count)


def known_mailboxes(data_dir: Path, limit: int) -> list[str]:
    """Return the names of at most `limit` mailboxes that hold an entry, sorted."""
    require_folder(data_dir)
    return mailbox_names(Layout(data_dir).mailbox_db, limit)
