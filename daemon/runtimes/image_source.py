"""Reads the installed source, and computes the digest that an agent image must carry to be run by this daemon.

Never imports the runner: it finds its folder and reads its files.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from daemon.core.errors import ImageError

PACKAGES: Final = ("container_runner", "schema")

_SUFFIXES: Final = frozenset({".py", ".sql"})
_NAMES: Final = frozenset({"Dockerfile", "requirements.lock"})


def source_digest(site: Path | None = None) -> str:
    """Return the sha256 of the runner's and the schema's source, which the image's label must match. Reads about 30 files.

    `site`: of another environment's site-packages; None: of the installed packages that this process imports.
    """
    digest = hashlib.sha256()
    for name, path in source_files(site):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def source_files(site: Path | None = None) -> list[tuple[str, Path]]:
    """Return the sorted (path in the context's app/, file) of all that goes into the image and into the digest."""
    folders = {package: site / package if site is not None else package_folder(package) for package in PACKAGES}
    return sorted((f"{package}/{name}", path) for package, folder in folders.items() for name, path in _files(folder))


def package_folder(package: str) -> Path:
    """Return the folder in which the package is installed. Raise ImageError if it is not installed."""
    found = importlib.util.find_spec(package)  # for a top-level name, this finds the package without importing it
    if found is None or not found.submodule_search_locations:
        raise ImageError(
            f"the package {package} is not installed.", hint="Install clawbus into a separate virtual environment."
        )
    return Path(found.submodule_search_locations[0])


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        wanted = path.suffix in _SUFFIXES or path.name in _NAMES
        if wanted and "__pycache__" not in name.parts and path.is_file():
            yield name.as_posix(), path
