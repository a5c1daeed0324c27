"""Finds the configuration: which file, its text, and which CLAWBUS_ variables are not keys.

Names and folders may belong to others: a file in a folder that we may not read, variables that Kubernetes or Docker
set for a service that happens to be called like us.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from daemon.core.errors import ConfigError, ConfigUnreadableError
from schema.os_faults import host_error, passes

CONFIG_NAME: Final = "clawbus.toml"
PREFIX: Final = "CLAWBUS_"  # the prefix of every environment variable that sets a key
# Variables of ours that are not keys: the file's place, what runners and agents' programs get, what tests and checks use.
NO_KEYS: Final = (
    "CONFIG", "OUTPUT", "RUNNER", "INCARNATION", "IN", "OUT", "AGENT", "AGENT_NAME", "SESSION_NAME", "CRASH_POINTS",
    "DOCKERD_LOG", "DEBIAN_MIRROR", "GATE",
)  # fmt: skip
NO_KEYS_BEGIN: Final = ("TEST_", "REQUIRE_")
SYSTEM_FOLDER: Final = Path("/etc/clawbus")
_AT_END: Final = " (at end of document)"
_TRIED: Final = 500  # lines from the end, each of which may begin what is not closed
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# What Kubernetes sets in every pod for a Service named clawbus or clawbus-SOMETHING, and Docker for `--link`.
_SERVICE: Final = re.compile(r"CLAWBUS_(\w+_)?SERVICE_(HOST|PORT(_\w+)?)\Z")
_PORT: Final = re.compile(r"CLAWBUS_(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?\Z")
_PORT_ALONE: Final = re.compile(r"CLAWBUS_(\w+_)?PORT\Z")
_URL: Final = re.compile(r"(tcp|udp|sctp)://")
_LINK: Final = re.compile(r"CLAWBUS_(NAME\Z|ENV_\w)")


def find_config(explicit: Path | None) -> Path | None:
    """Return the first file of `--config`, $CLAWBUS_CONFIG, ./clawbus.toml and /etc/clawbus/clawbus.toml.

    One in the current folder that this user may not read belongs to somebody else: the next is taken. Raises
    ConfigError where no other is left.
    """
    if explicit is not None:
        return explicit
    named = os.environ.get("CLAWBUS_CONFIG")
    if named:
        return Path(named)
    refused: list[Path] = []
    for candidate in (_here(), SYSTEM_FOLDER / CONFIG_NAME):
        if candidate is not None:
            usable = _usable(candidate)
            if usable:
                return candidate
            # In a folder that may not be entered there need not be one; the system's folder is ours.
            if usable is None and (candidate.parent == SYSTEM_FOLDER or _may_enter(candidate.parent)):
                refused.append(candidate)
    if refused:
        raise ConfigError(
            f"{refused[0]} is not readable for this user, and no other configuration was found.",
            hint="Run this as the daemon's user (`sudo -u clawbus clawbus ...`), or name a file with --config.",
        )
    return None


def _here() -> Path | None:
    try:
        return Path.cwd() / CONFIG_NAME
    except OSError:  # the current folder was deleted, or this user may not read it
        return None


def _usable(path: Path) -> bool | None:
    """Return True for a readable file, False if there is none, None if there may be one that is not readable."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
    except PermissionError:
        return None
    except (OSError, ValueError):
        return False
    return True if os.access(path, os.R_OK) else None


def _may_enter(folder: Path) -> bool:
    return os.access(folder, os.X_OK)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the file's tables, without a byte order mark. Raise ConfigError that says what the file is instead."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist.", hint="Run `clawbus init`, or name it with --config.") from error
    except PermissionError as error:
        raise ConfigError(
            f"{path} may not be read by this user.",
            hint="Run this as the daemon's user (`sudo -u clawbus clawbus ...`), or name another file with --config.",
        ) from error
    except (OSError, ValueError) as error:
        if passes(error):
            raise ConfigUnreadableError(str(host_error(cast("OSError", error), f"{path} cannot be read"))) from error
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path} cannot be read: {why}.", hint="Name a readable file with --config.") from error
    text = _decoded(path, data)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else _placed(str(error), text)
        raise ConfigError(f"{path} is not TOML: {why}.", hint="Correct that line.") from error


def _placed(why: str, text: str) -> str:
    """Return the parser's reason with the line of what is not closed, which it only finds at the end of the file."""
    if not why.endswith(_AT_END):
        return why
    lines = text.splitlines(keepends=True)
    begin = next((end for end in range(len(lines) - 1, -1, -1)[:_TRIED] if _is_toml("".join(lines[:end]))), None)
    if begin is None:
        return f"{why.removesuffix(_AT_END)} (at line {len(lines)}, the last)"
    words = (number for number, line in enumerate(lines[begin:], begin + 1) if line.split("#")[0].strip())
    return f"{why.removesuffix(_AT_END)} (at line {next(words, len(lines))}, to the end of the file)"


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return False
    return True


def _decoded(path: Path, data: bytes) -> str:
    if data.startswith(_UTF16) or b"\0" in data[:64]:
        raise ConfigError(
            f"{path} is UTF-16 text, not UTF-8.",
            hint=f"Save it as UTF-8, or convert it: `iconv -f UTF-16 -t UTF-8 {path.name}`.",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8: line {line} has the byte 0x{data[error.start]:02x}.",
            hint=f"Save it as UTF-8. If it is Latin-1: `iconv -f LATIN1 -t UTF-8 {path.name}`.",
        ) from error


def is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes (service links) or Docker (`--link`) set this variable: then it is never a key of ours."""
    name = name.upper()
    if _SERVICE.match(name) or _PORT.match(name) or _LINK.match(name):
        return True
    return bool(_PORT_ALONE.match(name)) and bool(_URL.match(value))


def service_links(environ: Mapping[str, str]) -> list[str]:
    """Return the names of service link variables, sorted."""
    return sorted(name for name, value in environ.items() if is_service_link(name, value))
