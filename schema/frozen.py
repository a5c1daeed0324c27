"""`frozen` makes a class of values: a dataclass with slots whose attributes are assigned once.

The type checker refuses a second assignment, and nothing checks it again at run time. `dataclass(frozen=True)` would: it
compiles two more methods for each of four hundred classes, a tenth of the daemon's start, and builds each value more slowly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[_T]) -> type[_T]:
    """Return `cls` as a dataclass whose values compare and hash by their fields."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
