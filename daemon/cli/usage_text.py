"""What a usage error says: the parser's text in plain words, with the nearest option or choice."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Final

_CHOICES: Final = re.compile(r"Value error, ('[^']*') is not one of ('.+')\.?$", re.DOTALL)
_BREAKS: Final = re.compile(r"\s*\n\s*")  # the parser puts each choice on a line of its own
_CLOSE: Final = 0.6
_FEW: Final = 10  # commands of a group that fit in a line or two


def usage_text(error: Any) -> str:
    """Return the message of the parser's error, with what may have been meant."""
    text = _BREAKS.sub(" ", str(error.format_message()))
    wrong = getattr(error, "option_name", None)
    if isinstance(wrong, str) and hasattr(error, "possibilities"):
        return f"No such option: {wrong}.{_meant(wrong, _options(error))}"
    if text.startswith("No such command") and "Did you mean" not in text:
        names = list(getattr(getattr(getattr(error, "ctx", None), "command", None), "commands", ()))
        return f"{text} There are: {', '.join(names)}." if len(names) <= _FEW else text
    choices = _CHOICES.search(text)
    if choices is not None:
        given, listed = (re.findall(r"'([^']*)'", part) for part in choices.groups())
        return text.replace("Value error, ", "").rstrip(".") + f".{_meant(''.join(given), listed)}"
    return text.replace("Value error, ", "")


def _options(error: Any) -> list[str]:
    """Return every option of the command, whether the parser took it for similar or not."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    return [one for parameter in getattr(command, "params", ()) for one in parameter.opts if one.startswith("--")]


def _meant(word: str, known: list[str]) -> str:
    close = get_close_matches(word.lower(), known, n=2, cutoff=_CLOSE)
    close = close or [one for one in known if len(word) > len("--xx") and one.startswith(word)][:2]
    return f" Did you mean {' or '.join(close)}?" if close else ""
