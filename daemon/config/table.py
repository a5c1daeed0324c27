"""The base class of configuration tables: refuses unknown keys, times of over ten years and impossible paths. No I/O."""

from __future__ import annotations

import os
import sys
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

MAX_MEMORY_BYTES: Final = 1024**5
MAX_PIDS: Final = 4_194_304  # the kernel's own limit
MIN_CPUS: Final = 0.01  # less is refused by the engines, and much less counts as no limit
_LONGEST_S: Final = 10 * 366 * 86400.0


class Table(BaseModel):
    """A table that refuses unknown keys and times of over ten years."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: object, info: ValidationInfo) -> object:
        """Refuse a time of over ten years: it is a mistake, and could overflow a clock."""
        name = info.field_name or ""
        if name.endswith("_s") and isinstance(value, float) and value > _LONGEST_S:
            raise ValueError(f"must be at most {_LONGEST_S:.0f} seconds (ten years)")
        return value


def check_word(text: str) -> None:
    """Raise ValueError for a text with blanks or control characters, which names no image and no network."""
    if not text.isprintable() or any(one.isspace() for one in text):
        raise ValueError("must not contain blanks or control characters")


def check_path(text: str) -> None:
    """Raise ValueError for a path that this process cannot pass to the system."""
    if "\0" in text:
        raise ValueError("must not contain NUL")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise ValueError(
            f"has characters that this locale ({encoding}) cannot encode; set LC_ALL=C.UTF-8 for the command"
        ) from None
