"""Finds the one session that an id belongs to, for every command that takes an id without its session. Read-only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from daemon.core.errors import AmbiguousIdError, UnknownMessageError
from daemon.core.short_ids import means
from daemon.inspect.central_reading import Key, folder_of
from daemon.inspect.trusted_files import open_inbound, table_rows
from schema.errors import ClawbusError

_NAMED = 5
_IDS = (("messages_in", "id", "seq"), ("delivery_attempts", "message_out_id", "seq"), ("questions", "id", "rowid"))


def sessions_with(
    data_dir: Path, keys: Iterable[Key], message_id: str, *, table: str = "messages_in"
) -> tuple[list[Key], int]:
    """Return the sessions that have a message (or a row of `table`) of this id, and how many could not be read."""
    found: list[Key] = []
    unread = 0
    for key in keys:
        try:
            with open_inbound(folder_of(data_dir, key)) as reader:
                if table_rows(reader, table, f"SELECT 1 FROM {table} WHERE id = ?", message_id):
                    found.append(key)
        except ClawbusError:
            unread += 1
    return found, unread


def the_only(found: Iterable[Key], what: str, identity: str, *, unread: int = 0, hint: str | None = None) -> Key:
    """Return the only session that has it. `what`: "a message", "an answer on its way", "an open dead letter".

    Raise UnknownMessageError with `hint`, or AmbiguousIdError. `unread` sessions were not examined.
    """
    keys = sorted(set(found))
    if len(keys) == 1:
        return keys[0]
    if keys:
        names = ", ".join("/".join(key) for key in keys[:_NAMED])
        raise AmbiguousIdError(f"{len(keys)} sessions have {what} {identity!r}: {names}.")
    unseen = f"; {unread} sessions could not be read" if unread else ""
    raise UnknownMessageError(f"no session has {what} {identity!r}{unseen}.", hint=hint)


def whole_id(data_dir: Path, keys: Iterable[Key], part: str) -> str:
    """Return the id of the message or answer that a part of it means; the part itself where it is an id or means none.

    Raise AmbiguousIdError.
    """
    found: set[str] = set()
    for key in keys:
        with contextlib.suppress(ClawbusError), open_inbound(folder_of(data_dir, key)) as reader:
            for table, column, _ in _IDS:
                sql = f"SELECT {column} FROM {table} WHERE substr({column}, 1, ?1) = ?2 OR substr({column}, -?1) = ?2"
                found |= {str(row[0]) for row in table_rows(reader, table, sql, len(part), part)}
    if part in found:
        return part
    meant = sorted(identity for identity in found if means(part, identity))
    if len(meant) > 1:
        named = ", ".join(meant[:_NAMED])
        raise AmbiguousIdError(
            f"{part!r} is a part of {len(meant)} ids: {named}.", hint="Give more characters, or a whole id."
        )
    return meant[0] if meant else part


def newest_ids(data_dir: Path, keys: Iterable[Key], limit: int) -> list[str]:
    """Return the ids of the newest messages and answers of these sessions, `limit` of each kind and session at most."""
    found: list[str] = []
    for key in keys:
        with contextlib.suppress(ClawbusError), open_inbound(folder_of(data_dir, key)) as reader:
            for table, column, order in _IDS:
                rows = table_rows(reader, table, f"SELECT {column} FROM {table} ORDER BY {order} DESC LIMIT ?", limit)
                found += [str(row[0]) for row in rows]
    return found
