"""Budgets of agents across midnight, a clock that is set back, and a restart: each turn is counted once, none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config.agents import Agent
from daemon.core.budgets import AgentBudget, AgentDay
from daemon.core.session_key import SessionKey
from schema.rows import TurnUsage
from tests.support.bus_kit import AGENT, BusKit, until

DAY_S = 86_400.0
pytestmark = [pytest.mark.anyio]


async def turn(kit: BusKit, name: str) -> None:
    """Take one message from its acceptance to its settled answer."""
    await kit.send(text=name, message_id=name)
    await kit.started()
    agent = kit.agent()
    batch = agent.claim()
    assert batch is not None
    agent.answer(batch)
    kit.bus.delivery.poke(await kit.session())
    while (await kit.message(name))["status"] != "completed":
        await kit.settle()


async def test_the_day_s_end_lets_what_waited_go_on_and_a_clock_set_back_counts_on(tmp_path: Path) -> None:
    kit = BusKit(tmp_path, agents={AGENT: Agent(turns_per_day=1)})
    async with kit.running() as bus:
        await turn(kit, "m1")
        await kit.gone()
        await kit.send(text="m2", message_id="m2")
        await until(lambda: len(bus.schedule) > 0)
        assert kit.slot() is None
        assert bus.budgets.used_up() == {AGENT: "1 of 1 turns"}
        kit.advance(DAY_S)
        await kit.started()

        kit.clock.jump(-DAY_S)  # back to the day whose budget is used up
        await kit.ended()
        assert bus.budgets.used_up() == {AGENT: "1 of 1 turns"}
        await bus.supervisor.wake(await kit.session())
        assert kit.slot() is None
        kit.clock.jump(DAY_S)
        assert bus.budgets.used_up() == {}
        row = await kit.message("m2")
        assert (row["status"], row["tries"]) == ("pending", 0)


async def test_a_claim_that_is_kept_open_hides_no_turn(tmp_path: Path) -> None:
    kit = BusKit(tmp_path, agents={AGENT: Agent(turns_per_day=10)})
    async with kit.running() as bus:
        await kit.send(text="kept", message_id="kept")
        await kit.started()
        agent = kit.agent()
        assert agent.claim() is not None
        bus.delivery.poke(await kit.session())
        for name in ("m1", "m2", "m3"):
            await kit.send(text=name, message_id=name)
            batch = agent.claim()
            assert batch is not None
            bus.delivery.poke(await kit.session())
            await kit.settle()
            agent.answer(batch)
            bus.delivery.poke(await kit.session())
            while (await kit.message(name))["status"] != "completed":
                await kit.settle()
        (day,) = bus.budgets._usage.days.values()
        assert day.turns == 4, "the one that is kept open, and three that ended"


async def test_what_was_counted_outlives_the_daemon_and_another_agent_goes_on(tmp_path: Path) -> None:
    kit = BusKit(tmp_path, agents={AGENT: Agent(turns_per_day=1), "other": Agent()})
    async with kit.running():
        await turn(kit, "m1")
        await kit.gone()
    async with kit.running() as bus:
        assert bus.budgets.used_up() == {AGENT: "1 of 1 turns"}
        assert await bus.supervisor.wake(await bus.sessions.create(SessionKey("other", "s")))
        assert not await bus.supervisor.wake(await kit.session())


@pytest.mark.parametrize(
    ("budget", "used", "expected"),
    [
        (AgentBudget(), AgentDay("d", "a", 10**6, 10**9, 1e6), None),
        (AgentBudget(turns=2), AgentDay("d", "a", 1), None),
        (AgentBudget(turns=2), AgentDay("d", "a", 2), "2 of 2 turns"),
        (AgentBudget(turns=0), AgentDay("d", "a"), "0 of 0 turns"),
        (AgentBudget(tokens=100), AgentDay("d", "a", tokens=101), "101 of 100 tokens"),
        (AgentBudget(cost=0.5), AgentDay("d", "a", cost=0.49), None),
        (AgentBudget(cost=0.5), AgentDay("d", "a", cost=0.5), "0.50 of 0.50 of cost"),
    ],
)
def test_a_budget_is_exceeded_once_nothing_is_left_of_one_limit(
    budget: AgentBudget, used: AgentDay, expected: str | None
) -> None:
    assert budget.exceeded(used) == expected


def test_only_what_came_after_a_refill_counts() -> None:
    before = AgentDay("d", "a").more(3, TurnUsage(input_tokens=10, output_tokens=5, cost=1.0))
    after = before.more(1, TurnUsage(output_tokens=7))
    assert (after.since(before).turns, after.since(before).tokens, after.since(before).cost) == (1, 7, 0.0)
    assert after.since(None) == after


async def test_a_clock_that_is_a_year_ahead_for_a_moment_gives_no_budget_back(tmp_path: Path) -> None:
    """The next daemon still finds the day whose budget is used up on record."""
    kit = BusKit(tmp_path, agents={AGENT: Agent(turns_per_day=1)})
    async with kit.running() as bus:
        await turn(kit, "m1")
        await kit.gone()
        await bus.budgets.flush()
        kit.clock.jump(366 * DAY_S)
        await turn(kit, "m2")
        await kit.gone()
        await bus.budgets.flush()
        kit.clock.jump(-366 * DAY_S)
    async with kit.running() as bus:
        assert bus.budgets.used_up() == {AGENT: "1 of 1 turns"}
