"""Whether systemd starts the daemon of a data folder: then it is started there, and not in a terminal beside it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

from daemon.core.slots import SLOTS, STATE_FILE

SERVICE_DATA: Final = Path("/var/lib/clawbus")
_TEMPLATE: Final = "clawbus@"
_STARTS: Final = re.compile(r"^ExecStart=\S*clawbus\b.*$", re.MULTILINE)
_OPTION: Final = r"--{}[ =](\S+)"
_ENVIRONMENT: Final = re.compile(r"^Environment=\"?CLAWBUS_DATA_DIR=([^\s\"]+)", re.MULTILINE)
UNIT_FOLDERS: Final = tuple(
    Path(name)
    for name in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    )
)


def unit_of(data_dir: Path, *, root: Path = Path("/")) -> str | None:
    """Return the unit whose daemon works on this folder, without `.service`; None without systemd or such a unit.

    Where slots are used it is the recorded slot's: a start of `clawbus.service` would end both slots (Conflicts=).
    """

    def under(path: Path) -> Path:
        return root / path.relative_to("/")

    try:
        if not under(Path("/run/systemd/system")).is_dir():
            return None
        slot = serving_slot(under(data_dir.absolute()))
        template = next((text for one in UNIT_FOLDERS if (text := _read(under(one) / f"{_TEMPLATE}.service"))), None)
        if slot is not None and template is not None and _works_on("clawbus", template, under, data_dir.absolute()):
            return f"{_TEMPLATE}{slot}"
        # A user's private data folder may be on a machine that has a service too.
        return next((name for name, text in _units(under) if _works_on(name, text, under, data_dir.absolute())), None)
    except OSError:
        return None


def serving_slot(data_dir: Path) -> str | None:
    """Return the slot that serves a folder on record; None where no slots are used, or who asks may not read that."""
    try:
        found: object = json.loads((data_dir / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    slot = cast("dict[str, object]", found).get("serving") if isinstance(found, dict) else None
    return slot if isinstance(slot, str) and slot in SLOTS else None


def _units(under: Callable[[Path], Path]) -> Iterator[tuple[str, str]]:
    """Return each unit that starts a clawbus daemon, by systemd's precedence of folders. A template has no folder."""
    seen: set[str] = set()
    for folder in UNIT_FOLDERS:
        for path in sorted(under(folder).glob("*.service")):
            name = path.name.removesuffix(".service")
            text = _read(path) if name not in seen and not name.endswith("@") else None
            seen.add(name)
            if text is not None and _STARTS.search(text) is not None:
                yield name, text


def _works_on(name: str, unit: str, under: Callable[[Path], Path], data_dir: Path) -> bool:
    return (name == "clawbus" and data_dir == SERVICE_DATA) or _data_dir(unit, under) == data_dir


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _data_dir(unit: str, under: Callable[[Path], Path]) -> Path | None:
    """Return the data folder that the unit names, itself or in its configuration; None when that cannot be read."""
    started = _STARTS.search(unit)
    line = started.group() if started is not None else ""
    named = re.search(_OPTION.format("data"), line) or _ENVIRONMENT.search(unit)
    if named is not None:
        return Path(named.group(1))
    config = re.search(_OPTION.format("config"), line)
    text = _read(under(Path(config.group(1)))) if config is not None and config.group(1).startswith("/") else None
    try:
        found = tomllib.loads(text).get("data_dir") if text is not None else None
    except tomllib.TOMLDecodeError:
        return None
    return Path(found) if isinstance(found, str) else None
