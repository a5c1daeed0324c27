"""Ids and names: what is time-ordered, and what may become part of a path.

New ids follow ULID (github.com/ulid/spec): 48 bits of epoch milliseconds, 80 random bits, Crockford base 32.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from schema.errors import InvalidNameError
from schema.frozen import frozen

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
MAX_ID: Final = 200  # characters of a message id
MAX_FOLDER: Final = 240  # bytes of a session's folder's name; a file system takes 255
_SAFE: Final = re.compile(r"[A-Za-z0-9._-]\Z")
_SESSION_HINT: Final = (
    "A session may have any printable name: up to 240 letters, digits and . _ -; every other character counts as three for"
    " each byte of its UTF-8. No space at its ends, and no '.', '..' or nothing between slashes."
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,199}\Z")


@frozen
class MessageLife:
    """One acceptance of a message. Its id may be used again after it was pruned (seq) or the session reset (timestamp)."""

    agent: str
    session: str
    message_id: str
    seq: int
    timestamp: str  # as inbound.db has it


def row_id(kind: str, life: MessageLife, *parts: str) -> str:
    """Return the id of a row that an agent writes while it works on a message: the same in every try of that message.

    `kind` is the id's first letter: `q` for a question, `n` for a message before the turn's end.
    """
    fields = (life.agent, life.session, life.message_id, str(life.seq), life.timestamp, *parts)
    digest = hashlib.sha256("\0".join(fields).encode("utf-8", "replace")).digest()
    return f"{kind}-{base64.b32encode(digest[:10]).decode('ascii').lower()}"


def new_id(now_ms: int, random: bytes | None = None) -> str:
    """Return a 26-character ULID. `random` (10 bytes) is given by simulations that must repeat themselves."""
    tail = os.urandom(10) if random is None else random
    number = (now_ms & (2**48 - 1)) << 80 | int.from_bytes(tail, "big")
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def check_name(what: str, name: str) -> str:
    """Return an agent's, channel's or hook's name if it is safe as a path component; raise InvalidNameError."""
    if not is_name(name):
        raise InvalidNameError(f"{what} {name!r} is not a valid name.")
    return name


def is_name(name: str) -> bool:
    """Return whether an agent, a channel or a hook may have this name."""
    return _NAME.match(name) is not None


def check_session(name: str) -> str:
    """Return a session's name, such as `-1001234567890` or `!room:server`. Raise InvalidNameError.

    It is shown as given and never becomes a path: `session_folder` makes the folder's name from it.
    """
    segments = name.split("/")
    if not name.isprintable() or name != name.strip() or not all(segments) or {".", ".."} & set(segments):
        raise InvalidNameError(f"session {name!r} is not a valid name.", hint=_SESSION_HINT)
    if len(session_folder(name)) > MAX_FOLDER:
        raise InvalidNameError(f"session {name[:64]!r}... is too long a name.", hint=_SESSION_HINT)
    return name


def session_folder(name: str) -> str:
    """Return the folder name of a session: percent-encoded UTF-8, unchanged where the name is safe already.

    A dot, hyphen or underscore is encoded at the beginning alone: so no folder is hidden, an option, or `..`.
    """
    if _NAME.match(name):
        return name
    return "".join(
        character if _SAFE.match(character) and (at or character.isalnum()) else _percent(character)
        for at, character in enumerate(name)
    )


def session_path(sessions_dir: Path, agent: str, session: str) -> Path:
    """Return a session's folder, `<sessions>/<agent>/<folder>`. Only this function makes a path from a name."""
    return sessions_dir / agent / session_folder(session)


def session_of_folder(folder: str) -> str | None:
    """Return the session whose folder has this name, or None if no session can have it."""
    try:
        name = unquote(folder, errors="strict")
        return name if check_session(name) and session_folder(name) == folder else None
    except (UnicodeDecodeError, InvalidNameError):
        return None


def is_plain(name: str) -> bool:
    """Return whether a name is made of letters, digits, `.`, `_` and `-` alone, and so needs no quoting anywhere."""
    return bool(_NAME.match(name))


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def check_message_id(message_id: str) -> str:
    """Return an outside message id; raise InvalidNameError. It has no separators, so it may name an inbox folder."""
    if not _MESSAGE_ID.match(message_id) or ".." in message_id:
        raise InvalidNameError(
            f"message id {message_id!r} is not valid.",
            hint="Use letters, digits and . _ : @ + = -, starting with a letter or digit, at most 200 characters.",
        )
    return message_id


def is_message_id(message_id: object) -> bool:
    """Return whether a value found in a container's file may be used as a message id."""
    return isinstance(message_id, str) and bool(_MESSAGE_ID.match(message_id)) and ".." not in message_id


def time_of(identity: str) -> int | None:
    """Return when an id of ours was made, in epoch milliseconds; None for any other text."""
    if len(identity) != 26 or any(character not in _CROCKFORD for character in identity):
        return None
    number = 0
    for character in identity[:10]:
        number = number << 5 | _CROCKFORD.index(character)
    return number
