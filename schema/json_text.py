"""JSON that every reader can take: checked where it is written (the runner) and once more where it is sent (the host).

JSON lets a text escape half of a surrogate pair, a number be larger than any machine's, and values nest without an end. Python's
reader takes all of that, and no channel can send it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Final, cast

from schema.ids import is_message_id

MAX_DEPTH: Final = 100
_HALF: Final = re.compile("[\ud800-\udfff]")
_MAY_BE_TOO_LARGE: Final = re.compile(r"[0-9][eE]\+?[0-9]{2}|[0-9]{300}")
_MAY_HAVE_HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")


class UnsendableError(ValueError):
    """A value that cannot be sent as JSON. The text completes "it ..."."""


def whole_text(text: str) -> str:
    """Replace each half of a surrogate pair by U+FFFD: UTF-8 cannot hold one."""
    return _HALF.sub("\N{REPLACEMENT CHARACTER}", text)


def sendable(value: object, depth: int = MAX_DEPTH) -> object:
    """Return the same value with valid texts. Raise UnsendableError for what no channel can send."""
    if isinstance(value, str):
        return whole_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if depth == 0:
        raise UnsendableError(f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        fields = cast("dict[object, object]", value)
        if not all(isinstance(key, str) for key in fields):
            raise UnsendableError("has a key that is not text")
        cleaned = {whole_text(cast("str", key)): sendable(item, depth - 1) for key, item in fields.items()}
        if len(cleaned) < len(fields):
            raise UnsendableError("has two keys that differ only in half a character")
        return cleaned
    if isinstance(value, list | tuple):
        return [sendable(item, depth - 1) for item in cast("list[object]", value)]
    raise UnsendableError(f"holds a {type(value).__name__}, which JSON does not have")


def parse(text: str) -> object:
    """Read JSON as RFC 8259 has it, and only what can be sent. Raise ValueError (UnsendableError too)."""
    try:
        return sendable(_STRICT.decode(text))
    except RecursionError:
        raise UnsendableError(f"is nested deeper than {MAX_DEPTH} levels") from None


def check(text: str) -> None:
    """Raise ValueError (UnsendableError too) for JSON text that cannot be sent, but for halves of characters.

    The walk over the value is only for a text that can hold a number too large or a nest too deep.
    """
    if _MAY_BE_TOO_LARGE.search(text) or text.count("[") + text.count("{") > MAX_DEPTH:
        parse(text)
    else:
        _STRICT.decode(text)


def without_halves(text: str) -> str:
    """Return JSON text that parses: replace each half of a surrogate pair by U+FFFD."""
    if not _MAY_HAVE_HALF.search(text):
        return whole_text(text)
    value: object = json.loads(text)
    cleaned = sendable(value)
    return text if cleaned == value else encode(cleaned)


def encode(value: object) -> str:
    """Return compact JSON. Raise ValueError for what `sendable` would refuse."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def answered_ids(content: object) -> tuple[str, ...]:
    """Return the ids of the further messages that a content (parsed JSON) says it answers: {"answers": [...]}.

    Anything there that cannot be a message's id is left out.
    """
    listed = cast("dict[str, object]", content).get("answers") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        return ()
    return tuple(cast("str", one) for one in cast("list[object]", listed) if is_message_id(one))


def _number(value: float) -> float:
    try:
        fits = math.isfinite(float(value))
    except OverflowError:
        fits = False
    if not fits:
        raise UnsendableError("has a number that is too large, or none")
    return value


def _no_constant(name: str) -> object:
    raise UnsendableError(f"has {name}, which JSON does not have")


_STRICT: Final = json.JSONDecoder(parse_constant=_no_constant)  # made once: `json.loads` would make one for each text
