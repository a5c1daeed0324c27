"""Reads where the daemon of a configuration is, without checking everything else.

A command that only asks a running daemon needs its socket and its data folder. The whole check imports pydantic and takes
longer than most answers. Anything unusual here is left to the whole check, so that the user reads its errors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast

from daemon.config.sources import NO_KEYS, NO_KEYS_BEGIN, is_service_link, read_toml
from schema.frozen import frozen

_DEFAULT_FOLDER: Final = "/var/lib/clawbus"
_KINDS: Final = ("docker", "podman", "process")
_PREFIX: Final = "CLAWBUS_"


@frozen
class Place:
    """Where a daemon keeps its data and answers, and where its agents run."""

    data_dir: Path
    control_socket: Path
    runtime: str


class _Checked(Protocol):
    @property
    def data_dir(self) -> Path: ...
    @property
    def control_socket(self) -> Path: ...
    @property
    def runtime(self) -> Any: ...


def place_of(config: _Checked) -> Place:
    """Return the place that a checked configuration names."""
    return Place(config.data_dir, config.control_socket, config.runtime.kind)


def quick_place(path: Path | None, data_dir: Path | None, environ: Mapping[str, str]) -> Place | None:
    """Return the place that `load_config` would find, or None if only `load_config` can say it.

    `data_dir` comes from the command line. Raise ConfigError for a file that cannot be read.
    """
    if any(_is_a_key(name, value) for name, value in environ.items()):
        return None
    values = read_toml(path) if path is not None else {}
    folder, runtime, control = (
        values.get("data_dir", _DEFAULT_FOLDER),
        values.get("runtime", {}),
        values.get("control", {}),
    )
    if not (isinstance(runtime, dict) and isinstance(control, dict)):
        return None
    kind = cast("dict[str, object]", runtime).get("kind", "docker")
    socket = cast("dict[str, object]", control).get("socket", "")
    if not (isinstance(socket, str) and isinstance(folder, str) and folder.strip() and kind in _KINDS):
        return None
    if "\0" in folder + socket:
        return None
    found = _folder(path, folder, data_dir, environ.get("CLAWBUS_DATA_DIR"))
    if found is None:
        return None
    return Place(found, Path(socket) if socket else found / "control.sock", str(kind))


def _is_a_key(name: str, value: str) -> bool:
    """Return whether a variable may set a key, or be a mistyped one."""
    rest = name.upper().removeprefix(_PREFIX)
    if rest == name.upper() or name == "CLAWBUS_DATA_DIR" or rest in NO_KEYS:
        return False
    return not rest.startswith(NO_KEYS_BEGIN) and not is_service_link(name, value)


def _folder(path: Path | None, folder: str, given: Path | None, variable: str | None) -> Path | None:
    if given is None and variable is not None and not variable.strip():
        return None
    if given is not None or variable is not None:
        found = Path(given if given is not None else variable or "").absolute()
    else:
        found = (path.absolute().parent / folder).resolve() if path is not None else Path(folder)
    try:
        os.fsencode(found)
        is_root = found.resolve() == Path("/")
    except (ValueError, OSError, RuntimeError):
        return None
    return None if is_root else found
