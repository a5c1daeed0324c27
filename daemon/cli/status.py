"""`clawbus status`: how the whole bus is doing, on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from daemon.cli.command import add
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.finish import LOOK
from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock
from daemon.core.command_words import two_words
from daemon.core.errors import DaemonDownError, DaemonSilentError, DataFolderError, RemoteError
from daemon.core.printable import counted
from schema.errors import ClawbusError

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.inspect.agents_now import AgentsNow


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "status", status)


def status(invocation: Invocation) -> Outcome:
    """Show how the bus is doing: the daemon, sessions by state, queues, dead letters, what needs attention.

    Use it first when something seems stuck; `clawbus doctor` then says why. It works from the files when the daemon is
    down or silent, and says so.

    \b
    Example:
      clawbus status
    """
    from daemon.cli.at_work import with_work  # noqa: PLC0415

    report, source = read_status(invocation)
    report["working"] = with_work(invocation, report.get("working", []))
    steps: tuple[NextAction, ...] = ()
    if source == "files":
        steps = LOOK if report["silent"] is not None else (NextAction("clawbus serve", "start the daemon"),)
    for entry in report.get("attention", [])[:1]:
        steps += (
            NextAction(f"clawbus session show {two_words(entry['agent'], entry['session'])}", "what needs attention"),
        )
    if report["queues"]["dead_letters"]:
        steps += (NextAction("clawbus dead list", "the dead letters"),)
    live: dict[str, Any] = report.get("live") or {}
    if report["attention"] or _stopped(report) or live.get("degraded"):
        steps += (NextAction("clawbus doctor", "findings and their repairs"),)
    return Outcome({"source": source, **report}, lambda console: show(console, report, source), steps)


def read_status(invocation: Invocation) -> tuple[dict[str, Any], str]:
    """Return the report, and whether it is of the `daemon` or the `files`. Raise DataFolderError, ConfigError."""
    from daemon.cli.daemon_status import PATIENCE_S  # noqa: PLC0415

    versions = {"versions": _versions(), "runtime": invocation.place.runtime}
    try:
        with invocation.client(answer_s=2 * PATIENCE_S) as client:
            try:
                return {**versions, **_completed(invocation, client.status())}, "daemon"
            except RemoteError as error:  # it lives, and cannot read what the report is made of
                live = client.live()
                files = _from_files(invocation, str(error), _agents_of(live))
                return {**versions, **files, "silent": None, "live": live}, "daemon"
    except (DaemonDownError, DaemonSilentError) as error:
        silent = invocation.silent_daemon() or (str(error) if isinstance(error, DaemonSilentError) else None)
    agents = _agents(invocation)
    files = _from_files(invocation, None, agents)
    return {**versions, "silent": silent, "budgets": dict(agents.stopped), **files}, "files"


def _stopped(report: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the agents whose daily budget is used up, and what of it."""
    live: Mapping[str, Any] = report.get("live") or {}
    return report.get("budgets") or live.get("budgets") or {}


def _agents_of(live: Mapping[str, Any]) -> AgentsNow:
    """Return what the daemon says of the agents."""
    from daemon.inspect.agents_now import AgentsNow  # noqa: PLC0415

    return AgentsNow(live.get("budgets") or {}, frozenset(live.get("agents") or ()))


def _agents(invocation: Invocation) -> AgentsNow:
    """Return the same from the files, for when no daemon says it. Raise ConfigError."""
    from daemon.inspect.budget_reading import agents_now  # noqa: PLC0415

    return agents_now(invocation.config, SystemClock().now_ms())


def _completed(invocation: Invocation, report: dict[str, Any]) -> dict[str, Any]:
    """Return the daemon's report; of sessions that it had no time for, what their files say."""
    if not report.get("not_examined"):
        return report
    try:
        files = _from_files(invocation, None, _agents_of(report.get("live") or {}))
    except ClawbusError:  # they cannot be read here: the report says how many are missing
        return report
    named = {(one["agent"], one["session"]) for one in report["attention"]}
    more = [one for one in files["attention"] if (one["agent"], one["session"]) not in named]
    return {
        **report,
        **{name: files[name] for name in ("sessions", "queues", "not_examined")},
        "attention": [*report["attention"], *more],
        "attention_total": max(report["attention_total"] + len(more), files["attention_total"]),
    }


def _from_files(invocation: Invocation, why: str | None, agents: AgentsNow) -> dict[str, Any]:
    from daemon.inspect.bounds import PATIENT_BUDGET_S  # noqa: PLC0415
    from daemon.inspect.status_report import status_report, status_without_registry  # noqa: PLC0415
    from daemon.store.data_layout import VERSION_NAME  # noqa: PLC0415

    data_dir = invocation.place.data_dir
    try:
        return status_report(data_dir, SystemClock(), budget_s=PATIENT_BUDGET_S, agents=agents)
    except ClawbusError as error:
        # One that was never started has nothing to report; one that was, has its sessions' folders.
        if isinstance(error, DataFolderError) and not (data_dir / VERSION_NAME).exists():
            raise
        return status_without_registry(
            data_dir, SystemClock(), why or str(error), budget_s=PATIENT_BUDGET_S, agents=agents
        )


