"""Describes the faults of a configuration in the terms of the file. Pure."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Union, cast, get_args, get_origin

from pydantic import BaseModel

# By pydantic's type of error (docs.pydantic.dev, "Validation Errors").
_WORDS: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "missing": "is required",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "int_parsing_size": "is a number beyond all use",
        "float_type": "must be a number",
        "float_parsing": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "bool_parsing": "must be true or false",
        "string_type": "must be text in quotes",
        "path_type": "must be a path in quotes",
        "tuple_type": 'must be a list, such as ["one", "two"]',
        "list_type": 'must be a list, such as ["one", "two"]',
        "frozen_set_type": 'must be a list, such as ["one", "two"]',
        "dict_type": "must be a table",
        "model_type": "must be a table",
        "model_attributes_type": "must be a table",
    }
)
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = types.MappingProxyType(
    {
        "greater_than_equal": ("must be at least", "ge"),
        "greater_than": ("must be more than", "gt"),
        "less_than_equal": ("must be at most", "le"),
        "less_than": ("must be less than", "lt"),
        "literal_error": ("must be", "expected"),
        "enum": ("must be", "expected"),
        "too_short": ("must have at least this many values:", "min_length"),
        "string_too_short": ("must have at least this many characters:", "min_length"),
        "string_too_long": ("must have at most this many characters:", "max_length"),
    }
)


def fault_text(item: Mapping[str, Any]) -> str:
    """Return what is wrong with one key, such as `must be a whole number`. `item` is one of `ValidationError.errors()`."""
    kind, context = str(item["type"]), item.get("ctx", {})
    if kind in _WORDS:
        return _WORDS[kind]
    if kind in _BOUNDS and _BOUNDS[kind][1] in context:
        words, name = _BOUNDS[kind]
        return f"{words} {context[name]}"
    return str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def booleans_for_numbers(model: type[BaseModel], values: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Yield a fault for every number that is given as true or false, which pydantic would take for 1 and 0."""
    for name, field in model.model_fields.items():
        key = f"{place}{field.alias or name}"
        if name in values:
            yield from _in_value(field.annotation, values[name], key)


def _in_value(annotation: object, value: object, key: str) -> Iterator[str]:
    if isinstance(value, bool):
        kinds = _alternatives(annotation)
        if bool not in kinds and kinds & {int, float}:
            yield f"{key}: must be a number (got {str(value).lower()})"
    elif isinstance(value, Mapping):
        for kind in _alternatives(annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from booleans_for_numbers(kind, cast("Mapping[str, object]", value), f"{key}.")
            elif get_origin(kind) is dict:
                for name, inner in cast("Mapping[str, object]", value).items():
                    yield from _in_value(get_args(kind)[1], inner, f"{key}.{name}")


def _alternatives(annotation: object) -> frozenset[Any]:
    """Return the members of a union, or the annotation alone, without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return frozenset[Any]().union(*(_alternatives(member) for member in get_args(annotation)))
    return frozenset({annotation})
