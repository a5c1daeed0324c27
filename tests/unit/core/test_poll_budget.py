"""One session's polls cost the host no more than a share of a core, and ordinary ones cost nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.core.poll_budget import BURST_S, SHARE, PollBudget
from tests.support.bus_kit import BusKit, until


def spent(cost: float, rows: int, seconds: float) -> float:
    """The processor time of polls that are begun as soon as the budget lets them, over so many seconds."""
    budget, now, total = PollBudget(), 0.0, 0.0
    while now < seconds:
        now += budget.wait_s(now)
        budget.charge(now + cost, cost, rows)
        now += cost
        total += cost
    return total


@pytest.mark.parametrize("cost", [0.05, 0.4, 1.9])
def test_expensive_polls_get_a_share_and_no_more(cost: float) -> None:
    allowed = BURST_S + 1000 * SHARE * 1.3 + 2 * cost  # what an ordinary poll costs is free
    assert spent(cost, 0, 1000) <= allowed
    assert spent(cost, 3, 1000) <= allowed * 1.5


@pytest.mark.parametrize(("cost", "rows"), [(0.003, 0), (0.01, 0), (0.2, 100), (0.4, 200)])
def test_ordinary_polls_and_drains_never_wait(cost: float, rows: int) -> None:
    budget, now = PollBudget(), 0.0
    for _ in range(10_000):
        assert budget.wait_s(now) == 0
        now += cost
        budget.charge(now, cost, rows)


def test_credit_comes_back_and_is_bounded() -> None:
    budget = PollBudget()
    budget.charge(0.0, 2.01, 0)
    assert budget.wait_s(0.0) == pytest.approx(20.0)
    assert budget.wait_s(19.0) == pytest.approx(1.0)
    assert budget.wait_s(20.5) == 0
    budget.charge(1e6, 1.01, 0)
    assert budget.wait_s(1e6) == 0
    budget.charge(1e6, 0.11, 0)
    assert budget.wait_s(1e6) == pytest.approx(2.0)


@pytest.mark.anyio
async def test_a_slow_file_and_a_bell_that_never_stops_cost_no_more_than_a_share(tmp_path: Path) -> None:
    """A table without keys: each poll reads all of it. The session is named, and goes on when its file is quick again."""
    kit = BusKit(tmp_path / "data")
    async with kit.running() as bus:
        await kit.send()
        await kit.started()
        agent = kit.agent()
        batch = agent.claim()
        assert batch is not None
        agent.answer(batch)
        session = await kit.session()
        await until(lambda: bool(kit.fake.sent))
        session.budget.charge(kit.clock.monotonic(), 3.0, 0)  # as such a file's polls do
        with capture_logs() as logs:
            bus.delivery.poke(session)
            await until(lambda: session.throttled)
        assert [one["event"] for one in logs].count("session_throttled") == 1
        assert [one["what"] for one in kit.operations.live()["troubles"]] == ["poll"]
        looked = session.cpu_s
        for _ in range(100):
            bus.delivery.poke(session)
        assert session.cpu_s == looked, "it is not looked at before its time"
        kit.advance(60)
        await until(lambda: not session.throttled)
        assert kit.operations.live()["troubles"] == []


def busy() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT sum(i) FROM n"
    ).fetchone()
    connection.close()


@pytest.mark.anyio
async def test_what_a_poll_costs_is_counted(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await kit.send()
        session = await kit.session()
        before = session.cpu_s
        async with session.lock:
            await session.call_locked(busy, charged=True)
        assert session.cpu_s - before > 0.005


@pytest.mark.anyio
async def test_what_senders_and_operators_ask_for_is_not_the_containers_doing(tmp_path: Path) -> None:
    """A burst of messages, or a monitor that reads the session, held back its answers, and doctor blamed its file."""
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await kit.send()
        session = await kit.session()
        async with session.lock:  # so that no poll or sweep of its own comes between
            before = session.cpu_s
            await session.call_locked(busy)
            assert session.cpu_s == before
