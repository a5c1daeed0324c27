"""What agents used today of their budgets: from the configuration and central.db, with the daemon up or down."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from daemon.config.models import Config
from daemon.core.egress_usage import day_of
from daemon.core.zones import zone
from daemon.inspect.agents_now import AgentsNow
from daemon.inspect.central_reading import ask
from daemon.store.agent_usage import AgentUsage, read


def budgets_report(config: Config, now: int) -> dict[str, dict[str, Any]]:
    """Return by agent what counts towards today's budget: {day, turns, tokens, cost, budget, used_up}. `now` is epoch ms.

    `budget` says it in words, None without a limit; `used_up` is what of it is used up, None while there is some of everything.
    """
    day = day_of(now, zone(config.timezone))
    usage = ask(config.data_dir, lambda reader: read(reader, day), AgentUsage({}, {}))
    found: dict[str, dict[str, Any]] = {}
    for name, agent in config.agents.items():
        used, budget = usage.left_to_count(day, name), agent.budget
        facts = {key: value for key, value in asdict(used).items() if key != "agent"}
        found[name] = {**facts, "budget": budget.described(used) or None, "used_up": budget.exceeded(used)}
    return found


def agents_now(config: Config, now: int) -> AgentsNow:
    """Return which agents are configured, and which have used up their daily budget, from the files. `now` is epoch ms."""
    return AgentsNow(dict(agents_stopped(config, now)), frozenset(config.agents))


def agents_stopped(config: Config, now: int) -> tuple[tuple[str, str], ...]:
    """Return (agent, what of what) for each agent whose daily budget is used up."""
    if not any(agent.budget.limited for agent in config.agents.values()):
        return ()
    return tuple((name, one["used_up"]) for name, one in budgets_report(config, now).items() if one["used_up"])
