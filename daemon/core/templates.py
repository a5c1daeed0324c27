"""Texts with fields, such as `pr-{body.pull_request.number|body.issue.number}`: parsed once, filled for each event. Pure.

A field is a path through the event's values; `|` gives a second choice, and `'text'` is a choice that is always there.
`{{` and `}}` are braces. Only texts, whole numbers and booleans fill a field; anything else counts as missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

from schema.frozen import frozen

MAX_TEMPLATE: Final = 4_000  # characters
MAX_VALUE: Final = 100_000  # characters of one field's value
_MAX_FIELDS: Final = 20
_MAX_DEPTH: Final = 12
_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PATH: Final = re.compile(r"[A-Za-z0-9_@$-]+(?:\.[A-Za-z0-9_@$-]+)*\Z")


class TemplateError(ValueError):
    """The template is malformed or too large."""


class MissingFieldError(ValueError):
    """None of a field's choices has a value in this event. The text names the field."""


@frozen
class _Field:
    """One `{...}`: paths to try in this order, and a text if none has a value."""

    text: str
    paths: tuple[tuple[str, ...], ...]
    otherwise: str | None


@frozen
class Template:
    """A parsed template."""

    text: str
    _parts: tuple[str | _Field, ...]

    @property
    def has_fields(self) -> bool:
        """Whether it depends on the event at all."""
        return any(isinstance(part, _Field) for part in self._parts)

    @property
    def first_words(self) -> frozenset[str]:
        """The first word of every path, to check against the names that an event has."""
        return frozenset(path[0] for part in self._parts if isinstance(part, _Field) for path in part.paths)

    @property
    def literals(self) -> tuple[str, ...]:
        """The texts before, between and behind the fields; some may be empty."""
        texts = [""]
        for part in self._parts:
            if isinstance(part, str):
                texts[-1] += part
            else:
                texts.append("")
        return tuple(texts)

    def render(self, values: Mapping[str, object], escape: Callable[[str], str] = str) -> str:
        """Return the text with each field's value, passed through `escape`. Raise MissingFieldError."""
        return "".join(part if isinstance(part, str) else escape(_value(part, values)) for part in self._parts)


def parse(text: str) -> Template:
    """Parse a template. Raise TemplateError."""
    if len(text) > MAX_TEMPLATE:
        raise TemplateError(f"has more than {MAX_TEMPLATE} characters")
    parts: list[str | _Field] = []
    at = 0
    for match in _PIECE.finditer(text):
        parts.append(text[at : match.start()])
        at = match.end()
        piece = match.group()
        if piece in ("{", "}"):
            raise TemplateError(f"has a lone `{piece}`; write `{piece}{piece}` for the character itself")
        parts.append(piece[0] if piece in ("{{", "}}") else _field(match.group(1)))
    parts.append(text[at:])
    if sum(isinstance(part, _Field) for part in parts) > _MAX_FIELDS:
        raise TemplateError(f"has more than {_MAX_FIELDS} fields")
    return Template(text, tuple(part for part in parts if part != ""))


def _field(text: str) -> _Field:
    paths: list[tuple[str, ...]] = []
    otherwise: str | None = None
    for choice in text.split("|"):
        if otherwise is not None:
            raise TemplateError(f"{{{text}}}: nothing can follow the quoted choice")
        if len(choice) > 1 and choice[0] == choice[-1] == "'":
            otherwise = choice[1:-1]
        elif _PATH.match(choice) and choice.count(".") < _MAX_DEPTH:
            paths.append(tuple(choice.split(".")))
        else:
            raise TemplateError(f"{{{text}}}: {choice!r} is not a field; write names joined by dots, or 'text'")
    return _Field(text, tuple(paths), otherwise)


def _value(field: _Field, values: Mapping[str, object]) -> str:
    for path in field.paths:
        found = look_up(values, path)
        if found is not None and found != "":
            return found
    if field.otherwise is not None:
        return field.otherwise
    raise MissingFieldError(f"the event has no {{{field.text}}}")


def look_up(values: Mapping[str, object], path: Sequence[str]) -> str | None:
    """Return the text at a path (a number is an index into a list), or None."""
    found = cast("object", values)
    for part in path:
        if isinstance(found, Mapping):
            found = cast("Mapping[str, object]", found).get(part)
        elif isinstance(found, list) and part.isascii() and part.isdecimal() and len(part) < _MAX_DEPTH:
            items = cast("list[object]", found)
            found = items[int(part)] if int(part) < len(items) else None
        else:
            return None
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int):
        # str() of a huge number raises; no name of a place or a session has that many digits.
        return str(found) if abs(found) < 10**30 else None
    return found[:MAX_VALUE] if isinstance(found, str) else None
