"""Fetches the runner's locked wheels for a base image's Python with pip, and unpacks them into `site/`.

It installs, compiles and runs nothing. It uses only files whose hash is in the lock.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from daemon.core.errors import ImageError
from schema.frozen import frozen

_COMPLETE: Final = ".complete"
_TIMEOUT_S: Final = 900
_LEGACY: Final = ((17, "manylinux2014"), (12, "manylinux2010"), (5, "manylinux1"))
_MARKER: Final = re.compile(r"\s*;\s*python_(?:full_)?version\b[^\\\n]*?(?=\s*\\?$)", re.MULTILINE)
_OFFLINE_HINT: Final = (
    "Give this machine a package index, or prepare a folder where there is one"
    " (`pip download --require-hashes --only-binary=:all: --no-deps -r requirements.lock`, with the base's"
    " --python-version and --platform) and name it with --wheels DIR."
)


@frozen
class TargetPython:
    """The interpreter of a base image. `libc` is glibc or musl; `abi` e.g. cp311."""

    version: tuple[int, int]
    abi: str
    machine: str
    libc: str
    libc_version: tuple[int, int]

    @property
    def platforms(self) -> tuple[str, ...]:
        """The wheel platforms that this interpreter accepts, best first (PEP 600, PEP 656)."""
        major, minor = self.libc_version
        if self.libc == "musl":
            return tuple(f"musllinux_{major}_{low}_{self.machine}" for low in range(minor, -1, -1))
        names = [f"manylinux_{major}_{low}_{self.machine}" for low in range(minor, 4, -1)]
        names += [f"{legacy}_{self.machine}" for least, legacy in _LEGACY if minor >= least]
        return tuple(names)

    def pip_options(self) -> list[str]:
        """Return the options that make pip select wheels for this interpreter."""
        options = ["--only-binary=:all:", "--no-deps", "--require-hashes", "--implementation", "cp"]
        options += ["--python-version", f"{self.version[0]}.{self.version[1]}"]
        options += [part for abi in (self.abi, "abi3", "none") for part in ("--abi", abi)]
        return options + [part for platform in self.platforms for part in ("--platform", platform)]


def target_requirements(lock: str) -> str:
    """Return the lock without its markers about Python's version.

    pip evaluates markers for the interpreter that runs it, not for --python-version. An extra package does no harm.
    """
    return _MARKER.sub("", lock)


def fetch_wheels(lock: str, target: TargetPython, cache: Path) -> Path:
    """Return a folder with every wheel of the lock for `target`. A second call takes it from `cache`, without a network."""
    key = hashlib.sha256("\n".join((lock, *target.pip_options())).encode()).hexdigest()[:16]
    folder = cache / key
    if not (folder / _COMPLETE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        _pip(["download", "--dest", str(folder), *target.pip_options()], lock, folder)
        (folder / _COMPLETE).touch()
    return folder


def unpack_wheels(lock: str, target: TargetPython, wheels: Path, site: Path) -> None:
    """Unpack every wheel of the lock from `wheels` into `site`. Raise ImageError if one is missing or has another hash."""
    if not wheels.is_dir():
        raise ImageError(f"{wheels} is not a folder of wheels.", hint="Name an existing folder with --wheels.")
    command = ["install", "--target", str(site), "--no-index", "--find-links", str(wheels), "--no-compile"]
    _pip([*command, *target.pip_options()], lock, site.parent)


def _pip(command: Sequence[str], lock: str, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise ImageError(
            "this environment has no pip, which fetches the runner's wheels.",
            hint=f"Run `{sys.executable} -m ensurepip`, then try again.",
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(target_requirements(lock), encoding="utf-8")
    full = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *command]
    try:
        done = subprocess.run(
            [*full, "--requirement", str(requirements)], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"pip {command[0]} took over {_TIMEOUT_S} s.", hint=_OFFLINE_HINT) from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-500:]]
        raise ImageError(f"the runner's wheels are not to be had: {' '.join(said)}", hint=_OFFLINE_HINT)
