"""Warm round trip: a message accepted, claimed, answered and delivered through a real daemon and a runner that waits.

The figure that counts is the client's: from before its POST until the answer is in its hands. Nothing inside the product is
switched off or tuned; the configuration is the one that ships.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.figures import Curve, Figure, Of, Result, Target
from bench.floor import LEAST, SAME, RoundTripFloor, commits_cpu_ms
from bench.settings import Settings
from bench.spread import median, noise, percentile, spread
from bench.stage import ECHO, BenchFailed, BenchStage
from daemon.api.client import ControlClient
from schema.connect import open_reader
from schema.instants import from_text
from schema.layout import SessionFolder

SESSION: Final = "warm"
# Small blocks in turn: what the disk does to one of them it does to its neighbour.
_BLOCKS: Final = 20
_PER_BLOCK: Final = 20
_WARM_UP: Final = 20
_ANSWER_S: Final = 30.0
# Between two messages, so that each meets a bus at rest: nothing is in step with the product's own intervals.
_GAP_S: Final = (0.010, 0.030)
_CLIENT_NOTE: Final = (
    "The client's figures count: from before its POST to the answer in its hands, an HTTP call on the control socket"
    " included. Those by the rows run from the message's timestamp to the receipt's."
)
# Durable commits of one message: the message, the mailbox entry, the settled status with the receipt; and the claim, the
# answer.
DAEMON_COMMITS: Final = 3
RUNNER_COMMITS: Final = 2
_FLOOR_NOTE: Final = (
    "The floor is the same number of durable commits as the client waits for, 5, and 2 raw inotify wakes between two"
    " processes; both targets are multiples of its median. The least that could carry a question and an answer is 3 commits:"
    " that ratio is told beside it, without a target. docs/performance.md says what each commit is for."
)
_CPU_NOTE: Final = (
    "Processor time is user and system of all threads. Its floor is the same process's own durable commits alone, after"
    f" the same pauses: {DAEMON_COMMITS} for the daemon, {RUNNER_COMMITS} for the runner."
)
_P50: Final = Target(Of.RATIO, 2.0)
_P99: Final = Target(Of.RATIO, 3.5)
CPU: Final = Target(Of.RATIO, 2.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and its answer. `sent_at` is epoch milliseconds, `took` milliseconds."""

    message_id: str
    sent_at: float
    took: float


def ask(client: ControlClient, session: str, number: int) -> Asked:
    """Ask, and wait for the answer. Raises BenchFailed when none came."""
    sent_at, began = time.time() * 1000, time.perf_counter()
    message = {
        "agent": ECHO,
        "session": session,
        "content": {"text": f"question {number}"},
        "address": {"channel_type": "local", "platform_id": "bench"},
    }
    accepted: dict[str, Any] = {}
    entry = client.accept_and_wait(message, _ANSWER_S, accepted.update)
    if entry is None:
        raise BenchFailed(f"no answer to question {number} within {_ANSWER_S:g} s")
    return Asked(str(accepted["message_id"]), sent_at, (time.perf_counter() - began) * 1000)


def ask_often(client: ControlClient, session: str, count: int) -> list[Asked]:
    """`count` round trips with a random pause between them."""
    pauses = random.Random(count)  # noqa: S311 - the same pauses in every run
    found: list[Asked] = []
    for number in range(count):
        time.sleep(pauses.uniform(*_GAP_S))
        found.append(ask(client, session, number))
    return found


def by_the_rows(folder: SessionFolder) -> list[float]:
    """Milliseconds from each message's own timestamp to its answer's receipt, whole ones, as the files have them."""
    with open_reader(folder.inbound_db) as host, open_reader(folder.outbound_db) as container:
        asked = {row["id"]: from_text(row["timestamp"]) for row in host.all("SELECT id, timestamp FROM messages_in")}
        replies = {row["id"]: row["in_reply_to"] for row in container.all("SELECT id, in_reply_to FROM messages_out")}
        receipts = host.all("SELECT message_out_id, delivered_at FROM delivered WHERE status = 'delivered'")
    found: list[float] = []
    for row in receipts:
        began, ended = asked.get(replies.get(row["message_out_id"]) or ""), from_text(row["delivered_at"])
        if began is not None and ended is not None:
            found.append(float(ended - began))
    return found


