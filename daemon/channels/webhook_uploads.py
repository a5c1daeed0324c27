"""Finds the files in a signed request: parts of multipart/form-data, or entries of a JSON body's `files`. Pure.

The form is RFC 7578's, the parts' frame RFC 2046's. What a sender declares about a file is not trusted: names are cleaned, the
type is read from the bytes, and a declared size or digest is checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final, cast
from urllib.parse import unquote

from daemon.core.attachments import Attachment
from schema.frozen import frozen
from schema.plain_names import clean_name, looks

MULTIPART: Final = "multipart/form-data"
_MAX_PARTS: Final = 200
_MAX_HEAD: Final = 8192
_MAX_BOUNDARY: Final = 200
_PARAMETER: Final = re.compile(r';\s*([a-zA-Z*]+)\s*=\s*(?:"([^"]*)"|([^;"\s]+))')
_PAYLOADS: Final = ("payload", "payload_json")  # a form's one field that holds JSON: GitHub's name, and Discord's


@frozen
class NamedUrl:
    """A file that is to be downloaded, and the name that it gets."""

    name: str
    url: str


@frozen
class Upload:
    """What a request brings: the fields of its body, its files, and those that are to be downloaded."""

    body: object
    files: tuple[Attachment, ...] = ()
    urls: tuple[NamedUrl, ...] = ()


def read_multipart(content_type: str, body: bytes) -> Upload:
    """Return a form's fields and files. Raise ValueError for a malformed form."""
    boundary = _parameters(content_type).get("boundary", "")
    if not boundary or len(boundary) > _MAX_BOUNDARY:
        raise ValueError("the content type has no boundary")
    fields: dict[str, object] = {}
    files: list[Attachment] = []
    for head, data in _parts(body, b"--" + boundary.encode("latin-1")):
        disposition = _disposition(head)
        given = _file_name(disposition)
        if given is not None:
            if given or data:  # a browser sends an empty part for a field without a file
                files.append(_named(given, data, files))
            continue
        name, text = disposition.get("name", ""), data.decode("utf-8")
        known = fields.get(name)
        fields[name] = (
            text if known is None else [*(cast("list[object]", known) if isinstance(known, list) else [known]), text]
        )
    if len(fields) == 1 and (name := next(iter(fields))) in _PAYLOADS and isinstance(fields[name], str):
        return Upload(_json(cast("str", fields[name])), tuple(files))
    return Upload(fields, tuple(files))


def files_in(body: object, *, urls: bool = False) -> Upload:
    """Return a JSON body's files and the rest of it. `files` has an object with `name` and `data` (base64) for each.

    With `urls`, an object may have `url` in place of `data`; its name then is the URL's last part if it has none.

    A body whose `files` is anything else is returned as it is. Raise ValueError for a file that differs from its declared size, digest or encoding.
    """
    fields = cast("dict[str, object]", body) if isinstance(body, dict) else {}
    listed = fields.get("files")
    entries = (
        [cast("dict[str, object]", one) for one in cast("list[object]", listed)] if isinstance(listed, list) else []
    )
    if not entries or not all(_is_file(one) or (urls and _is_url(one)) for one in entries):
        return Upload(cast("object", body))
    files: list[Attachment] = []
    for one in entries:
        if _is_file(one):
            files.append(_decoded(one, files))
    named = tuple(_named_url(one) for one in entries if not _is_file(one))
    return Upload({key: value for key, value in fields.items() if key != "files"}, tuple(files), named)


def _is_url(entry: object) -> bool:
    fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
    return isinstance(fields.get("url"), str) and isinstance(fields.get("name", ""), str) and "data" not in fields


def _named_url(entry: Mapping[str, object]) -> NamedUrl:
    url = str(entry["url"])
    path = url.partition("?")[0].partition("#")[0].partition("://")[2].partition("/")[2]
    return NamedUrl(str(entry.get("name") or unquote(path.rpartition("/")[2], errors="replace")), url)


def _is_file(entry: object) -> bool:
    fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
    return isinstance(fields.get("name"), str) and isinstance(fields.get("data"), str)


def _decoded(entry: Mapping[str, object], before: list[Attachment]) -> Attachment:
    name, data = str(entry["name"]), base64.b64decode(str(entry["data"]), validate=True)
    if entry.get("size", len(data)) != len(data):
        raise ValueError(f"a file says that it has {entry['size']!r:.40} bytes; it has {len(data)}")
    if entry.get("sha256") not in (None, hashlib.sha256(data).hexdigest()):
        raise ValueError("a file's sha256 is not the digest of its data")
    return _named(name, data, before)


def _named(given: str, data: bytes, before: list[Attachment]) -> Attachment:
    return Attachment(clean_name(given, {looks(one.name) for one in before}), data)


def _parts(body: bytes, mark: bytes) -> list[tuple[str, bytes]]:
    """Return each part's head and data. A delimiter stands at the beginning of the body or of a line."""
    pieces = (b"\r\n" + body).split(b"\r\n" + mark, _MAX_PARTS + 2)
    if len(pieces) < 2:
        raise ValueError("the boundary is nowhere in the body")
    found: list[tuple[str, bytes]] = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            return found
        if len(found) == _MAX_PARTS:
            raise ValueError(f"there are more than {_MAX_PARTS} parts")
        line_end, rest = piece.find(b"\r\n"), piece
        if line_end < 0 or piece[:line_end].strip(b" \t"):
            raise ValueError("a boundary is followed by something else")
        rest = piece[line_end:]  # its line end stays, so that an empty head is found as well
        head, blank, data = rest.partition(b"\r\n\r\n")
        if not blank or len(head) > _MAX_HEAD:
            raise ValueError("a part has no end of its head, or a head that is too long")
        found.append((head.decode("utf-8"), data))
    raise ValueError("the last boundary is missing: the body is cut off")


def _disposition(head: str) -> dict[str, str]:
    for line in head.split("\r\n"):
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() == "content-disposition" and value.strip().lower().startswith("form-data"):
            return _parameters(value)
    raise ValueError("a part does not say which field it is (Content-Disposition: form-data)")


def _parameters(value: str) -> dict[str, str]:
    return {match[1].lower(): match[2] if match[2] is not None else match[3] for match in _PARAMETER.finditer(value)}


def _file_name(parameters: Mapping[str, str]) -> str | None:
    """Return the name that a part's file came under, or None for a field. `filename*` (RFC 8187) counts where it stands alone."""
    plain, extended = parameters.get("filename"), parameters.get("filename*")
    if plain is not None:
        return plain.replace("%22", '"')
    if extended is None:
        return None
    return unquote(extended.rpartition("'")[2], errors="replace")


def _json(text: str) -> object:
    """Parse JSON that can be stored: no infinities, no half of a surrogate pair."""
    value: object = json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return value
