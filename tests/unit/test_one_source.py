"""The code of the daemon, the runner and the schema lies in this repository once, and it is what these tests import."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import container_runner
import daemon
import schema

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("daemon", "container_runner", "schema")
# Made by the targets of the Makefile, or by tools: none of them is source.
_MADE: Final = frozenset({"build", "dist", "demo-data", "__pycache__", "node_modules"})
# An empty `__init__.py` or a line of re-export says nothing about where a file comes from.
_TELLING: Final = 200


def source_files(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _MADE and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith((".py", ".sql")))


def second_sources(root: Path) -> list[str]:
    """Each file that is a copy of a product's file, and each folder elsewhere that has a product package's name."""
    copies: dict[bytes, list[Path]] = defaultdict(list)
    found: set[str] = set()
    for path in source_files(root):
        inside = path.relative_to(root)
        content = path.read_bytes()
        if len(content) >= _TELLING:
            copies[hashlib.sha256(content).digest()].append(inside)
        if inside.parts[0] in ("tests", *PACKAGES):
            continue
        for depth, part in enumerate(inside.parts[:-1]):
            if part in PACKAGES:
                found.add("/".join(inside.parts[: depth + 1]))
    for paths in copies.values():
        if len(paths) > 1 and any(path.parts[0] in PACKAGES for path in paths):
            found |= {str(path) for path in paths[1:]}
    return sorted(found)


def test_the_repository_has_one_source() -> None:
    assert second_sources(ROOT) == []


@pytest.mark.parametrize("place", ["deploy/worker/container_runner/loop.py", "bench/loop_of_mine.py"])
def test_a_copy_is_seen(tmp_path: Path, place: str) -> None:
    for name in ("container_runner/loop.py", place):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("line = 1\n" * 40, encoding="utf-8")
    assert second_sources(tmp_path)


def test_what_runs_here_is_this_source() -> None:
    """Another clawbus on the import path would be tested in its place."""
    for package in (daemon, container_runner, schema):
        assert Path(package.__file__ or "").resolve().parents[1] == ROOT
