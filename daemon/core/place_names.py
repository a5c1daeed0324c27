"""Names that come from outside (places, threads, senders), and the session names that are made from them. Pure.

Two different names must never become one session, and none may look like another. So every character is written as %XX for
each of its UTF-8 bytes, except letters, digits and a few signs; and so is every letter that Unicode's compatibility forms
(NFKC, Unicode Standard Annex 15) would change. `%` and `~` are always written that way, so the escaping can be undone. A
name that would be too long is cut and ends in `~` and a digest.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Final

from schema.ids import MAX_FOLDER, check_session, session_folder

MAX_NAME_BYTES: Final = 500  # the longest name of a place, thread or sender
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+=!#$,")
_REFUSED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_DIGEST: Final = 32  # hex digits, 128 bits


def name_fault(text: str) -> str | None:
    """Return why a place, thread or sender of this name is refused, or None."""
    if not text or text != text.strip():
        return "is empty, or has spaces at its ends"
    if text.isascii():
        if not text.isprintable():
            return "has control characters"
        return None if len(text) <= MAX_NAME_BYTES else f"has more than {MAX_NAME_BYTES} bytes"
    if len(text) > MAX_NAME_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"has more than {MAX_NAME_BYTES} bytes"
    if any(unicodedata.category(one) in _REFUSED for one in text):
        return "has control, invisible or direction characters, or text that is not Unicode"
    return None


def escape(text: str) -> str:
    """Return a value as it is written in a session's name. Different values never become the same."""
    if all(one in _PLAIN for one in text):
        return text if text.strip(".") else _percent(text)
    kept = "".join(one if one in _PLAIN or _is_letter(one) else _percent(one) for one in text)
    if unicodedata.normalize("NFKC", kept) != kept:  # NFKC would join letters, such as Hangul's
        return "".join(one if one in _PLAIN else _percent(one) for one in text)
    return kept


def session_name(*parts: str) -> str:
    """Return a session's name made of these values: escaped, and joined by `:`."""
    return fitted(":".join(escape(part) for part in parts))


def chained_name(prefix: str, agent: str, session: str) -> str:
    """Return the name of the session in which another agent answers what `agent` asks in `session`.

    If `session` has such a name itself, do not escape it again: a chain reads `agent:c:agent:b:agent:a:SESSION`. No other
    session gets the same name, because `escape` leaves no `:`.
    """
    if session.startswith(f"{prefix}:") and all(one in _PLAIN or one in ":%~" or _is_letter(one) for one in session):
        return fitted(f"{prefix}:{escape(agent)}:{session}")
    return session_name(prefix, agent, session)


def fitted(name: str) -> str:
    """Return a session's name. If its folder's name would be too long, cut it and add `~` and a digest.

    The parts of `name` were escaped, so a `~` in it can only begin a digest. Raise InvalidNameError.
    """
    if len(session_folder(name)) <= MAX_FOLDER:
        return check_session(name)
    tail = "~" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    kept = name
    while kept and len(session_folder(kept.rstrip("/ ") + tail)) > MAX_FOLDER:
        kept = kept[: len(kept) * 7 // 8]
    return check_session(kept.rstrip("/ ") + tail)


def _is_letter(one: str) -> bool:
    category = unicodedata.category(one)
    return (category[0] == "L" or category == "Nd") and unicodedata.normalize("NFKC", one) == one


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))
