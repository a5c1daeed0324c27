"""What a container wrote about usage: only what can be true counts."""

import json
from pathlib import Path

import pytest

from daemon.store.turn_usage import usage_of, used, with_usage
from schema.connect import open_owner
from schema.handles import Reader
from schema.migrate import Role
from schema.outbound_file import open_outbound_reader
from schema.plain_file import ReadLimits
from schema.rows import Ack, AckStatus, ToolCall, TurnUsage

COLUMNS = "message_id, incarnation, at, input_tokens, output_tokens, cached_tokens, cost, currency"


def hostile(folder: Path) -> Reader:
    """Open outbound.db as the host does."""
    reader = open_outbound_reader(folder, ReadLimits())
    assert reader is not None
    return reader


@pytest.mark.parametrize(
    ("row", "usage"),
    [
        ((1, 2, 3, 0.5, "USD"), TurnUsage(1, 2, 3, 0.5, "USD")),
        ((None, None, None, None, None), TurnUsage()),
        (("many", -1, 10**15, 0.5, "USD"), TurnUsage(None, None, None, 0.5, "USD")),
        ((1, None, None, float("inf"), "USD"), TurnUsage(1)),
        ((1, None, None, 0.5, "\x1b[31"), TurnUsage(1)),
        ((1, None, None, b"x", "USD"), TurnUsage(1)),
    ],
)
def test_a_row_is_read_within_its_bounds(tmp_path: Path, row: tuple[object, ...], usage: TurnUsage) -> None:
    path = tmp_path / "outbound.db"
    with open_owner(path, Role.OUTBOUND) as db, db.transaction():
        db.execute(f"INSERT INTO turn_usage({COLUMNS}) VALUES ('m1', 'I1', 'x', ?, ?, ?, ?, ?)", row)
        db.execute(f"INSERT INTO turn_usage({COLUMNS}) VALUES ('m2', 'I0', 'x', 1, 1, 1, 1, 'EUR')")
    acks = {name: Ack(name, AckStatus.COMPLETED, None, "I1") for name in ("m1", "m2")}
    with hostile(tmp_path) as db:
        found = with_usage(db, acks)
        assert (found["m1"].usage, found["m2"].usage) == (usage, None)
        assert used(db) is not None


def test_a_file_without_the_table_knows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "outbound.db"
    with open_owner(path, Role.OUTBOUND) as db, db.transaction():
        db.execute("DROP TABLE turn_usage")
    acks = {"m1": Ack("m1", AckStatus.COMPLETED, None, "I1")}
    with hostile(tmp_path) as db:
        assert with_usage(db, acks) == acks
        assert used(db) is None


GOOD = ["search", 1_000, 2_000]


@pytest.mark.parametrize(
    ("written", "calls"),
    [
        (json.dumps([GOOD, ["read", 3_000, 3_000]]), (ToolCall("search", 1_000, 2_000), ToolCall("read", 3_000, 3_000))),
        (json.dumps([["x" * 5_000, 1, 2]]), (ToolCall("x" * 100, 1, 2),)),
        (json.dumps([["ends first", 2, 1], ["a month", 0, 31 * 86_400_000], ["late", 10**18, 10**18], GOOD, [1, 1, 1], "x"]),
         (ToolCall("search", 1_000, 2_000),)),
        (json.dumps([GOOD] * 500), (ToolCall("search", 1_000, 2_000),) * 100),
        (json.dumps([["y" * 200_000, 1, 2]]), ()),
        ("[" * 5_000, ()),
        ('{"search": 1}', ()),
        (b"\xff", ()),
        (7, ()),
        (None, ()),
    ],
)  # fmt: skip
def test_tools_are_read_within_their_bounds(tmp_path: Path, written: object, calls: tuple[ToolCall, ...]) -> None:
    path = tmp_path / "outbound.db"
    with open_owner(path, Role.OUTBOUND) as db, db.transaction():
        db.execute("INSERT INTO turn_usage(message_id, incarnation, at, tools) VALUES ('m1', 'I1', 'x', ?)", (written,))
    with hostile(tmp_path) as db:
        found = with_usage(db, {"m1": Ack("m1", AckStatus.COMPLETED, None, "I1")})["m1"].usage
        assert found == TurnUsage(tools=calls) == usage_of(db, "m1", "I1")


def test_a_file_from_before_the_tools_still_tells_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "outbound.db"
    with open_owner(path, Role.OUTBOUND) as db, db.transaction():
        db.execute("ALTER TABLE turn_usage DROP COLUMN tools")
        db.execute("INSERT INTO turn_usage(message_id, incarnation, at, input_tokens) VALUES ('m1', 'I1', 'x', 5)")
    with hostile(tmp_path) as db:
        assert with_usage(db, {"m1": Ack("m1", AckStatus.FAILED, None, "I1")})["m1"].usage == TurnUsage(5)
        assert usage_of(db, "m1", "I1") == TurnUsage(5)
