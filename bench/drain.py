"""Delivery drain: a pile of answers in one session's outbound.db, through intent, send and receipt, to a channel that does
nothing. Every row ends with a durable receipt; the clock stops when the last one is committed, not when it is sent.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from bench.figures import Figure, Of, Result, Target
from bench.floor import commit_times, rows_per_second
from bench.house import make_session, noop, open_house, receipts, say
from bench.settings import Settings
from bench.spread import noise, spread
from bench.stage import BenchFailed
from daemon.app import House

_ROWS: Final = 20_000
_REPEATS: Final = 5
_COMMITS: Final = 200
_BATCH: Final = 200
_PLACES: Final = 8
_LONGEST_S: Final = 300.0
_LOOK_S: Final = 0.002
_NOTE: Final = (
    "The floor is one durable commit (synchronous EXTRA) for each row. The drain is crash-safe: a row's intent is durable"
    " before its send, its receipt after it."
)


async def drain_once(house: House, name: str, rows: int, places: int) -> float:
    """Seconds to deliver `rows` answers of a session of its own. Raises BenchFailed when one has no receipt."""
    session = await make_session(house, name)
    await session.call(partial(say, session.files, rows, places))
    before = noop(house).count
    began = time.perf_counter()
    house.delivery.poke(session)
    with anyio.move_on_after(_LONGEST_S):
        while noop(house).count - before < rows or house.delivery.senders:  # noqa: ASYNC110 - the channel has no bell
            await anyio.sleep(_LOOK_S)
    seconds = time.perf_counter() - began
    found = await session.call(lambda: receipts(session.files))
    if found != rows:
        raise BenchFailed(f"{rows} answers were to be delivered and {found} have a receipt")
    return seconds


async def drain(data: Path, rows: int, repeats: int, places: int) -> list[float]:
    """Rows a second of each repetition; the first one warms up and is not told."""
    async with open_house(data) as house:
        await drain_once(house, "warm", max(rows // 10, 10), places)
        return [rows / await drain_once(house, f"drain-{number}", rows, places) for number in range(repeats)]


def measure(settings: Settings) -> Result:
    """One destination, where order allows one send at a time, and several."""
    rows, repeats = settings.count(_ROWS, 50), settings.count(_REPEATS, 2)
    folder = settings.folder / "drain"
    folder.mkdir()
    blocks = [commit_times(folder, settings.count(_COMMITS, 10))]
    one = spread(anyio.run(drain, folder / "one", rows, repeats, 1))
    blocks.append(commit_times(folder, settings.count(_COMMITS, 10)))
    many = spread(anyio.run(drain, folder / "many", rows, repeats, _PLACES))
    blocks.append(commit_times(folder, settings.count(_COMMITS, 10)))
    floor = 1000 / spread([value for block in blocks for value in block]).p50
    batched = rows_per_second(folder, rows, _BATCH)
    text = f"{repeats} x {rows:,} rows; half of them {one.quarter:,.0f} .. {one.three_quarters:,.0f}"
    return Result(
        figures=(
            Figure("delivery drain", one.p50, "rows/s", floor, Target(Of.VALUE, 8000, at_most=False), text),
            Figure("delivery drain against a commit per row", one.p50, "rows/s", floor,
                   Target(Of.RATIO, 4, at_most=False)),
            Figure(f"delivery drain, {_PLACES} destinations", many.p50, "rows/s", floor, None,
                   f"half of them {many.quarter:,.0f} .. {many.three_quarters:,.0f}"),
            Figure("delivery drain against bare batches", one.p50, "rows/s", batched, None,
                   f"the floor here: {_BATCH} rows in each durable commit, nothing else"),
        ),
        notes=(_NOTE,),
        noisy=noise(blocks),
    )  # fmt: skip
