"""The base of all configuration tables: refuses unknown keys, excessive times and impossible paths. No I/O."""

from __future__ import annotations

import os
import sys
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

_LONGEST_S: Final = 10 * 366 * 86400.0


class Table(BaseModel):
    """A table without unknown keys and without times that are too long for a clock."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: object, info: ValidationInfo) -> object:
        """Refuse times that are too long for a clock: they can only be mistakes."""
        name = info.field_name or ""
        if name.endswith("_s") and isinstance(value, float) and value > _LONGEST_S:
            raise ValueError(f"must be at most {_LONGEST_S:.0f} seconds (ten years)")
        return value


def check_path(text: str) -> None:
    """Raise ValueError for a path that no file in this process can have."""
    if "\0" in text:
        raise ValueError("must not contain NUL")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise ValueError(
            f"has characters that this locale ({encoding}) cannot express; set LC_ALL=C.UTF-8 for the command"
        ) from None
