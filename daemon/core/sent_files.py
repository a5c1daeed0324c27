"""The files that go with an answer, as the host knows them: what was taken, and what was refused and why. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from schema.frozen import frozen
from schema.plain_names import file_names

_SHOWN: Final = 200


@frozen
class SentFile:
    """One file: its name, media type, size in bytes and digest. `path` is the host's copy; empty where only a report names it."""

    name: str
    media_type: str
    size: int
    sha256: str
    path: str = ""

    @property
    def kind(self) -> str:
        """`image` or `file`."""
        return "image" if self.media_type.startswith("image/") else "file"


@frozen
class SentFiles:
    """An answer's files. `refused`: name and reason, the end of a sentence that begins with the name."""

    files: tuple[SentFile, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return what the manifest and a mailbox entry hold."""
        return {
            "files": [
                {"name": one.name, "mimeType": one.media_type, "type": one.kind, "size": one.size, "sha256": one.sha256}
                for one in self.files
            ],
            "refused": [{"name": name, "reason": reason} for name, reason in self.refused],
        }


NONE: Final = SentFiles()


def read_manifest(text: str | None, folder: str = "") -> SentFiles:
    """Return what `SentFiles.to_json` wrote. `folder` holds the copies. Raise ValueError, KeyError or TypeError for other text."""
    if text is None:
        return NONE
    value = cast("Mapping[str, list[dict[str, Any]]]", json.loads(text))
    return SentFiles(
        tuple(
            SentFile(
                one["name"], one["mimeType"], one["size"], one["sha256"], f"{folder}/{one['name']}" if folder else ""
            )
            for one in value["files"]
        ),
        tuple((one["name"], one["reason"]) for one in value["refused"]),
    )


def names_in(content: str) -> tuple[str, ...]:
    """Return the names of the files that an answer's content brings. Empty for content that is not JSON."""
    if '"files"' not in content:  # nearly every answer: parse nothing
        return ()
    try:
        return file_names(json.loads(content))
    except (ValueError, RecursionError):
        return ()


def refused_by_runner(content: str) -> tuple[tuple[str, str], ...]:
    """Return what the runner refused to send, from the content's `files_refused`: name and reason."""
    if '"files_refused"' not in content:
        return ()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ()
    entries = cast("Mapping[str, object]", value).get("files_refused") if isinstance(value, dict) else None
    listed = cast("Sequence[object]", entries) if isinstance(entries, list) else ()
    found = [cast("Mapping[str, object]", one) for one in listed[:100] if isinstance(one, dict)]
    return tuple((str(one.get("name"))[:_SHOWN], str(one.get("reason"))[:_SHOWN]) for one in found)
