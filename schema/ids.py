"""Ids and names: what is time-ordered, and what may become part of a path.

New ids follow ULID (github.com/ulid/spec): 48 bits of epoch milliseconds, 80 random bits, Crockford base 32.
"""

from __future__ import annotations

import os
import re
from typing import Final

from schema.errors import InvalidNameError

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
MAX_ID: Final = 200  # characters of a message id
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,199}\Z")


def new_id(now_ms: int, random: bytes | None = None) -> str:
    """A 26-character ULID. `random` (10 bytes) is given by simulations that must repeat themselves."""
    tail = os.urandom(10) if random is None else random
    number = (now_ms & (2**48 - 1)) << 80 | int.from_bytes(tail, "big")
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def check_name(what: str, name: str) -> str:
    """An agent's or session's name, safe as one path component; raises InvalidNameError."""
    if not _NAME.match(name):
        raise InvalidNameError(f"{what} {name!r} is not a valid name.")
    return name


def check_message_id(message_id: str) -> str:
    """A message id from outside; raises InvalidNameError. No separators, so it may name an inbox folder."""
    if not _MESSAGE_ID.match(message_id) or ".." in message_id:
        raise InvalidNameError(
            f"message id {message_id!r} is not valid.",
            hint="Use letters, digits and . _ : @ + = -, starting with a letter or digit, at most 200 characters.",
        )
    return message_id


def is_message_id(message_id: object) -> bool:
    """Whether a value found in a container's file may be used as a message id."""
    return isinstance(message_id, str) and bool(_MESSAGE_ID.match(message_id)) and ".." not in message_id


def time_of(identity: str) -> int | None:
    """Epoch milliseconds at which an id of ours was made; None for any other text."""
    if len(identity) != 26 or any(character not in _CROCKFORD for character in identity):
        return None
    number = 0
    for character in identity[:10]:
        number = number << 5 | _CROCKFORD.index(character)
    return number
