"""The host's copies of files that go with answers: sent/<message id>/, which no container sees.

An answer's files are copied before the host records the answer, all or none, by one rename. A crash in between leaves
a copy that the next poll uses as it is: what the container changes afterwards has no effect. The copies go with the
answer's receipt, or earlier where room is needed and the answer has arrived; retention also removes those that no answer has.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Final

from daemon.core.attachments import IntakeLimits, true_type
from daemon.core.sent_files import NONE, SentFile, SentFiles, names_in, read_manifest, refused_by_runner
from daemon.store.attachments import media_type
from schema.durable_files import remove_any, sync_folder, write_new_file
from schema.given_files import FileRefusedError, read_below
from schema.handles import Reader
from schema.ids import is_message_id
from schema.layout import OUTBOX_FILES, SENT_FILES, SessionFolder
from schema.os_faults import host_error, in_own_folder
from schema.plain_names import looks, name_fault

MANIFEST: Final = ".manifest.json"  # begins as no file's name may
_PARTIAL: Final = ".partial"
_SHOWN: Final = 200


def _none(_: Sequence[str]) -> AbstractSet[str]:
    return frozenset()


class SentStore:
    """One session's copies. Synchronous; the caller holds the session's lock."""

    def __init__(self, folder: SessionFolder) -> None:
        self._folder = folder
        self._root = folder.root / SENT_FILES
        self._bytes: int | None = None  # what all copies take; counted when it is first needed

    def keep(
        self,
        message_id: str,
        content: str,
        limits: IntakeLimits,
        taken: Callable[[Sequence[str]], AbstractSet[str]] = _none,
    ) -> SentFiles:
        """Return the files of a new answer, copied from out/ if there is no copy yet. Raise StorageError, leaving no copy.

        `taken` returns which of the given answers have arrived: the oldest of these make room for new copies.
        """
        names, refused = names_in(content), refused_by_runner(content)
        if not names:
            return SentFiles(refused=refused) if refused else NONE
        if not is_message_id(message_id):
            return SentFiles(
                refused=tuple((name[:_SHOWN], "belongs to an answer without a valid id") for name in names)
            )
        known = self.find(message_id)
        if known is not None:
            return known
        if self._used() + limits.max_attachment_bytes > limits.max_sent_bytes:
            self._make_room(limits, taken)
        return self._take(message_id, names, refused, limits)

    def find(self, message_id: str) -> SentFiles | None:
        """Return the files of an answer that were copied before, or None. Raise StorageError."""
        folder = self._root / message_id
        try:
            return read_manifest((folder / MANIFEST).read_text(encoding="utf-8"), str(folder))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # a damaged disk: copy the files again
            return None
        except OSError as error:
            raise host_error(error, f"{SENT_FILES}/ cannot be read") from error

    def remove(self, ids: Sequence[str]) -> None:
        """Remove the copies of these answers."""
        if not os.path.lexists(self._root):
            return  # as in most sessions: no answer had a file
        for one in filter(is_message_id, ids):
            self._drop(self._root / one)

    def remove_unnamed(self, db: Reader, cutoff: int) -> None:
        """Remove copies that were made before `cutoff` (epoch milliseconds) and that no answer has."""
        with suppress(FileNotFoundError):
            for path in list(self._root.iterdir()):
                named = any(
                    db.one(f"SELECT 1 FROM {table} WHERE message_out_id = ?", (path.name,))
                    for table in ("delivered", "delivery_attempts")
                )
                if not named and path.lstat().st_mtime_ns // 1_000_000 < cutoff:
                    self._drop(path)

    def _make_room(self, limits: IntakeLimits, taken: Callable[[Sequence[str]], AbstractSet[str]]) -> None:
        """Remove the oldest copies of answers that arrived. A quarter of the limit becomes free, so that this is rare."""
        wanted = min(limits.max_sent_bytes * 3 // 4, limits.max_sent_bytes - limits.max_attachment_bytes)
        with in_own_folder(f"{SENT_FILES}/ cannot be looked at"):
            found = sorted(
                (path.lstat().st_mtime_ns, path) for path in self._root.iterdir() if is_message_id(path.name)
            )
            arrived = taken([path.name for _, path in found])
            for _, path in found:
                if self._used() <= wanted:
                    return
                if path.name in arrived:
                    left = self._used() - _size(path)
                    remove_any(path)
                    self._bytes = left

    def _take(
        self, message_id: str, names: Sequence[str], before: tuple[tuple[str, str], ...], limits: IntakeLimits
    ) -> SentFiles:
        partial, target = self._root / _PARTIAL, self._root / message_id
        try:
            self._root.mkdir(mode=0o700, exist_ok=True)
            remove_any(partial)
            partial.mkdir(mode=0o700)
            found = self._copy(message_id, names, before, limits)
            manifest = json.dumps(found.to_json()).encode()
            write_new_file(partial / MANIFEST, manifest, 0o600)
            sync_folder(partial)
            remove_any(target)
            partial.rename(target)
            sync_folder(self._root)
            sync_folder(self._folder.root)
        except OSError as error:
            with suppress(OSError):
                remove_any(partial)
            raise host_error(error, f"an answer's files cannot be copied to {SENT_FILES}/") from error
        self._bytes = self._used() + sum(one.size for one in found.files) + len(manifest)
        return found

    def _copy(
        self, message_id: str, names: Sequence[str], before: tuple[tuple[str, str], ...], limits: IntakeLimits
    ) -> SentFiles:
        files: list[SentFile] = []
        refused = list(before)
        room = limits.max_attachment_bytes
        if self._used() + room > limits.max_sent_bytes:
            full = (
                f"cannot be kept: the session's sent files have reached limits.max_sent_bytes, {limits.max_sent_bytes}"
            )
            return SentFiles(refused=(*before, *((name[:_SHOWN], full) for name in names)))
        for name in names[: limits.max_attachments + 1]:
            try:
                data = self._read(message_id, name, files, room, limits)
            except FileRefusedError as error:
                refused.append((name[:_SHOWN], str(error)))
                continue
            room -= len(data)
            write_new_file(self._root / _PARTIAL / name, data, 0o600)
            digest = hashlib.sha256(data).hexdigest()
            kind = true_type(media_type(name), data)
            files.append(SentFile(name, kind, len(data), digest, str(self._root / message_id / name)))
        return SentFiles(tuple(files), tuple(refused))

    def _read(self, message_id: str, name: str, before: Sequence[SentFile], room: int, limits: IntakeLimits) -> bytes:
        fault = name_fault(name)
        if fault is not None:
            raise FileRefusedError(fault)
        if len(before) >= limits.max_attachments:
            raise FileRefusedError(f"is one too many: limits.max_attachments is {limits.max_attachments}")
        if looks(name) in {looks(one.name) for one in before}:
            raise FileRefusedError("has the name of another file of this message, or looks the same")
        return read_below(self._folder.outbox, (OUTBOX_FILES, message_id, name), room)

    def _used(self) -> int:
        """Return the bytes of all copies."""
        if self._bytes is None:
            with suppress(FileNotFoundError):
                self._bytes = sum(_size(folder) for folder in self._root.iterdir() if folder.is_dir())
        return self._bytes or 0

    def _drop(self, path: Path) -> None:
        remove_any(path)
        self._bytes = None


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir())
