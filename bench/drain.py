"""Delivery drain: a pile of answers in one session's outbound.db, through intent, send and receipt, to a channel that does
nothing. Every row ends with a durable receipt; the clock stops when the last one is committed, not when it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from bench.bus import make_session, noop, open_house, receipts, say
from bench.figures import Curve, Figure, Of, Result, Target
from bench.floor import commit_times, row_cpu_us, rows_per_second
from bench.settings import Settings
from bench.spread import median, noise, spread
from bench.stage import BenchFailed
from daemon.app.bus import Bus

_ROWS: Final = 10_000
_REPEATS: Final = 5
_COMMITS: Final = 200
_BATCH: Final = 200
_COMMITS_PER_BATCH: Final = 2  # intents and receipts
_PLACES: Final = 8
_PILES: Final = (100, 1_000, 10_000, 40_000)  # the curve: does a row cost more in a larger pile?
_LONGEST_S: Final = 300.0
_LOOK_S: Final = 0.002
_NOTE: Final = (
    "The floor is one durable commit (synchronous EXTRA) for each row. The drain is crash-safe: a row's intent is durable"
    " before its send, its receipt after it."
)


@dataclass(frozen=True, slots=True)
class Drained:
    """Rows a second by the clock, and the processor's microseconds for each."""

    rate: float
    cpu_us: float


async def drain_once(bus: Bus, name: str, rows: int, places: int) -> Drained:
    """Deliver `rows` answers of a session of its own. Raises BenchFailed when one has no receipt."""
    session = await make_session(bus, name)
    await session.call(partial(say, session.files, rows, places))
    before = noop(bus).count
    began, cpu_began = time.perf_counter(), time.process_time()
    bus.delivery.poke(session)
    with anyio.move_on_after(_LONGEST_S):
        await noop(bus).until(before + rows)
        while bus.delivery.senders:  # noqa: ASYNC110 - the last receipts; nobody tells of them
            await anyio.sleep(_LOOK_S)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    found = await session.call(lambda: receipts(session.files))
    if found != rows:
        raise BenchFailed(f"{rows} answers were to be delivered and {found} have a receipt")
    return Drained(rows / seconds, cpu_s / rows * 1_000_000)


async def drain(data: Path, rows: int, repeats: int, places: int) -> list[Drained]:
    """Each repetition; the first one warms up and is not told."""
    async with open_house(data) as bus:
        await drain_once(bus, "warm", max(rows // 10, 10), places)
        return [await drain_once(bus, f"drain-{number}", rows, places) for number in range(repeats)]


async def drain_piles(data: Path, piles: Sequence[int]) -> Curve:
    """Rows a second against the pile's size, each in a session of its own."""
    async with open_house(data) as bus:
        await drain_once(bus, "warm", piles[0], 1)
        points = [(float(rows), (await drain_once(bus, f"pile-{rows}", rows, 1)).rate) for rows in dict.fromkeys(piles)]
    return Curve("one destination", tuple(points))


def measure(settings: Settings) -> Result:
    """One destination, where order allows one send at a time, and several; then piles of several sizes."""
    rows, repeats = settings.count(_ROWS, 50), settings.count(_REPEATS, 2)
    folder = settings.folder / "drain"
    folder.mkdir()
    blocks = [commit_times(folder, settings.count(_COMMITS, 10))]
    drained = anyio.run(drain, folder / "one", rows, repeats, 1)
    one, cpu_us = spread([each.rate for each in drained]), median([each.cpu_us for each in drained])
    blocks.append(commit_times(folder, settings.count(_COMMITS, 10)))
    to_many = anyio.run(drain, folder / "many", rows, repeats, _PLACES)
    many, many_cpu_us = spread([each.rate for each in to_many]), median([each.cpu_us for each in to_many])
    blocks.append(commit_times(folder, settings.count(_COMMITS, 10)))
    floor = 1000 / spread([value for block in blocks for value in block]).p50
    batched = rows_per_second(folder, rows, _BATCH)
    floor_cpu_us = row_cpu_us(folder, rows, _BATCH, _COMMITS_PER_BATCH)
    curve = anyio.run(
        drain_piles, folder / "piles", [max(20, round(pile * min(1.0, settings.scale))) for pile in _PILES]
    )
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
            Figure("delivery drain, processor time of a row", cpu_us, "us", floor_cpu_us, Target(Of.VALUE, 70),
                   f"alone it would allow {1_000_000 / cpu_us:,.0f} rows/s"),
            Figure(f"delivery drain, processor time of a row, {_PLACES} destinations", many_cpu_us, "us", floor_cpu_us,
                   Target(Of.VALUE, 90), f"floor: the row in {_COMMITS_PER_BATCH} bare commits of {_BATCH}"),
        ),
        notes=(_NOTE,),
        curves={"messages": (curve,)},
        noisy=noise(blocks),
    )  # fmt: skip
