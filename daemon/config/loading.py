"""Loads the configuration: reads the TOML file and the environment, checks both, and explains every fault.

Every refusal is a ConfigError that names the key and the fix.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ValidationError

from daemon.config.agents import Agent
from daemon.config.cross_checks import path_faults, table_faults
from daemon.config.faults import booleans_for_numbers, fault_text
from daemon.config.models import Config
from daemon.config.routes import RouteTable
from daemon.config.schedules import ScheduleTable
from daemon.config.sources import PREFIX, read_toml
from daemon.config.user_commands import CommandTable
from daemon.config.variables import unknown_variables
from daemon.core.errors import ConfigError

# Tables of tables, each entry's name chosen by the operator.
_TABLES_BY_NAME: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {"agents": Agent, "commands": CommandTable, "routes": RouteTable, "schedules": ScheduleTable}
)
_HINT: Final = "Correct the named keys; docs/configuration.md lists them."


def load_config(
    path: Path | None, *, data_dir: Path | None = None, warn: Callable[[str], object] | None = None
) -> Config:
    """Read and check. `path` None means defaults and environment only. A relative data_dir is relative to the file.

    `data_dir` comes from the command line and overrides environment and file. With `warn`, a variable that is not a key is
    reported to it instead of refused: a command that only reads must not fail because of it.

    Raise ConfigError naming every wrong key, its place and its fix.
    """
    values = read_toml(path) if path is not None else {}
    if path is not None and isinstance(values.get("data_dir"), str) and str(values["data_dir"]).strip():
        with contextlib.suppress(ValueError):  # a NUL, which the key's own check names
            values["data_dir"] = (path.absolute().parent / str(values["data_dir"])).resolve()
    booleans = list(booleans_for_numbers(Config, values))
    if booleans:
        raise ConfigError(f"{path}: {'; '.join(booleans)}.", hint=_HINT)
    try:
        config = Config(**values)
    except ValidationError as error:
        raise _explained(error, path) from error
    except Exception as error:  # pydantic-settings wraps an unparsable environment variable in its own error
        raise ConfigError(f"{error}", hint="Correct or unset that environment variable.") from error
    wanted = (data_dir if data_dir is not None else config.data_dir).absolute()
    faults = [*table_faults(config), *path_faults(config, wanted)]
    unknown = [*unknown_variables(config, os.environ)]
    if warn is None:
        faults += unknown
    else:
        for fault in unknown:
            warn(fault)
    if wanted.resolve() == Path("/"):
        faults.append("data_dir: name a folder for clawbus alone, not the root of the file system")
    if faults:
        text = "; ".join(faults)
        raise ConfigError(
            text if text.endswith("?") else f"{text}.",
            hint=_HINT,
        )
    return config.model_copy(update={"data_dir": wanted})


def _explained(error: ValidationError, path: Path | None) -> ConfigError:
    lines: list[str] = []
    for item in error.errors():
        where = _place(item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key; {_instead(str(item['loc'][-1]), _keys_at(item['loc'][:-1]))}")
        elif item["loc"] == ("routes",) and isinstance(item["input"], dict):
            lines.append("routes: write each route as [[routes]], in double brackets, with its name as a key")
        else:
            got = "" if item["type"] == "missing" else f" (got {item['input']!r:.80})"
            lines.append(f"{where}: {fault_text(item)}{got}")
    place = str(path) if path is not None else "the environment"
    return ConfigError(f"{place}: " + "; ".join(lines), hint=_HINT)


def _instead(key: str, known: Sequence[str]) -> str:
    """Return what to write in place of an unknown key: the same one with its unit, or a like one."""
    with_unit = [one for one in known if one in (f"{key}_s", f"{key}_bytes")]
    close = with_unit or difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "remove it."


def _place(location: tuple[int | str, ...]) -> str:
    """Return the key and the variable that set it, if one did: then it is not in the file."""
    key = ".".join(str(part) for part in location)
    wanted = PREFIX + "__".join(str(part) for part in location).upper()
    variable = next((name for name in sorted(os.environ) if name.upper() == wanted), None)
    return key if variable is None else f"{key} (environment variable {variable})"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        if model is Config and part in _TABLES_BY_NAME:
            model = _TABLES_BY_NAME[str(part)]
        elif part in model.model_fields:
            annotation = model.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
    return list(model.model_fields)
