"""Files that come with a message: what is accepted, and what the message's content says about them. Pure.

The content names them as NanoClaw's host does (`attachments`, each with `name` and `localPath`, `inbox/<message id>/<name>`
below the session's in/), with the size, media type and digest beside these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, cast

from daemon.core.errors import AttachmentError
from daemon.core.printable import one_line
from schema.frozen import frozen
from schema.layout import INBOX_FILES
from schema.plain_names import MAX_NAME_BYTES, looks, name_fault

KEY: Final = "attachments"


# The bytes that every file of a type begins with (PNG and GIF specifications, JFIF, RIFF/WebP, ISO 32000).
_BEGINNINGS: Final = (
    ("image/png", (b"\x89PNG\r\n\x1a\n",)),
    ("image/jpeg", (b"\xff\xd8\xff",)),
    ("image/gif", (b"GIF87a", b"GIF89a")),
    ("image/webp", (b"RIFF",)),
    ("application/pdf", (b"%PDF-",)),
)


@frozen
class Attachment:
    """One file: its name, without a path, and its bytes."""

    name: str
    data: bytes


@frozen
class FilesToFetch:
    """Files that a message names by URL. They are fetched only for a new message: for a repeat they may be gone, or others."""

    count: int
    fetch: Callable[[], Awaitable[tuple[Attachment, ...]]]


@frozen
class IntakeLimits:
    """What one message may bring: bytes of content as JSON, number of files, bytes of all its files together.

    `max_sent_bytes`: what the files of a session's answers may take together, on the host.
    """

    max_content_bytes: int
    max_attachments: int
    max_attachment_bytes: int
    max_sent_bytes: int = 1024**3


NO_FILES: Final = IntakeLimits(0, 0, 0, 0)


def check_attachments(files: Sequence[Attachment], limits: IntakeLimits) -> None:
    """Raise AttachmentError unless all of the files may be stored."""
    if len(files) > limits.max_attachments:
        raise AttachmentError(f"{len(files)} files are attached; limits.max_attachments is {limits.max_attachments}.")
    size = sum(len(one.data) for one in files)
    if size > limits.max_attachment_bytes:
        raise AttachmentError(
            f"the files have {size} bytes together; limits.max_attachment_bytes is {limits.max_attachment_bytes}."
        )
    seen: set[str] = set()
    for one in files:
        check_file_name(one.name)
        same = looks(one.name)
        if same in seen:
            raise AttachmentError(f"two files are named {one.name!r}, or look the same.", hint="Rename one of them.")
        seen.add(same)


def check_file_name(name: str) -> None:
    """Raise AttachmentError unless the name is one visible, unambiguous path component."""
    fault = name_fault(name)
    if fault is not None:
        raise AttachmentError(f"the file name {one_line(name[:MAX_NAME_BYTES])!r} {fault}.")


def attached(content: object, message_id: str, files: Sequence[Attachment], media_type: Callable[[str], str]) -> object:
    """Return the content with its files named; `media_type` knows the type that belongs to a name. Raise AttachmentError if it has no place for them."""
    if not isinstance(content, dict):
        raise AttachmentError("files need a content that is a JSON object.", hint='Send {"text": ...}, or no file.')
    fields = cast("Mapping[str, Any]", content)
    if KEY in fields:
        raise AttachmentError(f'the content has "{KEY}" already.', hint="Leave that key to the files that you attach.")
    return {**fields, KEY: [_entry(message_id, one, true_type(media_type(one.name), one.data)) for one in files]}


def is_repeat(content: object, stored: object, files: Sequence[Attachment], fetched: int) -> bool:
    """Return whether a stored content is this one with its files named: these first, and `fetched` more, whatever they are."""
    if not isinstance(content, dict) or not isinstance(stored, dict):
        return False
    fields = cast("dict[str, object]", stored)
    named = fields.get(KEY)
    if not isinstance(named, list) or {**cast("dict[str, object]", content), KEY: named} != fields:
        return False
    entries = cast("list[Mapping[str, object]]", named)
    own = [(one.name, hashlib.sha256(one.data).hexdigest()) for one in files]
    there = [(one.get("name"), one.get("sha256")) for one in entries[: len(own)]]
    return len(entries) == len(own) + fetched and there == own


def refuse_claimed_paths(content: object) -> None:
    """Raise AttachmentError for a content that says itself where its files are: only the host knows that.

    An agent opens what `localPath` names, so a sender's own would lead it to any file.
    """
    entries = cast("Mapping[str, Any]", content).get(KEY) if isinstance(content, dict) else None
    found = cast("list[object]", entries) if isinstance(entries, list) else [entries]
    if any(isinstance(one, dict) and "localPath" in one for one in found):
        raise AttachmentError(
            f'the content\'s "{KEY}" names a file by its path (`localPath`), which only the host may.',
            hint="Attach the file itself (`send --file PATH`), and leave that key out.",
        )


def true_type(named: str, data: bytes) -> str:
    """Return the media type of a file: by its first bytes where these tell, else `named`, the one that its name suggests.

    A name cannot claim a type whose files all begin with known bytes: without these it is application/octet-stream.
    """
    for media_type, begins in _BEGINNINGS:
        if any(data.startswith(one) for one in begins) and (media_type != "image/webp" or data[8:12] == b"WEBP"):
            return media_type
    claims = any(named == media_type for media_type, _ in _BEGINNINGS)
    return "application/octet-stream" if claims else named


def _entry(message_id: str, file: Attachment, media_type: str) -> dict[str, object]:
    return {
        "name": file.name,
        "type": "image" if media_type.startswith("image/") else "file",
        "mimeType": media_type,
        "size": len(file.data),
        "sha256": hashlib.sha256(file.data).hexdigest(),
        "localPath": f"{INBOX_FILES}/{message_id}/{file.name}",
    }
