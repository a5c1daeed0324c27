"""Checks the names of CLAWBUS_* environment variables, so that a typing error in one is reported. No I/O."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

from daemon.config.models import Config
from daemon.config.sources import NO_KEYS, NO_KEYS_BEGIN, PREFIX, is_service_link

_TABLES: Final = frozenset(name for name in Config.model_fields if name not in ("data_dir", "timezone", "role"))


def unknown_variables(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield an error text for each CLAWBUS_* variable that names no configuration key and has no other known use."""
    known = [*(key.upper() for key in Config.model_fields), *NO_KEYS]
    for name in sorted(environ):
        rest = name.upper().removeprefix(PREFIX)
        if rest == name.upper() or rest.startswith(NO_KEYS_BEGIN) or is_service_link(name, environ[name]):
            continue
        if name in _secret_variables(config.channels):
            continue
        first, nested, _ = rest.partition("__")
        if nested and first.lower() in _TABLES:
            continue  # the model of this table has already checked the keys in it
        if first not in known or nested:
            yield f"environment variable {name}: no such key; {_advice(first, rest, known)}"


def _advice(first: str, rest: str, known: Sequence[str]) -> str:
    """Return what to do: use a similar name, or unset the variable. `rest`: the name without the prefix; `first`: up to `__`."""
    for table in sorted(_TABLES):
        if rest.startswith(f"{table.upper()}_") and not rest.startswith(f"{table.upper()}__"):
            return f"did you mean {PREFIX}{table.upper()}__{rest.removeprefix(f'{table.upper()}_')}?"
    close = difflib.get_close_matches(first, [one for one in known if one != first], n=1)
    return f"did you mean {PREFIX}{close[0]}{rest.removeprefix(first)}?" if close else "unset it"


def _secret_variables(table: object) -> set[str]:
    """Return the names of the variables that hold channels' secrets: the values of all keys that end in `_env`."""
    found: set[str] = set()
    if isinstance(table, dict):
        for key, value in cast("dict[str, object]", table).items():
            found |= {value} if key.endswith("_env") and isinstance(value, str) else _secret_variables(value)
    return found
