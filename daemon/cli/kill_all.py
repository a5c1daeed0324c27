"""`clawbus session kill --all`: ends every container of the installation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.cli.envelope import NextAction, Outcome, Problem, problem_of
from daemon.cli.executor import executor
from daemon.cli.invocation import Invocation
from daemon.cli.operator import user
from daemon.maintenance.container_ends import KilledAgent
from daemon.store.dead_letters import Operator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


def kill_all(invocation: Invocation, reason: str | None) -> Outcome:
    """Kill every agent, through the daemon or, when that is down, through the runtime. A failure names each agent that may still run."""
    with executor(invocation) as found:
        return outcome_of(found.kill_all(Operator(user(), reason)), found.source)


def outcome_of(agents: Sequence[KilledAgent], source: str) -> Outcome:
    """Return the command's outcome. It is a failure when an agent may still run."""
    left = [one for one in agents if one.error is not None]
    result = {"source": source, "killed": len(agents) - len(left), "agents": [_as_json(one) for one in agents]}
    return Outcome(
        result,
        lambda console: _show(console, agents),
        (_next(source),),
        _problem(left, len(agents)) if left else None,
    )


def _as_json(one: KilledAgent) -> dict[str, Any]:
    error = problem_of(one.error) if one.error is not None else None
    return {
        "agent": one.agent,
        "session": one.session,
        "incarnation": one.incarnation,
        "killed": error is None,
        "exit_code": one.exit_code,
        "error": {"code": error.code, "message": error.message} if error is not None else None,
    }


def _problem(left: Sequence[KilledAgent], count: int) -> Problem:
    named = ", ".join(f"{one.agent}/{one.session}" for one in left)
    first = problem_of(left[0].error) if left[0].error is not None else None
    assert first is not None
    return Problem(
        first.code, f"{len(left)} of {count} agents may still run: {named}. The first: {first.message}", first.fix
    )


def _next(source: str) -> NextAction:
    if source == "daemon":
        return NextAction("clawbus status", "the daemon keeps running, and starts an agent again when a message is due")
    return NextAction("clawbus serve", "start the daemon: unfinished messages are tried again")


def _show(console: Console, agents: Sequence[KilledAgent]) -> None:
    from daemon.cli.present import say  # noqa: PLC0415

    if not agents:
        say(console, "no agent runs")
    for one in agents:
        end = "killed" if one.error is None else f"may still run: {one.error}"
        say(console, f"{one.agent}/{one.session}: {end}")
