"""The files that go with an agent's messages: read from its HOME, and copied to out/outbox/<row id>/ before the row.

A row's files are complete and on disk before the row is committed. A crash in between leaves a folder without a row: the
same row replaces it, and the next start of a runner removes it. The host makes its own copy when it records the row;
then the runner's is removed. Every function blocks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from container_runner.shared.reply import OutFile
from schema.durable_files import sync_folder, write_new_file
from schema.given_files import FileAbsentError, FileRefusedError, read_below
from schema.ids import is_message_id
from schema.layout import OUTBOX_FILES
from schema.os_faults import host_error
from schema.plain_names import file_names, looks, name_fault

REFUSED: Final = "files_refused"
_SHOWN: Final = 200
_MOST: Final = 500
_BELOW: Final = "paths are relative to HOME, or absolute and below it"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that is not sent, and why: the end of a sentence that begins with its path.

    `looked_for` is the whole path, for the agent and the operator: a sender may be a stranger.
    """

    path: str
    reason: str
    looked_for: str

    @property
    def detail(self) -> str:
        """The reason, with the path that was looked for."""
        return f"{self.reason} (looked for {self.looked_for})"


@dataclass(frozen=True, slots=True)
class FileSource:
    """Where an agent's files come from: its HOME. How many one message may have, and how many bytes all of them together."""

    home: Path
    max_files: int
    max_bytes: int

    def read(
        self, paths: Sequence[str], brought: Sequence[OutFile] = ()
    ) -> tuple[tuple[OutFile, ...], tuple[Refusal, ...]]:
        """Return the files that may be sent, and why the others may not. A path is relative to HOME, or absolute below it.

        `brought` are files of the same message that need no reading; they come first.

        Raise StorageError for what this machine cannot do now.
        """
        files = list(brought)
        refused: list[Refusal] = []
        for path in paths:
            try:
                files.append(self._read(path, files))
            except FileRefusedError as error:
                whole = path if path.startswith("/") else f"{self.home}/{path.removeprefix('./')}"
                refused.append(Refusal(path[:_SHOWN], str(error), whole[:_SHOWN]))
                if len(refused) > self.max_files:
                    break
        return tuple(files), tuple(refused)

    def attach(
        self, content: Mapping[str, object], brought: Sequence[OutFile] = ()
    ) -> tuple[Mapping[str, object], tuple[OutFile, ...], tuple[Refusal, ...]]:
        """Return the content, `brought` with the files that its `files` names, and what is refused.

        In the content, names replace paths, and what is refused is listed.
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
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for one in files:
            write_new_file(partial / one.name, one.data, 0o644)
        sync_folder(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(outbox)
    except OSError as error:
        raise host_error(error, f"the answer's files cannot be written to {OUTBOX_FILES}/") from error


def files_of_rows(out_folder: Path) -> list[str]:
    """Return the ids of rows that have a folder with files, at most _MOST of them. Empty when the folder cannot be read."""
    with suppress(OSError):
        return [one.name for one in (out_folder / OUTBOX_FILES).iterdir() if is_message_id(one.name)][:_MOST]
    return []


def remove_partial(out_folder: Path) -> None:
    """Remove what a crash left half-written. Call it only while nothing writes files."""
    with suppress(OSError):
        for one in list((out_folder / OUTBOX_FILES).iterdir()):
            if one.name.startswith("."):
                shutil.rmtree(one, ignore_errors=True)


def remove_files(out_folder: Path, row_ids: Sequence[str]) -> None:
    """Remove these rows' files. What the agent made too deep to walk stays, and does no harm."""
    for one in row_ids:
        with suppress(OSError, RecursionError):
            shutil.rmtree(out_folder / OUTBOX_FILES / one)


def _parts(home: Path, path: str) -> tuple[str, ...]:
    if path.startswith("/"):
        if not path.startswith(f"{home}/"):
            raise FileRefusedError("is not below HOME, the session's own folder")
        path = path.removeprefix(f"{home}/")
    parts = tuple(path.removeprefix("./").split("/"))
    if ".." in parts:
        raise FileRefusedError("is not below HOME, the session's own folder")
    return parts
