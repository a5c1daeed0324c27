"""`clawbus run list`: what agents worked on, newest first, each with its actual status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.names import pair
from daemon.cli.operator import AgentFilter, SinceFilter, known_agent, since_of
from daemon.core.clock import SystemClock
from daemon.core.printable import counted

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["waiting", "running", "completed", "failed", "cancelled", "orphaned", "released"]


def runs(
    invocation: Invocation,
    status: Annotated[
        Status | None, typer.Option("--status", "--state", help="Only those that are so, or are listed so.")
    ] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", metavar="A/S", help="Only of this session.")] = None,
    agent: AgentFilter = None,
    since: SinceFilter = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")] = 50,
    stale: Annotated[bool, typer.Option("--stale", help="Only those whose sources disagree.")] = False,
) -> Outcome:
    """List runs, newest first: a run is one message in one incarnation of its agent's container.

    The status is the truth: the answer and the container first, then the history, the acks, and last what is listed. A
    run that is listed otherwise is stale, with reasons and a confidence. Use it to see what agents work on, and what came of
    it. It works from the files, the daemon up or down.

    \b
    Example:
      clawbus run list --status running
      clawbus run list --agent echo --since 2h
    """
    from daemon.cli.daemon_status import daemon_status  # noqa: PLC0415
    from daemon.core.daemon_status import DaemonState  # noqa: PLC0415
    from daemon.inspect.runs import RunQuery, Runs  # noqa: PLC0415 - the runtimes

    clock = SystemClock()
    query = RunQuery(
        session=pair(session, None) if session is not None else None,
        agent=known_agent(invocation, agent),
        status=status,
        stale=stale,
        since=since_of(since, clock.now_ms()),
        limit=limit,
    )
    state = daemon_status(invocation).state
    found = Runs(invocation.config, clock, synced=state is DaemonState.UP).newest(query)
    result: dict[str, Any] = {"source": "files", "daemon": state.value, **found}
    steps: tuple[NextAction, ...] = ()
    doubtful = next((run for run in found["runs"] if run["stale"]), None)
    if doubtful is not None:
        steps = (NextAction("clawbus doctor", "findings and their repairs"),)
    elif found["runs"]:
        steps = (NextAction(f"clawbus run show {found['runs'][0]['run_id']}", "the whole life of the newest one"),)
    return Outcome(result, lambda console: _show(console, result), steps)


def _show(console: Console, result: dict[str, Any]) -> None:
    from daemon.cli.present import age, say, short_ids, table, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    ids = short_ids(console, [run["run_id"] for run in result["runs"]])
    rows = [
        (
            short,
            f"{run['agent']}/{run['session']}",
            _status(run),
            when(run["at"] or None, now),
            age(run["duration_ms"]),
            run["text"],
        )
        for run, short in zip(result["runs"], ids, strict=True)
    ]
    if rows:
        columns = ("run", "session", "status", "last change", "worked", "text")
        console.print(table("Runs, newest first", columns, rows))
    else:
        say(console, "0 runs")
    if result["total"] > len(rows):
        say(console, f"and {result['total'] - len(rows)} more: --limit")
    if result["runtime_error"]:
        say(console, f"whether containers live is not known: {result['runtime_error']}")
    if result["daemon"] != "up":
        say(console, f"the daemon is {result['daemon']} (read from the files)")
    if result["not_examined"]:
        left = counted(result["not_examined"], "session was", "sessions were")
        say(console, f"{left} left out for lack of time: --session")
    say(console, *(f"{one['agent']}/{one['session']} could not be read: {one['error']}" for one in result["errors"]))


def _status(run: dict[str, Any]) -> str:
    if not run["stale"]:
        return run["status"]
    return f"{run['status']} (stale: listed as {run['listed']}; confidence {run['confidence']})"
