"""Reads what turns used from outbound.db. A container wrote it, so only type and bounds are checked; nothing else is trusted."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, cast

from daemon.store.messages import chunks, marks
from schema.handles import Reader
from schema.json_text import parse
from schema.rows import Ack, AckStatus, ToolCall, TurnUsage

_COUNTS: Final = ("input_tokens", "output_tokens", "cached_tokens")
_COLUMNS: Final = ", ".join((*_COUNTS, "cost", "currency"))
_NEEDED: Final = frozenset({"message_id", "incarnation", *_COUNTS, "cost", "currency"})
_MAX: Final = 10**12
_MAX_ROWS: Final = 10_000
_MAX_TOOLS: Final = 100
_MAX_TOOLS_TEXT: Final = 100_000  # characters
_MAX_NAME: Final = 100
_LONGEST_MS: Final = 7 * 86_400_000
_LATEST: Final = 253_402_300_799_999  # the last millisecond of the year 9999
_CURRENCY: Final = re.compile(r"[A-Z]{3}\Z")


def with_usage(db: Reader, acks: Mapping[str, Ack]) -> dict[str, Ack]:
    """Return the same acks; final ones carry what their turn used, if that incarnation reported it."""
    done = [message_id for message_id, ack in acks.items() if ack.status in (AckStatus.COMPLETED, AckStatus.FAILED)]
    found = dict(acks)
    if not done or not db.columns("turn_usage") >= _NEEDED:
        return found
    for chunk in chunks(done):
        sql = f"SELECT message_id, incarnation, {_with_tools(db)} FROM turn_usage WHERE message_id IN ({marks(chunk)})"
        for row in db.all(sql, chunk):
            ack = found.get(row["message_id"])
            if ack is not None and row["incarnation"] == ack.incarnation:
                found[ack.message_id] = replace(ack, usage=replace(_usage(row), tools=_tools(row["tools"])))
    return found


def usage_of(db: Reader | None, message_id: str, incarnation: str) -> TurnUsage | None:
    """Return what an incarnation reported for a turn that was stopped, or None."""
    if db is None or not db.columns("turn_usage") >= _NEEDED:
        return None
    sql = f"SELECT {_with_tools(db)} FROM turn_usage WHERE message_id = ? AND incarnation = ?"
    row = db.one(sql, (message_id, incarnation))
    return replace(_usage(row), tools=_tools(row["tools"])) if row is not None else None


def used(db: Reader) -> TurnUsage | None:
    """Return what the turns used that outbound.db still knows, the newest 10,000; None when no agent reported anything."""
    if not db.columns("turn_usage") >= _NEEDED:
        return None
    found = TurnUsage()
    for row in db.all(f"SELECT {_COLUMNS} FROM turn_usage ORDER BY rowid DESC LIMIT {_MAX_ROWS}"):
        found = _added(found, _usage(row))
    return None if found == TurnUsage() else found


def _added(first: TurnUsage, second: TurnUsage) -> TurnUsage:
    """Return the sum. A cost in another currency than the first one's is left out."""
    same = first.currency is None or second.currency in (None, first.currency)
    cost = second.cost if first.cost is None else first.cost + ((second.cost or 0.0) if same else 0.0)
    return TurnUsage(
        _sum(first.input_tokens, second.input_tokens),
        _sum(first.output_tokens, second.output_tokens),
        _sum(first.cached_tokens, second.cached_tokens),
        cost,
        first.currency or second.currency,
    )


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None and second is None else (first or 0) + (second or 0)


def _usage(row: sqlite3.Row) -> TurnUsage:
    counts = _count(row["input_tokens"]), _count(row["output_tokens"]), _count(row["cached_tokens"])
    cost, currency = row["cost"], row["currency"]
    if not isinstance(cost, int | float) or not 0 <= cost <= _MAX:
        return TurnUsage(*counts)
    if not isinstance(currency, str) or not _CURRENCY.match(currency):
        return TurnUsage(*counts)
    return TurnUsage(*counts, cost=float(cost), currency=currency)


def _with_tools(db: Reader) -> str:
    """Return the columns to read, with the tools of a file that has them."""
    tools = (
        f"CASE WHEN length(tools) <= {_MAX_TOOLS_TEXT} THEN tools END"
        if "tools" in db.columns("turn_usage")
        else "NULL"
    )
    return f"{_COLUMNS}, {tools} AS tools"


def _tools(value: object) -> tuple[ToolCall, ...]:
    """Return the calls that a row names. Drop each that is not a name, a start and an end at most a week later."""
    try:
        listed = parse(value) if isinstance(value, str) else None
    except ValueError:
        return ()
    if not isinstance(listed, list):
        return ()
    found = (_call(one) for one in cast("list[object]", listed)[:_MAX_TOOLS])
    return tuple(call for call in found if call is not None)


def _call(value: object) -> ToolCall | None:
    match value:
        case [str(name), int(start), int(end)] if 0 <= start <= end <= start + _LONGEST_MS and end <= _LATEST:
            return ToolCall(name[:_MAX_NAME], start, end)
        case _:
            return None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value <= _MAX else None
