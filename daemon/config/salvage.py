"""Reads the valid parts of a broken configuration, for commands that must examine the data folder all the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from daemon.config.loading import load_config
from daemon.config.models import Config
from daemon.config.sources import read_toml
from daemon.core.errors import ConfigError
from schema.frozen import frozen

# `data_dir = "/srv/bus"`, above the first table, in a file that is not valid TOML.
_DATA_DIR: Final = re.compile(
    r"""^[ \t]*data_dir[ \t]*=[ \t]*(?P<quote>["'])(?P<folder>[^"'\\\n]+)(?P=quote)""", re.MULTILINE
)
_FIRST_TABLE: Final = re.compile(r"^[ \t]*\[", re.MULTILINE)


@frozen
class Salvaged:
    """A configuration made of the parts that can be read. `missing` names the others; `knows_runtime`: where agents run."""

    config: Config
    missing: tuple[str, ...]
    knows_runtime: bool


def salvage(path: Path | None, data_dir: Path | None) -> Salvaged:
    """Return what can be read of the file and the environment; defaults take the place of the rest. Raise nothing."""
    try:
        values = read_toml(path) if path is not None else {}
    except ConfigError:
        folder = data_dir or _variable() or _folder_in(path)
        return Salvaged(_defaults(folder), ("the whole file",), knows_runtime=False)
    missing: list[str] = []
    try:
        load_config(path, data_dir=data_dir, warn=lambda _: None)
    except ConfigError as error:
        missing += _without_faulty(values, error)
    folder = data_dir or _variable() or _resolved(path, values.pop("data_dir", None))
    values.pop("data_dir", None)
    try:
        config = Config(**values)
    except Exception:  # noqa: BLE001 - pydantic-settings' own errors about the environment; `load_config` has explained it
        return Salvaged(_defaults(folder), ("everything but the data folder",), knows_runtime=False)
    knows_runtime = not {"runtime", "docker", "podman"} & set(missing)
    return Salvaged(
        config.model_copy(update={"data_dir": (folder or config.data_dir).absolute()}), tuple(missing), knows_runtime
    )


def _without_faulty(values: dict[str, Any], error: ConfigError) -> Iterator[str]:
    """Remove the tables and keys that the checks refused, and yield their names: of `[agents]` and its like single entries."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return
    for place in dict.fromkeys(tuple(map(str, item["loc"])) for item in cause.errors()):
        top = place[:1]
        if len(place) > 1 and top[0] in ("agents", "commands", "schedules", "channels"):
            table = values.get(top[0])
            if isinstance(table, dict) and table.pop(place[1], None) is not None:  # pyright: ignore[reportUnknownMemberType]
                yield f"{top[0]}.{place[1]}"
        elif top and values.pop(top[0], None) is not None:
            yield top[0]


def _defaults(folder: Path | None) -> Config:
    made = Config.model_construct()
    return made.model_copy(update={"data_dir": (folder or made.data_dir).absolute()})


def _variable() -> Path | None:
    named = os.environ.get("CLAWBUS_DATA_DIR", "").strip()
    return Path(named) if named else None


def _resolved(path: Path | None, folder: object) -> Path | None:
    if not isinstance(folder, str) or not folder.strip() or "\0" in folder:
        return None
    return (path.absolute().parent / folder).resolve() if path is not None else Path(folder)


def _folder_in(path: Path | None) -> Path | None:
    """Return the data folder that the text of a file names, though the file is not valid TOML."""
    try:
        text = path.read_text("utf-8", errors="replace") if path is not None else ""
    except OSError:
        return None
    table = _FIRST_TABLE.search(text)
    found = _DATA_DIR.search(text, 0, table.start() if table is not None else len(text))
    return _resolved(path, found["folder"]) if found is not None else None
