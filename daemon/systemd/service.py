"""Whether systemd starts the daemon of a data folder: then it is started there, and not in a terminal beside it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

SERVICE_DATA: Final = Path("/var/lib/clawbus")
_CONFIG: Final = re.compile(r"^ExecStart=.*--config[ =](\S+)", re.MULTILINE)
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


def is_service(data_dir: Path, *, root: Path = Path("/")) -> bool:
    """Whether systemd runs here, has a unit clawbus.service, and the folder is the service's own."""

    def under(path: Path) -> Path:
        return root / path.relative_to("/")

    try:
        if not under(Path("/run/systemd/system")).is_dir():
            return False
        units = [text for folder in UNIT_FOLDERS if (text := _read(under(folder / "clawbus.service"))) is not None]
        # Somebody's own folder may lie on a machine that has a service, too.
        return bool(units) and (
            data_dir.absolute() == SERVICE_DATA or _data_dir(units[0], under) == data_dir.absolute()
        )
    except OSError:
        return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _data_dir(unit: str, under: Callable[[Path], Path]) -> Path | None:
    """Return the data folder that the unit's configuration names, or None when that cannot be read."""
    found = _CONFIG.search(unit)
    text = _read(under(Path(found.group(1)))) if found is not None and found.group(1).startswith("/") else None
    try:
        named = tomllib.loads(text).get("data_dir") if text is not None else None
    except tomllib.TOMLDecodeError:
        return None
    return Path(named) if isinstance(named, str) else None