def measure(settings: Settings) -> Result:
    """Blocks of the floor and of the product in turn, so that both see the same machine."""
    blocks, warm_up = settings.count(_BLOCKS, 2), settings.count(_WARM_UP, 3)
    floor_blocks: list[list[float]] = []
    least: list[float] = []
    seen: list[float] = []
    with (
        BenchStage(settings.folder) as stage,
        RoundTripFloor(_folder(settings, "floor-same"), SAME) as floor,
        RoundTripFloor(_folder(settings, "floor-least"), LEAST) as least_floor,
    ):
        stage.start()
        with stage.client() as client:
            ask_often(client, SESSION, warm_up)
            before = (stage.usage().cpu_s, stage.agents_usage().cpu_s)
            floor_cpu = _FloorCpu()
            for _ in range(blocks):
                floor_cpu.measure(settings.folder)
                floor_blocks.append(floor.measure(_PER_BLOCK, 1))
                least += least_floor.measure(_PER_BLOCK, 1)
                seen += [asked.took for asked in ask_often(client, SESSION, _PER_BLOCK)]
        used = (stage.usage().cpu_s - before[0], stage.agents_usage().cpu_s - before[1])
        stage.stop()
        rows = by_the_rows(SessionFolder(stage.data / "sessions" / ECHO / SESSION))[warm_up:]
    return _result(floor_blocks, least, seen, rows, (used, floor_cpu))


@dataclass(slots=True)
class _FloorCpu:
    """Processor milliseconds of the commits alone, for each message."""

    daemon: list[float] = field(default_factory=list[float])
    runner: list[float] = field(default_factory=list[float])

    def measure(self, folder: Path) -> None:
        """Measure a block of both."""
        self.daemon += commits_cpu_ms(folder, DAEMON_COMMITS, _PER_BLOCK)
        self.runner += commits_cpu_ms(folder, RUNNER_COMMITS, _PER_BLOCK)


def _folder(settings: Settings, name: str) -> Path:
    folder = settings.folder / name
    folder.mkdir()
    return folder


def _result(
    floor_blocks: list[list[float]],
    least: list[float],
    seen: list[float],
    rows: list[float],
    cpu: tuple[tuple[float, float], _FloorCpu],
) -> Result:
    used, alone = cpu
    floors = [value for block in floor_blocks for value in block]
    floor, own, told, bare = spread(floors), spread(seen), spread(rows), spread(least)
    half = f"{own.count} of them, half {own.quarter:.2f} .. {own.three_quarters:.2f}"
    floor_text = f"floor p99 {floor.p99:.2f}, half {floor.quarter:.2f} .. {floor.three_quarters:.2f}"
    return Result(
        figures=(
            Figure("warm round trip p50", own.p50, "ms", floor.p50, _P50, half),
            Figure("warm round trip p99", own.p99, "ms", floor.p50, _P99, floor_text),
            Figure("warm round trip p50, beside 3 commits and 2 wakes", own.p50, "ms", bare.p50),
            Figure("warm round trip p99, beside 3 commits and 2 wakes", own.p99, "ms", bare.p50),
            Figure("warm round trip p50, by the rows", told.p50, "ms", floor.p50, None, "whole milliseconds"),
            Figure("warm round trip p99, by the rows", told.p99, "ms", floor.p50),
            Figure("processor time of a message, daemon", 1000 * used[0] / own.count, "ms", median(alone.daemon), CPU,
                   f"pauses included; floor: {DAEMON_COMMITS} commits"),
            Figure("processor time of a message, runner", 1000 * used[1] / own.count, "ms", median(alone.runner), CPU,
                   f"pauses included; floor: {RUNNER_COMMITS} commits"),
        ),
        notes=(_CLIENT_NOTE, _FLOOR_NOTE, _CPU_NOTE),
        curves={
            "latency": (
                _distribution("floor", floors),
                _distribution("3 commits", least),
                _distribution("client", seen),
                _distribution("rows", rows),
            )
        },
        noisy=noise(floor_blocks),
    )  # fmt: skip


def _distribution(label: str, values: list[float]) -> Curve:
    """Latency in milliseconds against the share of messages that took no longer."""
    shares = [step / 200 for step in range(200)] + [0.998, 0.999, 1.0]
    return Curve(label, tuple((percentile(values, share), share) for share in shares))
