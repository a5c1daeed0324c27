"""Copies the files that go with an agent's messages from its HOME to out/outbox/<row id>/.

A row's files are complete and on disk before the row is committed. A crash in between leaves a folder without a row: a
repeated commit replaces it, or the runner removes it at its next start. The host makes its own copy when it records the
row; then the runner removes its copy. Every function blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from container_runner.shared.reply import OutFile
from schema.durable_files import remove_any, sync_folder, write_new_file
from schema.frozen import frozen
from schema.given_files import FileAbsentError, FileRefusedError, read_below
from schema.ids import is_message_id
from schema.layout import OUTBOX_FILES
from schema.os_faults import host_error
from schema.plain_names import file_names, looks, name_fault

REFUSED: Final = "files_refused"
_MAX_SHOWN: Final = 200  # characters of a path that a refusal repeats
_MAX_ROWS: Final = 500
_BELOW: Final = "paths are relative to HOME, or absolute and below it"


@frozen
class Refusal:
    """A file that is not sent. `reason` ends a sentence that begins with `path`.

    `looked_for` is the absolute path. The agent and the operator see it; a sender, who may be a stranger, does not.
    """

    path: str
    reason: str
    looked_for: str

    @property
    def detail(self) -> str:
        """The reason, with the path that was looked for."""
        return f"{self.reason} (looked for {self.looked_for})"


@frozen
class FileSource:
    """The HOME that an agent's files come from, and the limits of one message: the number of files, and their bytes in all."""

    home: Path
    max_files: int
    max_bytes: int

    def read(
        self, paths: Sequence[str], brought: Sequence[OutFile] = ()
    ) -> tuple[tuple[OutFile, ...], tuple[Refusal, ...]]:
        """Return the files that may be sent, and a refusal for each other path. A path is relative to HOME, or absolute below it.

        `brought` are files of the same message that are in memory already; they come first. Raise StorageError when the
        host cannot read now.
        """
        files = list(brought)
        refused: list[Refusal] = []
        for path in paths:
            try:
                files.append(self._read(path, files))
            except FileRefusedError as error:
                whole = path if path.startswith("/") else f"{self.home}/{path.removeprefix('./')}"
                refused.append(Refusal(path[:_MAX_SHOWN], str(error), whole[:_MAX_SHOWN]))
                if len(refused) > self.max_files:
                    break
        return tuple(files), tuple(refused)

    def attach(
        self, content: Mapping[str, object], brought: Sequence[OutFile] = ()
    ) -> tuple[Mapping[str, object], tuple[OutFile, ...], tuple[Refusal, ...]]:
        """Return the content for the row, all files of the message, and the refusals.

        The files are `brought` and those that the content's `files` names. In the returned content, `files` has names
        instead of paths, and `files_refused` lists the refusals. Raise StorageError as `read` does.
        """
        paths = file_names(content)
        if not paths and not brought:
            return content, (), ()
        files, refused = self.read(paths, brought)
        rest = {key: value for key, value in content.items() if key not in ("files", REFUSED)}
        named: dict[str, object] = {"files": [one.name for one in files]} if files else {}
        if refused:
            # A sender may be a stranger, so the content has the file's name alone.
            named[REFUSED] = [{"name": one.path.rpartition("/")[2], "reason": one.reason} for one in refused]
        return {**rest, **named}, files, refused

    def _read(self, path: str, before: Sequence[OutFile]) -> OutFile:
        parts = _parts(self.home, path)
        name = parts[-1]
        for part in parts:
            fault = name_fault(part)
            if fault is not None:
                raise FileRefusedError(fault)
        if len(before) >= self.max_files:
            raise FileRefusedError(f"is one too many: a message may have {self.max_files}")
        if looks(name) in {looks(one.name) for one in before}:
            raise FileRefusedError("has the name of another file of this message, or looks the same")
        room = self.max_bytes - sum(len(one.data) for one in before)
        try:
            return OutFile(name, read_below(self.home, parts, room))
        except FileAbsentError as error:
            raise FileRefusedError(f"{error}; {_BELOW}") from error


def place_files(out_folder: Path, row_id: str, files: Sequence[OutFile]) -> None:
    """Put a row's files into its folder, all or none, replacing what a crash left there. Raise StorageError."""
    outbox = out_folder / OUTBOX_FILES
    partial, target = outbox / f".{row_id}", outbox / row_id
    try:
        outbox.mkdir(exist_ok=True)
        _remove(partial)
        partial.mkdir()
        for one in files:
            write_new_file(partial / one.name, one.data, 0o644)
        sync_folder(partial)
        _remove(target)
        partial.rename(target)
        sync_folder(outbox)
    except OSError as error:
        raise host_error(error, f"the answer's files cannot be written to {OUTBOX_FILES}/") from error


def files_of_rows(out_folder: Path) -> list[str]:
    """Return the ids of rows that have a folder with files, at most _MAX_ROWS. Return none when the folder cannot be read."""
    with suppress(OSError):
        return [one.name for one in (out_folder / OUTBOX_FILES).iterdir() if is_message_id(one.name)][:_MAX_ROWS]
    return []


def remove_partial(out_folder: Path) -> None:
    """Remove the folders that a crash left half-written. Call this only while nothing writes files."""
    with suppress(OSError):
        for one in list((out_folder / OUTBOX_FILES).iterdir()):
            if one.name.startswith("."):
                _remove(one)


def remove_files(out_folder: Path, row_ids: Sequence[str]) -> None:
    """Remove these rows' files. A folder that the agent nested too deeply to walk stays, which does no harm."""
    for one in row_ids:
        _remove(out_folder / OUTBOX_FILES / one)


def _remove(path: Path) -> None:
    """Remove what the agent may have put there: also no folder. What cannot be removed stays."""
    with suppress(OSError, RecursionError):
        remove_any(path)


def _parts(home: Path, path: str) -> tuple[str, ...]:
    """Return a path's components below HOME. Raise FileRefusedError if it leads out of HOME."""
    if path.startswith("/"):
        if not path.startswith(f"{home}/"):
            raise FileRefusedError("is not below HOME, the session's own folder")
        path = path.removeprefix(f"{home}/")
    parts = tuple(path.removeprefix("./").split("/"))
    if ".." in parts:
        raise FileRefusedError("is not below HOME, the session's own folder")
    return parts
