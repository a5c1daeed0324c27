"""The syntax trees of our own files, each parsed and walked once in a run: several tests judge all of them."""

import ast
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the file's tree. It is shared: look at it only."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def nodes_of(tree: ast.Module) -> tuple[ast.AST, ...]:
    """Return every node of a tree, in the order of `ast.walk`."""
    return tuple(ast.walk(tree))
