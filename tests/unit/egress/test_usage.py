"""Tokens in answers of every shape, and what budgets make of them."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import anyio
import pytest

from daemon.core.egress_usage import Budget, Usage, UsageRow, day_of, days_before, seconds_left
from daemon.egress.ledger import Ledger
from daemon.egress.refusals import BudgetExceededError
from daemon.egress.usage import Meter, is_model_call
from daemon.engine.awake import Awake
from daemon.store.registry import Registry
from schema.errors import FileBusyError
from tests.support.clock import MovedClock

START = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}
ANTHROPIC = (
    f"event: message_start\ndata: {json.dumps({'type': 'message_start', 'message': {'usage': START}})}\n\n",
    'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"\\"usage\\": {}"}}\n\n',
    'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":42}}\n\n',
)
CHAT = (
    'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n',
    'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9,"total_tokens":16}}\n\ndata: [DONE]\n\n',
)
RESPONSES = ('data: {"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":4}}}\n\n',)
GEMINI = ('data: {"usageMetadata":{"promptTokenCount":2,"candidatesTokenCount":3,"thoughtsTokenCount":4}}\n\n',)


@pytest.mark.parametrize(
    ("events", "tokens_in", "tokens_out"), [(ANTHROPIC, 15, 42), (CHAT, 7, 9), (RESPONSES, 3, 4), (GEMINI, 2, 7)]
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_streams(events: Sequence[str], tokens_in: int, tokens_out: int, size: int) -> None:
    meter = Meter(stream=True)
    data = "".join(events).encode()
    for start in range(0, len(data), size):
        meter.feed(data[start : start + size])
    assert meter.result(request_bytes=400, whole=True) == Usage(tokens_in, tokens_out)


@pytest.mark.parametrize(
    "content",
    [
        {"content": [], "usage": {"input_tokens": 1, "output_tokens": 2}},
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2}, "service_tier": "default"},
        {"usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2}},
        [{"candidates": []}, {"usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2}}],
        # Longer than what is kept, and with a usage of the agent's own in the text.
        {"content": "x" * 1_000_000 + '"usage": {"input_tokens": 9}', "usage": {"input_tokens": 1, "output_tokens": 2}},
    ],
)
def test_json(content: object) -> None:
    meter = Meter(stream=False)
    data = json.dumps(content).encode()
    for start in range(0, len(data), 65536):
        meter.feed(data[start : start + 65536])
    assert meter.result(request_bytes=400, whole=True) == Usage(1, 2)


@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", '{"usage": 3}', '{"usage": {"input_tokens": -5, "output_tokens": true}}']
)
def test_what_says_nothing_usable_never_raises(text: str) -> None:
    for stream in (True, False):
        meter = Meter(stream=stream)
        meter.feed(text.encode())
        assert meter.result(request_bytes=400, whole=True).tokens_in in {0, 100}


def test_what_is_not_said_is_estimated() -> None:
    hung_up = Meter(stream=True)
    for piece in ANTHROPIC[:1] + ANTHROPIC[1:2] * 30:
        hung_up.feed(piece.encode())
    assert hung_up.result(request_bytes=400, whole=False) == Usage(15, 31, estimated=True)
    silent = Meter(stream=False)
    silent.feed(b'{"choices": "' + b"x" * 387 + b'"}')
    assert silent.result(request_bytes=40, whole=True) == Usage(10, 100, estimated=True)
    assert Meter(stream=False).result(request_bytes=40, whole=False) == Usage(10, 0, estimated=True)


def test_which_requests_cost_tokens() -> None:
    paths = ("/v1/messages", "/v1/chat/completions", "/v1/responses", "/v1beta/models/g:streamGenerateContent")
    assert all(is_model_call("POST", path) for path in paths)
    assert not is_model_call("POST", "/v1/messages/count_tokens")
    assert not is_model_call("GET", "/v1/messages")


def test_days_follow_the_time_zone() -> None:
    vienna = ZoneInfo("Europe/Vienna")
    before_midnight = 1_795_820_340_000  # 2026-11-27T22:59:00Z, 23:59 in Vienna
    assert (day_of(before_midnight, UTC), day_of(before_midnight, vienna)) == ("2026-11-27", "2026-11-27")
    assert seconds_left(before_midnight, vienna) == 61
    assert (day_of(before_midnight + 60_000, UTC), day_of(before_midnight + 60_000, vienna)) == (
        "2026-11-27",
        "2026-11-28",
    )
    assert days_before("2026-03-01", 1) == "2026-02-28"


class Files:
    """central.db, which may be locked."""

    def __init__(self, path: Path) -> None:
        self.registry = Registry(path)
        self.locked = False
        self.written: list[Sequence[UsageRow]] = []

    async def load(self, first_day: str) -> Sequence[UsageRow]:
        return self.registry.egress_days(first_day)

    async def write(self, rows: Sequence[UsageRow], before: str) -> None:
        if self.locked:
            raise FileBusyError("central.db is locked.")
        self.registry.write_egress(rows, before)
        self.registry.write_egress(rows, before)  # a commit that was reported as failed is repeated
        self.written.append(rows)


async def with_ledger(files: Files, clock: MovedClock, use: Callable[[Ledger], None]) -> None:
    """One life of a daemon."""
    ledger = Ledger({"helper": Budget(3, 100), "*": Budget(tokens=50)}, UTC, clock, files)
    async with anyio.create_task_group() as tasks:
        await tasks.start(ledger.run)
        use(ledger)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_budgets_and_counts_survive_restarts_and_end_with_the_day(tmp_path: Path) -> None:
    files, clock = Files(tmp_path / "central.db"), MovedClock()

    def two(ledger: Ledger) -> None:
        for _ in range(2):
            ledger.admit("helper", "model")
        ledger.ended("helper", "model", Usage(5, 6), 100, 200, whole=True)
        ledger.ended("helper", "model", Usage(1, 1, estimated=True), 1, 2, whole=False)
        ledger.refused("helper", "")

    def third(ledger: Ledger) -> None:
        ledger.admit("helper", "other")
        with pytest.raises(BudgetExceededError, match="3 of 3 requests") as refused:
            ledger.admit("helper", "model")
        assert 0 < refused.value.retry_after_s <= 86_401
        ledger.admit("somebody", "model")
        ledger.ended("somebody", "model", Usage(40, 10), 0, 0, whole=True)
        with pytest.raises(BudgetExceededError, match="50 of 50 tokens"):
            ledger.admit("somebody", "model")

    await with_ledger(files, clock, two)
    await with_ledger(files, clock, third)
    day = day_of(clock.now_ms(), UTC)
    assert files.registry.egress_days(day)[1] == UsageRow(day, "helper", "model", 2, 0, 1, 6, 7, 1, 101, 202)
    clock.advance(86_400)
    await with_ledger(files, clock, lambda ledger: ledger.admit("helper", "model"))
    assert len(files.registry.egress_days(day)) == 5
    clock.advance(93 * 86_400)
    await with_ledger(files, clock, lambda ledger: ledger.admit("helper", "model"))
    assert len(files.registry.egress_days(day)) == 1  # what is older than three months is gone


@pytest.mark.anyio
async def test_a_registry_that_cannot_be_written_delays_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, clock = Files(tmp_path / "central.db"), MovedClock()
    monkeypatch.setattr("daemon.egress.ledger._WRITE_S", 0.01)
    files.locked = True
    ledger = Ledger({}, UTC, clock, files)
    async with anyio.create_task_group() as tasks:
        await tasks.start(ledger.run)
        ledger.admit("helper", "model")
        await anyio.sleep(0.05)
        files.locked = False
        with anyio.fail_after(60):
            while not files.written:  # noqa: ASYNC110 - it is seen from outside only
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert [row.requests for row in files.written[0]] == [1]


@pytest.mark.anyio
async def test_a_clock_that_is_ahead_for_a_moment_forgets_nothing_of_the_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, clock = Files(tmp_path / "central.db"), MovedClock()
    monkeypatch.setattr("daemon.egress.ledger._WRITE_S", 0.01)
    ledger = Ledger({"helper": Budget(requests=3)}, UTC, clock, files, Awake(clock).doubts)
    day = day_of(clock.now_ms(), UTC)

    async def written(of: str) -> None:
        with anyio.fail_after(60):
            while not any(row.day == of for rows in files.written for row in rows):  # noqa: ASYNC110 - only seen from outside
                await anyio.sleep(0.005)

    async with anyio.create_task_group() as tasks:
        await tasks.start(ledger.run)
        for _ in range(3):
            ledger.admit("helper", "model")
        await written(day)
        clock.jump(10 * 365 * 86_400)
        ledger.admit("helper", "model")
        await written(day_of(clock.now_ms(), UTC))
        clock.jump(-10 * 365 * 86_400)
        with pytest.raises(BudgetExceededError):
            ledger.admit("helper", "model")
        tasks.cancel_scope.cancel()
    assert [row.requests for row in files.registry.egress_days(day) if row.day == day] == [3], "nor on the disk"
