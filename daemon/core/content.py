"""Reads a message's content from its JSON text. Agents write it, so nothing here raises, whatever it contains."""

from __future__ import annotations

import json
import math
from typing import Any, Final, cast

from schema import json_text

_TEXT_KEYS: Final = ("text", "markdown", "message", "body")


def decode(content: str) -> object:
    """Parse JSON text, or return the text when it is not JSON. NaN and infinities become text: JSON has none."""
    try:
        return cast("object", _LENIENT.decode(content))
    except (ValueError, RecursionError):
        return content


def text_of(content: str) -> str:
    """Return what a person would read: the text if there is one, else the JSON as it is."""
    value = decode(content)
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        for key in _TEXT_KEYS:
            if isinstance(fields.get(key), str):
                return cast("str", fields[key])
        error = error_of(content)
        if error is not None:
            return error
    return content


def error_of(content: str) -> str | None:
    """Return the reason when this answer says that the agent failed ({"error": ...}), else None."""
    value = decode(content)
    if not isinstance(value, dict):
        return None
    error = cast("dict[str, Any]", value).get("error")
    if error is None:
        return None
    if isinstance(error, dict):
        message = cast("dict[str, Any]", error).get("message")
        if isinstance(message, str):
            return message
    return error if isinstance(error, str) else json.dumps(error, default=str)


def is_runner_error(content: str) -> bool:
    """Return whether the runner wrote this answer in place of the agent's: `error` is an object, as `docs/contract.md` says."""
    # Most answers do not have the key, plain or escaped. Skip the parser for them.
    if 'error"' not in content and "\\u" not in content:
        return False
    value = decode(content)
    return isinstance(value, dict) and isinstance(cast("dict[str, object]", value).get("error"), dict)


def answered_ids(content: str) -> frozenset[str]:
    """Return the ids of further messages that this answers, in addition to the one that it replies to."""
    return frozenset(json_text.answered_ids(decode(content)))


def preview(content: str, width: int = 200) -> str:
    """Return the first `width` characters of the text, on one line."""
    line = " ".join(text_of(content).split())
    return line if len(line) <= width else line[: width - 3] + "..."


def _finite(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


_LENIENT: Final = json.JSONDecoder(parse_constant=str, parse_float=_finite)  # `json.loads` would make one for each text