def _versions() -> dict[str, Any]:
    from importlib import metadata  # noqa: PLC0415

    from schema.migrate import VERSION  # noqa: PLC0415

    try:
        own = metadata.version("clawbus")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {"clawbus": own, "schema": VERSION}


def show(console: Console, report: Mapping[str, Any], source: str) -> None:
    """Print the report for people."""
    from daemon.cli.doing import doing  # noqa: PLC0415
    from daemon.cli.present import pairs, say, table  # noqa: PLC0415

    pairs(console, facts_of(report, source))
    if report["working"]:
        now = SystemClock().now_ms()
        rows = [(f"{one['agent']}/{one['session']}", doing(one, now)) for one in report["working"]]
        console.print(table("At work", ("session", "on what"), rows))
    if report["attention"]:
        rows = [(f"{entry['agent']}/{entry['session']}", entry["explanation"]) for entry in report["attention"]]
        console.print(table("Needs attention", ("session", "why"), rows))
        if report["attention_total"] > len(rows):
            say(console, f"and {report['attention_total'] - len(rows)} more: clawbus session list")


def facts_of(report: Mapping[str, Any], source: str) -> dict[str, object]:
    """Return the screen's lines: a name and its state."""
    from daemon.cli.present import age  # noqa: PLC0415

    queues, sessions = report["queues"], report["sessions"]
    states = ", ".join(f"{count} {state}" for state, count in sessions.items() if state != "total")
    versions: Mapping[str, Any] = report["versions"]
    facts: dict[str, object] = {"daemon": "down (read from the files)" if source == "files" else "up"}
    if report.get("silent"):
        facts["daemon"] = f"{str(report['silent']).rstrip('.')} (read from the files)"
    facts["version"] = f"clawbus {versions['clawbus']}, schema {versions['schema']}"
    facts |= _live(report.get("live") or {})
    facts.setdefault("runtime", f"{report['runtime']}: not asked, the daemon does not say")
    facts |= _install(report)
    facts["data"] = report["data_dir"]
    if report.get("registry_error"):
        facts["registry"] = f"{report['registry_error']} (sessions are those that have a folder)"
    facts["sessions"] = f"{sessions['total']} ({states})" if states else sessions["total"]
    facts["messages"] = (
        f"{queues['pending'] - queues['scheduled']} unfinished, oldest {age(queues['oldest_pending_age_ms'])};"
        f" {queues['scheduled']} scheduled for later"
    )
    facts["answers"] = (
        f"{queues['undelivered']} undelivered, oldest {age(queues['oldest_undelivered_age_ms'])};"
        f" {queues.get('scheduled_answers', 0)} scheduled for later"
    )
    facts["dead letters"] = (
        f"{queues['dead_letters']} ({counted(queues['failed'], 'message')}, {counted(queues['dead'], 'answer')})"
    )
    if stopped := _stopped(report):
        facts["stopped"] = "; ".join(f"{agent}: {spent} of today" for agent, spent in stopped.items())
    facts |= _pruned(report)
    if report.get("not_examined"):
        facts["not examined"] = f"{counted(report['not_examined'], 'session')} (no time)"
    return facts


def _install(report: Mapping[str, Any]) -> dict[str, object]:
    """Return the engine by its own id, and where the folder was copied from."""
    facts: dict[str, object] = {}
    if (engine := report.get("engine")) is not None:
        facts["engine"] = f"{engine['id']} at {engine['host']}"
    if (origin := report.get("copied_from")) is not None:
        facts["copied from"] = f"{origin['path'] or 'an unknown place'}, installation {origin['install_id']}"
    return facts


def _pruned(report: Mapping[str, Any]) -> dict[str, object]:
    """Return how long finished rows are kept, and how many have been pruned."""
    from daemon.cli.present import duration, pruned  # noqa: PLC0415

    facts: dict[str, object] = {}
    live: dict[str, Any] = report.get("live") or {}
    if "retention" in live:
        keep: dict[str, float | None] = live["retention"]["keep_s"]
        facts["kept"] = ", ".join(f"{what} {duration(seconds)}" for what, seconds in keep.items())
    if report.get("pruned"):
        facts["pruned"] = pruned(report["pruned"], report["at"])
    return facts


def _live(live: Mapping[str, Any]) -> dict[str, object]:
    """Return what only a running daemon knows."""
    from daemon.cli.present import when  # noqa: PLC0415

    if not live:
        return {}
    now = SystemClock().now_ms()
    runtime: dict[str, Any] = live.get("runtime") or {}
    running = sum(one.get("phase") != "exited" for one in live.get("running") or ())
    facts: dict[str, object] = {
        "process": f"{live.get('pid')}, version {live.get('version')}, since {when(live.get('started_at'), now)}",
        "runtime": f"{runtime.get('name')}: {runtime.get('state')}",
        "containers": f"{running} running, {len(live.get('waiting_spawns') or ())} waiting",
    }
    for fault in live.get("degraded") or ():
        facts[f"degraded: {fault.get('what')}"] = f"{fault.get('why')} (since {when(fault.get('since'), now)})"
    sweep = live.get("last_sweep")
    if sweep:
        facts["last sweep"] = (
            f"{when(sweep.get('at'), now)}: {counted(sweep.get('sessions') or 0, 'session')} in {sweep.get('duration_ms')} ms,"
            f" {counted(sweep.get('errors') or 0, 'error')}"
        )
    return facts
