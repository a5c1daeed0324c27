"""Puts the files of an answer into what is posted to a reply_url: in base64, as multipart/form-data, or by name alone.

Discord takes files beside a `payload_json` (docs.discord.com/developers/reference#uploading-files; the form: RFC 7578).
Slack's and Teams' incoming webhooks take none, so their text names what there is.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from daemon.channels.protocol import Outgoing
from daemon.channels.webhook_bodies import FORMATS, encoded, operator_body
from daemon.channels.webhook_settings import Hook
from daemon.core.content import decode, text_of
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.core.printable import counted
from daemon.core.sent_files import NONE, SentFile
from schema.frozen import frozen

JSON_TYPE: Final = "application/json"
_TAKES_FILES: Final = frozenset({"clawbus", "discord"})


@frozen
class Post:
    """What is posted: the body and its content type."""

    body: bytes
    content_type: str = JSON_TYPE


def made_post(hook: Hook, message: Outgoing) -> Post:
    """Return what is posted for a message, the same on every attempt. Read its files: call it in a thread if it has any.

    Raise PermanentDeliveryError for what cannot be posted, TransientDeliveryError when a file cannot be read now.
    """
    if message.files == NONE:
        return Post(encoded(_body(hook, message)))
    if hook.reply_format == "clawbus":
        found = message.files.to_json()
        files = [
            {**named, "data": base64.b64encode(_read(one)).decode()}
            for named, one in zip(cast("list[dict[str, Any]]", found["files"]), message.files.files, strict=True)
        ]
        own = cast("dict[str, Any]", _body(hook, message))
        return Post(encoded({**own, "files": files, "files_refused": found["refused"]}))
    noted = _noted(message, sent=hook.reply_format in _TAKES_FILES)
    if hook.reply_format == "discord" and message.files.files:
        parts = [_part("payload_json", JSON_TYPE, encoded(_body(hook, noted)))]
        parts += [
            _part(f"files[{number}]", one.media_type, _read(one), one.name)
            for number, one in enumerate(message.files.files)
        ]
        return _multipart(parts, message.key)
    return Post(encoded(_body(hook, noted)))


def _body(hook: Hook, message: Outgoing) -> object:
    make: Callable[[Outgoing], object] | None = FORMATS.get(hook.reply_format)
    return make(message) if make is not None else operator_body(hook.reply_body or {}, message)


def _noted(message: Outgoing, *, sent: bool) -> Outgoing:
    """Return the message with a line in its text for each file that the receiver does not get."""
    lines = (
        []
        if sent
        else [f"[file not sent here: {one.name}, {counted(one.size, 'byte')}]" for one in message.files.files]
    )
    lines += [f"[file not sent: {name} {reason}]" for name, reason in message.files.refused]
    if not lines:
        return message
    content = decode(message.content)
    fields = cast("dict[str, object]", content) if isinstance(content, dict) else {}
    text = "\n".join((text_of(message.content), *lines))
    return replace(message, content=json.dumps({**fields, "text": text}))


def _read(file: SentFile) -> bytes:
    try:
        data = Path(file.path).read_bytes()
    except FileNotFoundError as error:
        raise PermanentDeliveryError(f"the copy of the file {file.name!r} is gone.") from error
    except OSError as error:
        raise TransientDeliveryError(f"the file {file.name!r} cannot be read now: {error.strerror}.") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise PermanentDeliveryError(
            f"the copy of the file {file.name!r} is damaged.", hint="Restore it from a backup."
        )
    return data


def _part(field: str, media_type: str, data: bytes, name: str | None = None) -> bytes:
    disposition = f'form-data; name="{field}"'
    if name is not None:
        # A browser's escapes (WHATWG, multipart/form-data encoding): a name has no line ends.
        disposition += '; filename="' + name.replace('"', "%22") + '"'
    return f"Content-Disposition: {disposition}\r\nContent-Type: {media_type}\r\n\r\n".encode() + data


def _multipart(parts: Sequence[bytes], key: str) -> Post:
    """Join the parts with a boundary that follows from the key and is in none of them."""
    number = 0
    while True:
        boundary = hashlib.sha256(f"{number} {key}".encode("utf-8", "surrogatepass")).hexdigest()[:40]
        if not any(boundary.encode() in part for part in parts):
            break
        number += 1
    mark = b"--" + boundary.encode()
    body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"
    return Post(body, f"multipart/form-data; boundary={boundary}")
