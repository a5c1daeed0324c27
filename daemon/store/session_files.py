"""One session's folder on the host: creates it, and opens each of its two files in the only way that the host may.

The host never writes an outbound.db, with two exceptions while no container runs: `prepare_outbound` creates the file before
the session's first container, and `recover` rolls back a journal after a confirmed exit.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from daemon.store.sent_files import SentStore
from schema.bell import ring
from schema.connect import make_whole, open_owner
from schema.durable_files import make_folder
from schema.errors import FileBusyError, StorageError, UnusableFileError
from schema.file_pool import FilePool
from schema.handles import Reader, Writer
from schema.layout import OUTBOUND_DB, OUTBOX_FILES, SessionFolder
from schema.migrate import Role
from schema.os_faults import file_error, host_error, in_own_folder
from schema.outbound_file import open_outbound_reader, recover_outbound_journal
from schema.plain_file import ReadLimits, lies_there

_PROBE_MS: Final = 200


class SessionFiles:
    """Opens the files for one operation and closes them. With `kept`, inbound.db stays open for the next one.

    Synchronous: callers hold the session's lock and use a worker thread.

    `owner` is the (uid, gid) that the container runs as, when that is not the daemon's own.
    """

    def __init__(
        self, root: Path, limits: ReadLimits, owner: tuple[int, int] | None = None, kept: FilePool | None = None
    ) -> None:
        self.folder = SessionFolder(root)
        self.limits = limits
        self._owner = owner
        self._kept = kept
        self._inbound = self.folder.inbound_db
        self._outbound = str(self.folder.outbound_db)
        self.sent = SentStore(self.folder)
        self.write_refused = False  # a lock prevented a write to inbound.db, and no write has succeeded since

    def create(self) -> None:
        """Create the folders and inbound.db. Safe to repeat; it completes what a crash left unfinished.

        inbound.db is created under another name and renamed, so it exists complete or not at all. Raise StorageError or
        UnusableFileError.
        """
        try:
            # The container may run as another user; it reaches what is mounted through its mounts.
            own = (self.folder.root.parent, self.folder.root, self.folder.logs)
            for path in (*own, self.folder.inbox, self.folder.outbox):
                make_folder(path, 0o700)
            self.folder.inbox.chmod(0o755)
            self.folder.outbox.chmod(0o755)
            self.folder.logs.chmod(0o700)
            if self._owner is not None:
                os.chown(self.folder.outbox, *self._owner, follow_symlinks=False)
        except OSError as error:
            raise host_error(error, str(self.folder.root)) from error
        if self._holds_nothing():
            make_whole(self._inbound, Role.INBOUND)
        open_owner(self._inbound, Role.INBOUND, create=False).close()

    def _holds_nothing(self) -> bool:
        """Return whether no inbound.db was ever completed here. Raise UnusableFileError for one that was emptied."""
        with in_own_folder(f"{self._inbound} cannot be looked at"):
            try:
                size = self._inbound.lstat().st_size
            except FileNotFoundError:
                return True
        if size == 0 and lies_there(self.folder.outbox, OUTBOUND_DB):
            raise UnusableFileError(f"{self._inbound} is empty: it was truncated.")
        return size == 0

    def prepare_outbound(self) -> None:
        """Create outbound.db with its tables, and the folders that a container needs, if they are missing. Call it only while no container runs.

        Other runners may expect the tables at their start. The file is created outside `out/` and moved there, so that a crash
        leaves no file or a complete one. Raise StorageError or HostileFileError.
        """
        target, draft = self.folder.outbound_db, self.folder.root / f"{OUTBOUND_DB}.new"
        try:
            self._make_folders()
            if _holds_something(target) or self.has_journal():
                return
            for leftover in (draft, draft.with_name(f"{draft.name}-journal")):
                leftover.unlink(missing_ok=True)
            with open_owner(draft, Role.OUTBOUND):
                draft.chmod(0o644)
            if self._owner is not None:
                os.chown(draft, *self._owner, follow_symlinks=False)
            draft.rename(target)
        except OSError as error:
            raise file_error(error, f"{target} cannot be made") from error

    def prepare_home(self) -> None:
        """Make `home/` if it is missing: a session of an earlier version has none. Call it only while no container runs.

        Raise StorageError.
        """
        home = self.folder.home
        try:
            with suppress(FileExistsError):
                home.mkdir(mode=0o755)
            if self._owner is not None:
                os.chown(home, *self._owner, follow_symlinks=False)
        except OSError as error:
            raise host_error(error, f"{home} cannot be made") from error

    def _make_folders(self) -> None:
        """Make `out/` and `logs/` again where they were removed, which loses what was in them, and `out/outbox/`."""
        with suppress(FileExistsError):
            self.folder.logs.mkdir(mode=0o700)
        if not os.path.lexists(self.folder.outbox):
            self.folder.outbox.mkdir(mode=0o755)
            self.folder.outbox.chmod(0o755)
            if self._owner is not None:
                os.chown(self.folder.outbox, *self._owner, follow_symlinks=False)
        folder = self.folder.outbox / OUTBOX_FILES
        if os.path.lexists(folder):  # it belongs to the container, whatever the container made of it
            return
        folder.mkdir(mode=0o755)
        if self._owner is not None:
            os.chown(folder, *self._owner, follow_symlinks=False)

    @contextmanager
    def inbound(self) -> Generator[Writer]:
        """Open the host's own file for one operation.

        It must exist and not be empty: a deleted or truncated file is an error, not an empty session. (`create` has already
        created the tables.)
        """
        try:
            with (
                self._open_inbound()
                if self._kept is None
                else self._kept.using(self._inbound, self._open_inbound) as db
            ):
                before = db.commits
                try:
                    yield db
                finally:
                    if db.commits != before:
                        self.write_refused = False
        except FileBusyError as error:
            # A reader's lock does not block our reads: only a committed write proves that the lock is gone.
            self.write_refused = self.write_refused or error.path == self._inbound
            raise

    def _open_inbound(self) -> Writer:
        path = self._inbound
        try:
            if path.stat().st_size == 0:
                raise UnusableFileError(f"{path} is empty: it was truncated.")
        except OSError:
            pass  # opening the file reports what is missing or unreadable
        try:
            return open_owner(path, Role.INBOUND, create=False)
        except StorageError as error:
            if not _is_gone(path) or not _is_there(self.folder.root.parents[1]):
                raise
            raise UnusableFileError(f"{path} is gone.") from error

    def prove_writable(self) -> None:
        """Write to inbound.db without changing its content. Raise FileBusyError after a short wait if it is locked."""
        with self.inbound() as db:
            db.prove_writable(_PROBE_MS)

    def evict(self) -> None:
        """Close any kept file: they will not be needed soon."""
        if self._kept is not None:
            self._kept.evict(self._inbound)

    @contextmanager
    def outbound(self) -> Generator[Reader | None]:
        """Open the container's file read-only, as untrusted input. Yield None if the runner has not created it yet."""
        reader = open_outbound_reader(self.folder.outbox, self.limits)
        if reader is None:
            yield None
            return
        with reader:
            yield reader

    def ring(self) -> None:
        """Notify a running container that it has messages. Call it after the commit, with the file closed."""
        ring(self.folder.inbox)

    def has_journal(self) -> bool:
        """Return whether anything exists under the name of outbound.db's journal."""
        return lies_there(self.folder.outbox, f"{OUTBOUND_DB}-journal")

    def recover(self) -> bool:
        """Roll back a dead container's unfinished transaction. Call only after its confirmed exit. Return whether there was one."""
        return recover_outbound_journal(self.folder.outbox, self.limits)

    def outbound_mark(self) -> tuple[int, int] | None:
        """Return (mtime in nanoseconds, size in bytes) of outbound.db, a cheap sign of changes."""
        try:
            status = os.lstat(self._outbound)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size


def _holds_something(path: Path) -> bool:
    """Return whether the path exists and is anything but an empty regular file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_size > 0


def _is_gone(path: Path) -> bool:
    """Return whether nothing exists at the path. False when that is unknown, because True holds the session for good."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _is_there(folder: Path) -> bool:
    """Return whether a folder can be read: an unmounted or unreadable disk does not mean that a session is lost."""
    try:
        return any(folder.iterdir())
    except OSError:
        return False
