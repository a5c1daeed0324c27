"""`clawbus egress list|show`: what agents may reach, and what they used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock
from daemon.core.errors import UnknownEgressError
from daemon.core.printable import counted

if TYPE_CHECKING:
    from rich.console import Console

DaysOption = Annotated[int, typer.Option("--days", min=1, max=92, help="How many days are counted, this one included.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="What agents may reach through the gate, and what they used.\n\n\b\nExample:\n  clawbus egress list",
        rich_markup_mode=None,
    )
    add(group, "list", list_, path="egress")
    add(group, "show", show, path="egress")
    add_group(app, group, "egress")


def list_(invocation: Invocation, days: DaysOption = 1) -> Outcome:
    """List routes, hosts and budgets: who may use them, and what was used today.

    Use it to see who reaches what, and whose budget is nearly used up.

    It reads the configuration and the files, whether the daemon runs or not; the last second may be missing.

    \b
    Example:
      clawbus egress list --days 7
    """
    from daemon.inspect.egress_reading import egress_report  # noqa: PLC0415

    report = egress_report(invocation.config, SystemClock().now_ms(), days)
    steps: tuple[NextAction, ...] = ()
    if any(one["secret_error"] for one in report["ways"]) or any(one["used_up"] for one in report["budgets"]):
        steps = (NextAction("clawbus doctor", "what is wrong, and what repairs it"),)
    return Outcome({"source": "files", **report}, lambda console: _show_list(console, report), steps)


def show(
    invocation: Invocation,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A route's name, or a table of hosts'.")],
    days: DaysOption = 7,
) -> Outcome:
    """Show one route or table of hosts: where it leads, its secret's file, and what each agent used by day.

    Use it when an agent is refused, or before a route is changed.

    The secret is not shown, only whether its file can be read by you.

    \b
    Example:
      clawbus egress show anthropic
    """
    from daemon.inspect.egress_reading import egress_report, usage_by, usage_of  # noqa: PLC0415

    now = SystemClock().now_ms()
    ways = egress_report(invocation.config, now, days)["ways"]
    found = next((one for one in ways if one["name"] == name), None)
    if found is None:
        there = ", ".join(one["name"] for one in ways) or "none"
        raise UnknownEgressError(f"there is no route or table of hosts {name!r} (known: {there}).")
    rows = [row for row in usage_of(invocation.config, now, days) if row.route == name]
    result = {"source": "files", **found, "days": days, "usage": usage_by(rows, "day", "agent")}
    return Outcome(result, lambda console: _show_one(console, result))


def _show_list(console: Console, report: Mapping[str, Any]) -> None:
    from daemon.cli.present import say, table  # noqa: PLC0415

    when = "today" if report["days"] == 1 else f"{report['days']} days"
    trouble = any(one["secret_error"] for one in report["ways"])
    rows = [
        (
            one["name"], _shortly([_host(text) for text in one["targets"]]), _shortly(one["agents"]),
            one["requests"], one["refused"], one["tokens_in"] + one["tokens_out"],
            *((one["secret_error"],) if trouble else ()),
        )
        for one in report["ways"]
    ]  # fmt: skip
    columns = ("name", "to", "agents", "requests", "refused", "tokens", *(("trouble",) if trouble else ()))
    console.print(table(f"{counted(len(rows), 'route or host', 'routes and hosts')}, {when}", columns, rows))
    if report["refused_elsewhere"]:
        say(console, f"{report['refused_elsewhere']} requests to what no table names were refused")
    budgets = [
        (
            one["agent"],
            _of(one["requests"], one["requests_per_day"]),
            _of(one["tokens_in"] + one["tokens_out"], one["tokens_per_day"]),
            "used up" if one["used_up"] else None,
        )
        for one in report["budgets"]
    ]
    if budgets:
        console.print(table(f"Agents, {report['today']}", ("agent", "requests", "tokens", "budget"), budgets))


def _show_one(console: Console, one: Mapping[str, Any]) -> None:
    from daemon.cli.present import pairs, table  # noqa: PLC0415

    facts = {
        "name": one["name"],
        "leads to": ", ".join(one["targets"]),
        "agents": ", ".join(one["agents"]),
        "paths": ", ".join(one["paths"]) or None,
        "header": one["header"],
        "secret": one["secret_error"] or (f"{one['secret_file']} can be read" if one["secret_file"] else None),
        "variables": ", ".join(one["variables"]) or None,
        "requests": f"{one['requests']}, {one['failed']} without a whole answer; {one['refused']} refused",
        "tokens": f"{one['tokens_in']} in, {one['tokens_out']} out" + _estimated(one["estimated"]),
    }
    pairs(console, {name: value for name, value in facts.items() if value is not None})
    rows = [
        (row["day"], row["agent"], row["requests"], row["refused"], row["tokens_in"], row["tokens_out"])
        for row in one["usage"]
    ]
    if rows:
        columns = ("day", "agent", "requests", "refused", "tokens in", "out")
        console.print(table(f"The last {one['days']} days", columns, rows))


def _shortly(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 2 else f"{names[0]} +{len(names) - 1}"


def _host(target: str) -> str:
    return target.partition("://")[2].partition("/")[0] or target


def _of(used: int, limit: int | None) -> str:
    return str(used) if limit is None else f"{used} of {limit}"


def _estimated(count: int) -> str:
    return f" (estimated for {count} answers)" if count else ""
