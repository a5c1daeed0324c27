"""`clawbus agent list|show|refill`: the configured agents, their sessions, what is open of each, and their budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.operator import ReasonOption
from daemon.core.clock import SystemClock
from daemon.core.command_words import two_words
from daemon.core.printable import counted

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="The agents of the configuration: list them, show one, or refill a budget.\n\n\b\nExample:\n  clawbus agent list",
        rich_markup_mode=None,
    )
    add(group, "list", list_, path="agent")
    add(group, "show", show, path="agent")
    add(group, "refill", refill, path="agent")
    add_group(app, group, "agent")


def list_(invocation: Invocation) -> Outcome:
    """List the agents that are configured or have sessions: provider, sessions by state, and what is open.

    Use it to see which agents there are, and which of them needs you. It reads the files, whether the daemon runs or not.

    \b
    Example:
      clawbus agent list
    """
    found = _report(invocation)
    needing = [one["agent"] for one in found if one["attention"]]
    steps = tuple(NextAction(f"clawbus agent show {name}", "why it needs attention") for name in needing[:1])
    return Outcome({"source": "files", "agents": found}, lambda console: _show_list(console, found), steps)


def show(
    invocation: Invocation, agent: Annotated[str, typer.Argument(metavar="AGENT", help="An agent's name.")]
) -> Outcome:
    """Show one agent: how it is configured, its sessions by state, who works on what, and what needs attention.

    Use it to see what an agent may do and who works for it. Variables are named and not shown: they may be secrets. It reads the files, whether the daemon runs or not.

    \b
    Example:
      clawbus agent show echo
    """
    from daemon.cli.at_work import with_work  # noqa: PLC0415
    from daemon.cli.operator import known_agent  # noqa: PLC0415
    from daemon.inspect.session_report import sessions_report  # noqa: PLC0415

    known_agent(invocation, agent)
    one = next(found for found in _report(invocation) if found["agent"] == agent)
    working = [
        report
        for report in sessions_report(invocation.place.data_dir, SystemClock())
        if report["agent"] == agent and report["state"] == "working"
    ]
    result = {"source": "files", **one, "working": with_work(invocation, working)}
    steps = (NextAction(f"clawbus session list --agent {agent}", "its sessions"),)
    if one["attention"]:
        first = one["attention"][0]["session"]
        steps = (NextAction(f"clawbus session show {two_words(agent, first)}", "what needs attention"), *steps)
    if one["settings"] is not None and one["settings"]["image"] is not None:
        steps += (NextAction("clawbus image show", "whether its image can be used"),)
    return Outcome(result, lambda console: _show_one(console, result), steps)


def refill(
    invocation: Invocation,
    agents: Annotated[list[str], typer.Argument(metavar="AGENT...", help="The agents' names.")],
    reason: ReasonOption = None,
) -> Outcome:
    """Let an agent's daily budget begin again: its waiting messages are worked on.

    Use it when an agent has used up its turns, tokens or cost of the day, and is to go on before midnight.

    \b
    Example:
      clawbus agent refill helper --reason 'release day'
    """
    from daemon.cli.executor import execute  # noqa: PLC0415
    from daemon.cli.operator import user  # noqa: PLC0415
    from daemon.core.agent_verbs import RefillBudget  # noqa: PLC0415

    verbs = [RefillBudget(by=user(), reason=reason, agent=agent) for agent in agents]
    done = [execute(invocation, verb) for verb in verbs]

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        for one in done:
            used = f"{one['turns']} turns, {one['tokens']} tokens, {one['cost']:.2f} of cost"
            say(console, f"{one['name']}: the budget of {one['day']} begins again ({used} so far)")

    return Outcome({"refilled": done}, people)


def _report(invocation: Invocation) -> list[dict[str, Any]]:
    from daemon.inspect.overview import agents_report  # noqa: PLC0415

    return agents_report(invocation.config, SystemClock())


def _show_list(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    from daemon.cli.present import table  # noqa: PLC0415

    rows = [
        (
            one["agent"],
            one["settings"]["provider"] if one["configured"] else "no table",
            _by_state(one["sessions"]),
            one["pending"],
            one["undelivered"],
            one["dead_letters"],
            _attention(one),
        )
        for one in found
    ]
    columns = ("agent", "provider", "sessions", "queue", "answers", "dead", "needs attention")
    console.print(table(f"{counted(len(rows), 'agent')}", columns, rows))


def _show_one(console: Console, one: Mapping[str, Any]) -> None:
    from daemon.cli.doing import doing  # noqa: PLC0415
    from daemon.cli.present import duration, pairs, table  # noqa: PLC0415

    facts: dict[str, object] = {"agent": one["agent"], "sessions": _by_state(one["sessions"])}
    settings: Mapping[str, Any] | None = one["settings"]
    if settings is None:
        facts["table"] = f"none: the configuration has no [agents.{one['agent']}] (any more)"
    else:
        facts |= {
            "provider": settings["provider"],
            "program": _program(settings),
            "variables": ", ".join(settings["variables"]) or None,
            "runtime": settings["runtime"],
            "image": settings["image"],
            "network": settings["network"],
            "order": settings["order"],
            "a turn takes": f"at most {duration(settings['timeout_s'])}",
            "containers": f"at most {settings['max_containers']}",
        }
    today: Mapping[str, Any] | None = one["today"]
    if today is not None:
        facts["today"] = today["budget"] or f"{today['turns']} turns, {today['tokens']} tokens; no limit"
        if today["used_up"]:
            facts["stopped"] = f"{today['used_up']} used: its messages wait until midnight"
    facts |= {
        "unfinished": f"{one['pending'] - one['scheduled']}, and {one['scheduled']} scheduled for later",
        "undelivered": one["undelivered"],
        "dead letters": one["dead_letters"],
    }
    pairs(console, {name: value for name, value in facts.items() if value is not None})
    now = SystemClock().now_ms()
    if one["working"]:
        rows = [(f"{work['agent']}/{work['session']}", doing(work, now)) for work in one["working"]]
        console.print(table("At work", ("session", "on what"), rows))
    if one["attention"]:
        rows = [(f"{one['agent']}/{item['session']}", item["why"]) for item in one["attention"]]
        console.print(table(f"{one['attention_total']} need attention", ("session", "why"), rows))


def _by_state(sessions: Mapping[str, int]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sessions.items() if state != "total")
    return f"{sessions['total']} ({states})" if states else str(sessions["total"])


def _attention(one: Mapping[str, Any]) -> str:
    if one["today"] is not None and one["today"]["used_up"]:
        return f"used {one['today']['used_up']}"
    if not one["attention"]:
        return ""
    first = one["attention"][0]
    more = f" (and {one['attention_total'] - 1} more)" if one["attention_total"] > 1 else ""
    return f"{first['session']}: {first['why']}{more}"


def _program(settings: Mapping[str, Any]) -> str | None:
    if settings["program"] is None:
        return None
    many = settings["arguments"]
    return f"{settings['program']} ({many} argument{'s' if many != 1 else ''})" if many else str(settings["program"])
