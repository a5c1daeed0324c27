"""Checks a command's own arguments before the command runs: text is Unicode, names are not empty, short ids are whole ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import typer

from daemon.cli.invocation import Invocation
from daemon.core.short_ids import is_part

ID_PARAMETERS: Final = frozenset({"message", "identity", "letter", "letters", "answers", "question"})
_MAY_BE_EMPTY: Final = frozenset({"text", "reason"})


def checked(values: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, object]:
    """Return the arguments as text that can be stored. Raise a usage error. `words` are what its help calls them."""
    return {
        name: _require_words(name, words.get(name, name), _as_unicode(words.get(name, name), value))
        for name, value in values.items()
    }


def words_of(parameters: Iterable[Any]) -> dict[str, str]:
    """Return {name: what the help calls it} of the parser's parameters: `--reason`, `AGENT/SESSION`."""
    return {
        str(one.name): str(one.opts[0] if one.param_type_name == "option" else one.metavar or one.name)
        for one in parameters
    }


def with_full_ids(invocation: Invocation, values: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments with whole ids in place of short ones. Raise AmbiguousIdError."""
    return {name: _full_id(invocation, name, value) for name, value in values.items()}


def _as_unicode(word: str, value: object) -> object:
    """Return an argument as Unicode. Paths stay as they are: a file's name is bytes. Raise a usage error.

    In a locale without UTF-8 Python keeps what it cannot decode as surrogates; the bytes behind them may be UTF-8.
    """
    if isinstance(value, list):
        return [_as_unicode(word, one) for one in cast("list[object]", value)]
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(value).decode()
        except UnicodeError:
            raise typer.BadParameter(
                f"the bytes {_bytes(value)} are not UTF-8 text ({word}). Convert it first, for example with `iconv -t UTF-8`."
            ) from None
    return value


def _bytes(value: str) -> str:
    """Return an argument as a shell's $'' takes it: without the halves of characters that Python keeps for its bytes."""
    try:
        data = os.fsencode(value)
    except UnicodeError:  # no argument of a shell
        data = value.encode("utf-8", "backslashreplace")
    return repr(data)[1:]


def _require_words(name: str, word: str, value: object) -> object:
    """Return an argument that names something. Raise a usage error for an empty one: an unset variable of a shell."""
    words = cast("list[object]", value if isinstance(value, list) else [value])
    if name not in _MAY_BE_EMPTY and any(isinstance(one, str) and not one.strip() for one in words):
        raise typer.BadParameter(f"{word} is empty (is a variable empty?).")
    return words if isinstance(value, list) else value


def _full_id(invocation: Invocation, name: str, value: object) -> object:
    """Return the ids that short ones mean, for a parameter that takes ids. Raise AmbiguousIdError."""
    if name not in ID_PARAMETERS:
        return value
    if isinstance(value, list):
        return [_full_id(invocation, name, one) for one in cast("list[object]", value)]
    message, at, incarnation = value.partition("@") if isinstance(value, str) else ("", "", "")
    if not is_part(message):
        return value
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415
    from daemon.inspect.finding import whole_id  # noqa: PLC0415

    data_dir = invocation.place.data_dir
    return f"{whole_id(data_dir, read_central(data_dir).known(), message)}{at}{incarnation}"
