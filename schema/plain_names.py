"""Rules for the names of files that one person or program sends to another. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Final, cast

MAX_NAME_BYTES: Final = 200
_MAX_ENDING_BYTES: Final = 20
# Other (controls, bidi and zero-width characters, surrogates, private use) and the two separators that break lines.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def name_fault(name: str) -> str | None:
    """Return why a name is not allowed, as the end of a sentence; None if it is one visible, unambiguous path component."""
    if not name or name != name.strip() or name.startswith((".", "-")):
        return "is empty, begins with . or -, or begins or ends with a blank"
    if "/" in name or "\\" in name:
        return "holds a path"
    if any(unicodedata.category(character) in _UNSEEN for character in name):
        return "holds a character that cannot be seen"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"has over {MAX_NAME_BYTES} bytes"
    return None


def looks(name: str) -> str:
    """Return the name's look: two names with the same look may be confused by a person or a file system."""
    return unicodedata.normalize("NFKC", name).casefold()


def file_names(content: object) -> tuple[str, ...]:
    """Return the names that an answer's content lists under `files`; none unless that is a list of texts."""
    found = cast("dict[str, object]", content).get("files") if isinstance(content, dict) else None
    listed = cast("list[object]", found) if isinstance(found, list) else []
    names = tuple(one for one in listed if isinstance(one, str))
    return names if len(names) == len(listed) else ()


def clean_name(given: str, taken: Collection[str]) -> str:
    """Return an allowed name for a file: the last component of its given name, without invisible characters.

    `taken` has the looks (`looks`) of the message's other names; the result looks like none of them.
    """
    name = given.replace("\\", "/").rpartition("/")[2]
    name = "".join(one for one in name if unicodedata.category(one) not in _UNSEEN).strip().lstrip(".- ")
    stem, dot, ending = name.rpartition(".")
    if not dot or len(ending.encode()) > _MAX_ENDING_BYTES:
        stem, dot, ending = name, "", ""
    stem = _cut(stem, MAX_NAME_BYTES - _MAX_ENDING_BYTES - 8).strip() or "file"
    found, number = f"{stem}{dot}{ending}", 1
    while looks(found) in taken:
        number += 1
        found = f"{stem}-{number}{dot}{ending}"
    return found


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")
