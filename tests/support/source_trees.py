"""The syntax trees of our own files, each parsed once in a run: several tests judge all of them."""

import ast
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the file's tree. It is shared: look at it only."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
