"""Invariants of a session folder that its files show from outside: one writer per file, DELETE mode, nothing foreign."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from schema.connect import open_reader
from schema.errors import ClawbusError
from schema.layout import SessionFolder
from schema.migrate import OUTBOUND_TABLES, VERSION

INBOUND_TABLES: Final = (
    "messages_in", "delivered", "destinations", "session_routing", "message_history", "attempts", "delivery_attempts",
    "delivery_cursor", "host_messages",
)  # fmt: skip


def file_violations(root: Path, *, at_rest: bool, hostile: bool) -> Iterator[str]:
    """Every violation that needs no look at the rows."""
    folder = SessionFolder(root)
    if not folder.inbox.is_dir() or not folder.outbox.is_dir():
        yield "in/ or out/ is missing"
        return
    yield from plain_database(folder.inbound_db, must_exist=True)
    yield from _writers(folder.inbound_db, foreign=OUTBOUND_TABLES)
    if stat.S_IMODE(folder.inbound_db.stat().st_mode) & 0o022 if folder.inbound_db.exists() else False:
        yield "inbound.db can be written by others than its owner"
    for stray in folder.inbox.glob("outbound.db*"):
        yield f"{stray.name} lies in in/"
    if at_rest and _lies(folder.inbound_db, "-journal"):
        yield "inbound.db-journal is left"
    if hostile:
        return
    yield from plain_database(folder.outbound_db, must_exist=False)
    yield from _writers(folder.outbound_db, foreign=INBOUND_TABLES)
    for stray in folder.outbox.glob("inbound.db*"):
        yield f"{stray.name} lies in out/"
    if at_rest and _lies(folder.outbound_db, "-journal"):
        yield "outbound.db-journal is left"


def plain_database(path: Path, *, must_exist: bool) -> Iterator[str]:
    """A sound SQLite file in DELETE mode, without WAL's companions."""
    if not os.path.lexists(path):
        if must_exist:
            yield f"{path.name} is missing"
        return
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        yield f"{path.name} is no plain file with one link"
        return
    for suffix in ("-wal", "-shm"):
        if _lies(path, suffix):
            yield f"{path.name}{suffix} lies beside it"
    with path.open("rb") as file:
        header = file.read(20)
    if header and header[18:20] != b"\x01\x01":
        yield f"{path.name} is not in journal_mode=DELETE"
        return
    try:
        with open_reader(path) as db:
            mode, sound = db.one("PRAGMA journal_mode"), db.one("PRAGMA integrity_check")
            version = db.one("PRAGMA user_version")
    except ClawbusError as error:
        yield f"{path.name} cannot be read: {error.code}: {error}"
        return
    if mode is None or mode[0] != "delete":
        yield f"{path.name} has journal_mode {mode and mode[0]}"
    if sound is None or sound[0] != "ok":
        yield f"{path.name} is not sound: {sound and sound[0]}"
    if version is None or version[0] not in (0, VERSION):
        yield f"{path.name} has user_version {version and version[0]}"


def _writers(path: Path, *, foreign: tuple[str, ...]) -> Iterator[str]:
    """No table of the other side, and no other owner than the folder's, who alone may write there."""
    if not path.exists():
        return
    if path.stat().st_uid != path.parent.stat().st_uid:
        yield f"{path.name} does not belong to the owner of {path.parent.name}/"
    try:
        with open_reader(path) as db:
            tables = {row["name"] for row in db.all("SELECT name FROM sqlite_schema")}
    except ClawbusError:
        return  # told by plain_database
    for name in sorted(tables & set(foreign)):
        yield f"{path.name} has {name}, a table of the other side's file"


def _lies(path: Path, suffix: str) -> bool:
    return os.path.lexists(path.with_name(path.name + suffix))
