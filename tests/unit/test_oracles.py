"""What judges the product does not ask it: the simulation's checks and the invariants import names and how to open a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source_trees import nodes_of, tree_of

ROOT = Path(__file__).resolve().parents[2]
ORACLES = [
    *sorted((ROOT / "tests" / "support").glob("invariants*.py")),
    *sorted((ROOT / "tests" / "simulation").glob("checks*.py")),
    ROOT / "tests" / "simulation" / "operators.py",
]
# Types, names of things, and the opening of files. `...`: everything in it, for it decides nothing.
ALLOWED = {
    "container_runner.providers.protocol": {"TurnMessage"},
    "container_runner.store": {"Store"},  # whose claims are watched
    "daemon.channels.protocol": {"Accepted", "InDoubt"},
    **{
        f"daemon.core.{name}": ... for name in ("message_verbs", "session_verbs", "schedule_verbs", "verb")
    },  # what an operator may ask for
    "daemon.core.session_key": {"SessionKey"},
    "daemon.store.data_layout": {"Layout"},
    "schema.connect": {"open_reader"},
    "schema.handles": {"Reader", "Writer"},
    "schema.errors": {"ClawbusError"},
    "schema.ids": {"session_folder"},
    "schema.layout": {"SessionFolder"},
    "schema.migrate": {"OUTBOUND_TABLES", "VERSION"},
    "schema.rows": {"AckStatus", "DeliveryState", "MessageStatus"},
}


def product_names(path: Path) -> Iterator[tuple[str, str]]:
    """Every (module, name) that a file imports from the product."""
    for node in nodes_of(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names if _is_product(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module is not None and _is_product(node.module):
            yield from ((node.module, alias.name) for alias in node.names)


def _is_product(module: str) -> bool:
    return module.partition(".")[0] in ("daemon", "container_runner", "schema")


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_an_oracle_asks_the_product_for_no_decision(path: Path) -> None:
    found = set(product_names(path))
    assert found, "it reads the product's files, so it imports something of it"
    strange = [
        f"{module}.{name}"
        for module, name in sorted(found)
        if (allowed := ALLOWED.get(module, set())) is not ... and name not in allowed
    ]
    assert strange == []
