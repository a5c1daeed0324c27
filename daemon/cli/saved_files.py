"""Saves the files of answers: copies them from the data folder into a folder of the user's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon.core.errors import SaveError
from schema.ids import is_message_id, session_path
from schema.layout import SENT_FILES
from schema.plain_names import name_fault

if TYPE_CHECKING:
    from daemon.cli.invocation import Invocation

_LOST: Final = (
    "Retention removes an answer's files with its receipt (retention.messages_s); a deleted session has none."
)


def save_files(invocation: Invocation, answers: Sequence[dict[str, Any]], target: Path) -> None:
    """Save every file of the answers below `target`, and note in each file's entry where (`saved`). Raise SaveError.

    A file that is there already with the same content is not saved again. Nothing is overwritten: another file of the same
    name gets a number.
    """
    from daemon.store.data_layout import Layout  # noqa: PLC0415

    sessions = Layout(invocation.place.data_dir).sessions_dir
    for answer in answers:
        for one in answer.get("files", ()):
            identity, name = str(answer["message_out_id"]), str(one["name"])
            if not is_message_id(identity) or name_fault(name) is not None:
                continue
            source = session_path(sessions, answer["agent"], answer["session"]) / SENT_FILES / identity / name
            one["saved"] = str(_saved(_read(source, one), target, name))


def _read(source: Path, entry: dict[str, Any]) -> bytes:
    try:
        data = source.read_bytes()
    except FileNotFoundError as error:
        raise SaveError(f"the file {entry['name']!r} is gone from the session.", hint=_LOST) from error
    except OSError as error:
        raise SaveError(f"{source} cannot be read: {error.strerror}.", hint="Run this as the daemon's user.") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise SaveError(
            f"{source} is not the file that was sent: its digest differs.", hint="Restore it from a backup."
        )
    return data


def _saved(data: bytes, target: Path, name: str) -> Path:
    """Write the file under the first name that is free, and return its path."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        draft = target / f".{name[:100]}.{os.getpid()}.part"
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            for path in _names(target, name):
                with suppress(FileExistsError):
                    os.link(draft, path)  # unlike a rename, it never replaces a file
                    return path
                if path.is_file() and path.read_bytes() == data:
                    return path
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise SaveError(
            f"{name!r} cannot be saved in {target}: {error.strerror}.", hint="Name another folder."
        ) from error
    raise AssertionError("unreachable")


def _names(target: Path, name: str) -> Iterator[Path]:
    yield target / name
    stem, dot, ending = name.rpartition(".")
    for number in count(2):
        yield target / (f"{stem}-{number}.{ending}" if dot else f"{name}-{number}")
