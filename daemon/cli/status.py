"""`clawbus status`: how the whole bus is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from daemon.cli.command import LOOK, Invocation, add
from daemon.cli.envelope import NextAction, Outcome
from daemon.clock import SystemClock
from daemon.errors import DaemonDownError

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "status", status)


def status(invocation: Invocation) -> Outcome:
    """Show how the bus is doing: the daemon, sessions by state, queues, dead letters, what needs attention.

    Use it first when something seems stuck. It works from the files when the daemon is down, and says so.

    \b
    Example:
      clawbus status
    """
    report: dict[str, Any]
    try:
        with invocation.client() as client:
            report, source = client.status(), "daemon"
    except DaemonDownError:
        from daemon.ops.reports import status_report  # noqa: PLC0415

        silent = invocation.silent_daemon()
        report, source = {"silent": silent, **status_report(invocation.config.data_dir, SystemClock())}, "files"
    steps: tuple[NextAction, ...] = ()
    if source == "files":
        steps = LOOK if report["silent"] is not None else (NextAction("clawbus run", "start the daemon"),)
    for entry in report.get("attention", [])[:1]:
        steps += (NextAction(f"clawbus session show {entry['agent']} {entry['session']}", "what needs attention"),)
    if report["queues"]["dead_letters"]:
        steps += (NextAction("clawbus dead list", "the dead letters"),)
    return Outcome({"source": source, **report}, lambda console: _show(console, report, source), steps)


def _show(console: Console, report: dict[str, Any], source: str) -> None:
    from daemon.cli.present import age, pairs, say, table  # noqa: PLC0415

    queues, sessions = report["queues"], report["sessions"]
    states = ", ".join(f"{count} {state}" for state, count in sessions.items() if state != "total")
    facts: dict[str, object] = {"daemon": "down (read from the files)" if source == "files" else "up"}
    if report.get("silent"):
        facts["daemon"] = f"{str(report['silent']).rstrip('.')} (read from the files)"
    facts |= _live(report.get("live") or {})
    facts["data"] = report["data_dir"]
    facts["sessions"] = f"{sessions['total']} ({states})" if states else sessions["total"]
    facts["messages"] = (
        f"{queues['pending']} unfinished ({queues['scheduled']} of them scheduled),"
        f" oldest {age(queues['oldest_pending_age_ms'])}"
    )
    facts["answers"] = f"{queues['undelivered']} undelivered, oldest {age(queues['oldest_undelivered_age_ms'])}"
    facts["dead letters"] = queues["dead_letters"]
    facts |= _pruned(report)
    if report.get("not_examined"):
        facts["not examined"] = f"{report['not_examined']} sessions (no time)"
    pairs(console, facts)
    if report["attention"]:
        rows = [(f"{entry['agent']}/{entry['session']}", entry["explanation"]) for entry in report["attention"]]
        console.print(table("Needs attention", ("session", "why"), rows))
        if report["attention_total"] > len(rows):
            say(console, f"and {report['attention_total'] - len(rows)} more: clawbus sessions")


def _pruned(report: dict[str, Any]) -> dict[str, object]:
    """How long what is done is kept, and what has gone by now."""
    from daemon.cli.present import duration, pruned  # noqa: PLC0415

    facts: dict[str, object] = {}
    live: dict[str, Any] = report.get("live") or {}
    if "retention" in live:
        keep: dict[str, float | None] = live["retention"]["keep_s"]
        facts["kept"] = ", ".join(f"{what} {duration(seconds)}" for what, seconds in keep.items())
    if report.get("pruned"):
        facts["pruned"] = pruned(report["pruned"], report["at"])
    return facts


def _live(live: dict[str, Any]) -> dict[str, object]:
    """What only a running daemon knows."""
    from daemon.cli.present import when  # noqa: PLC0415

    if not live:
        return {}
    now = SystemClock().now_ms()
    runtime: dict[str, Any] = live.get("runtime") or {}
    facts: dict[str, object] = {
        "process": f"{live.get('pid')}, version {live.get('version')}, since {when(live.get('started_at'), now)}",
        "runtime": f"{runtime.get('name')}: {runtime.get('state')}",
        "containers": f"{len(live.get('running') or ())} running, {len(live.get('waiting_spawns') or ())} waiting",
    }
    for fault in live.get("degraded") or ():
        facts[f"degraded: {fault.get('what')}"] = f"{fault.get('why')} (since {when(fault.get('since'), now)})"
    sweep = live.get("last_sweep")
    if sweep:
        facts["last sweep"] = (
            f"{when(sweep.get('at'), now)}: {sweep.get('sessions')} sessions in {sweep.get('duration_ms')} ms,"
            f" {sweep.get('errors')} errors"
        )
    return facts
