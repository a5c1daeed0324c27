"""Refuses to start when another distribution has installed a package with one of our names.

Some PyPI distributions also install a top-level `daemon` or `schema`. For each file the last one installed wins, so the
daemon would run a mixture of both.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from daemon.core.errors import ForeignPackageError

OURS: Final = frozenset({"daemon", "schema", "container_runner"})
_DISTRIBUTION: Final = "clawbus"


def check_foreign_packages() -> None:
    """Raise ForeignPackageError naming every other distribution that installed one of our packages."""
    found = sorted({(name, package) for name, package in _installed() if package in OURS})
    if found:
        listed = ", ".join(f"{name} (installs {package!r})" for name, package in found)
        names = " ".join(sorted({name for name, _ in found}))
        raise ForeignPackageError(
            f"this environment also holds {listed}.",
            hint=f"Install clawbus into a separate virtual environment, or remove them: pip uninstall {names}",
        )


def _installed() -> Iterator[tuple[str, str]]:
    """Yield (distribution, top-level name) for everything installed, except clawbus itself."""
    for distribution in metadata.distributions():
        # A broken dist-info folder (an interrupted install) has no name.
        name = str(distribution.metadata["Name"] or "")
        if not name or name.lower() == _DISTRIBUTION:
            continue
        for package in _top_level(distribution):
            yield name, package


def _top_level(distribution: metadata.Distribution) -> set[str]:
    listed = distribution.read_text("top_level.txt")
    if listed is not None:
        return set(listed.split())
    record = distribution.read_text("RECORD")
    if record is not None:  # cheaper than `files`, which makes an object for each of thousands of lines
        paths = [row[0] for row in csv.reader(record.splitlines()) if row]
    else:
        paths = [file.as_posix() for file in distribution.files or ()]
    return {path.partition("/")[0].removesuffix(".py") for path in paths if path.endswith(".py")}
