"""Refuses to start when another distribution has installed a package with one of our names.

Some PyPI distributions also install a top-level `daemon` or `schema`. For each file the last one installed wins, so the
daemon would run a mixture of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from daemon.core.errors import ForeignPackageError

OURS: Final = frozenset({"daemon", "schema", "container_runner"})
_DISTRIBUTION: Final = "clawbus"
# Matches a row of RECORD that installs one of our packages. All rows together have two megabytes: too many to parse.
_RECORDED: Final = re.compile(rf'^"?({"|".join(sorted(OURS))})(?:\.py"?,|/[^,"\n]*\.py"?,)', re.MULTILINE)


def check_foreign_packages() -> None:
    """Raise ForeignPackageError naming every other distribution that installed one of our packages."""
    found = sorted(set(_installed()))
    if found:
        listed = ", ".join(f"{name} (installs {package!r})" for name, package in found)
        names = " ".join(sorted({name for name, _ in found}))
        raise ForeignPackageError(
            f"this environment also holds {listed}.",
            hint=f"Install clawbus into a separate virtual environment, or remove them: pip uninstall {names}",
        )


def _installed() -> Iterator[tuple[str, str]]:
    """Yield (distribution, our package) for everything that installs one, except clawbus itself."""
    for distribution in metadata.distributions():
        taken = OURS & _top_level(distribution)
        # A name takes a parse of all its metadata. A broken dist-info folder (an interrupted install) has none.
        name = str(distribution.metadata["Name"] or "") if taken else ""
        if name and name.lower() != _DISTRIBUTION:
            for package in taken:
                yield name, package


def _top_level(distribution: metadata.Distribution) -> set[str]:
    listed = distribution.read_text("top_level.txt")
    if listed is not None:
        return set(listed.split())
    record = distribution.read_text("RECORD")
    if record is not None:
        return set(_RECORDED.findall(record))
    paths = [file.as_posix() for file in distribution.files or ()]
    return {path.partition("/")[0].removesuffix(".py") for path in paths if path.endswith(".py")}
