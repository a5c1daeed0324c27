"""`clawbus inngest runs|run|sweep-stale|restore|canary`: forensics and the stale sweep of an Inngest server's `main.db`.

Needs no configuration and no daemon: it works on the file that --db names, or beside it inside a pod through --exec.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.durations import span_ms, span_text
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.cli.operator import user
from daemon.cli.output import progress

Database = Annotated[
    Path, typer.Option("--db", metavar="FILE", help="The server's main.db; inside the pod when --exec is given.")
]
Functions = Annotated[
    list[str] | None,
    typer.Option(
        "--functions", "-f", metavar="NAMES", help="Names, slugs, ids or patterns; commas between, or repeated."
    ),
]
OlderThan = Annotated[
    str, typer.Option("--older-than", metavar="AGE", help="Started and silent for longer than this: 90s, 30m, 2h, 1d.")
]
Command = Annotated[
    str | None,
    typer.Option(
        "--exec",
        metavar="COMMAND",
        help="Work where the file is: 'kubectl -n NS exec POD --'. Needs Python 3.11 there.",
    ),
]
QueueLost = Annotated[
    bool,
    typer.Option(
        "--queue-lost",
        help="The server's queue is gone: it was in memory, and the server was restarted or stopped since.",
    ),
]
Sample = Annotated[int, typer.Option("--sample", min=1, max=10_000, help="Verify this many swept runs one by one.")]
MaxRuns = Annotated[int, typer.Option("--max", min=1, max=10_000, help="Refuse to sweep more than this.")]
Excluded = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="ID", help="Leave this run alone; may be repeated.")
]
Apply = Annotated[bool, typer.Option("--apply", help="Do it. Without it nothing is changed.")]
WhileRunning = Annotated[
    bool, typer.Option("--while-running", help="Also while a process has the database open, in WAL mode.")
]
RedisUri = Annotated[
    str | None,
    typer.Option(
        "--redis-uri",
        metavar="URI",
        envvar="INNGEST_REDIS_URI",
        show_envvar=False,
        help="The server's Redis queue, if it has one: runs still queued there are not swept.",
    ),
]
SkipUnregistered = Annotated[
    bool, typer.Option("--skip-unregistered", help="Leave runs without a function_runs row alone.")
]
EndUnregistered = Annotated[
    bool, typer.Option("--end-unregistered", help="End them too, in the lists alone: no history can be written.")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; goes into the rows that are written.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="An Inngest server's main.db: what its runs really are, and the sweep of the stale ones.\n\n\b\nExample:\n"
        "  clawbus inngest sweep-stale --db main.db --functions 'check/*'",
        rich_markup_mode=None,
    )
    add(group, "runs", runs, path="inngest")
    add(group, "run", run, path="inngest")
    add(group, "sweep-stale", sweep_stale, path="inngest")
    add(group, "restore", restore, path="inngest")
    add(group, "canary", canary, path="inngest")
    add_group(app, group, "inngest")


def runs(
    _: Invocation,
    db: Database,
    functions: Functions = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", metavar="STATUS", help="Only these: stale, running, completed, failed, cancelled, ..."
        ),
    ] = None,
    older_than: OlderThan = "30m",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Show at most this many.")] = 100,
    queue_lost: QueueLost = False,
    exec_: Command = None,
) -> Outcome:
    """List runs with what is true about them: trace, then terminal history, then the finish row, and the list last.

    Use it when Inngest's list and its details disagree. It changes nothing. Beside a server that is up, a file in DELETE mode is read
    without any lock.

    \b
    Example:
      clawbus inngest runs --db main.db --status stale
    """
    from daemon.inngest.values import Status  # noqa: PLC0415

    names = ("stale", *(str(one) for one in Status))
    if status is not None and status not in names:
        raise typer.BadParameter(f"one of {', '.join(names)}", param_hint="--status")
    options = {
        "path": str(db),
        "scope": {**_scope(functions, older_than), "queue_lost": queue_lost},
        "status": status,
        "limit": limit,
    }
    report, problem = _operate(exec_, "runs", options)
    if report is None:
        return Outcome(problem=problem)
    steps = tuple(
        NextAction(f"clawbus inngest run {one['run_id']} {_place(db, exec_)}", "source by source")
        for one in [one for one in report["runs"] if one["stale"]][:1]
    )
    return Outcome(report, lambda console: _views().show_runs(console, report), steps)


def run(
    _: Invocation,
    run_id: Annotated[str, typer.Argument(metavar="ID", help="A run's id.")],
    db: Database,
    exec_: Command = None,
) -> Outcome:
    """Show one run source by source in the truth order, and whether its list entry is to be believed.

    Use it before a sweep, for a candidate that surprises you. It changes nothing.

    \b
    Example:
      clawbus inngest run 01KJWYBYTR08VKJ33G01TBMGDR --db main.db
    """
    report, problem = _operate(exec_, "run", {"path": str(db), "run_id": run_id})
    if report is None:
        return Outcome(problem=problem)
    return Outcome(report, lambda console: _views().show_run(console, report))


def sweep_stale(
    _: Invocation,
    db: Database,
    functions: Functions = None,
    older_than: OlderThan = "30m",
    sample: Sample = 25,
    max_runs: MaxRuns = 200,
    exclude: Excluded = None,
    apply: Apply = False,
    while_running: WhileRunning = False,
    queue_lost: QueueLost = False,
    redis_uri: RedisUri = None,
    skip_unregistered: SkipUnregistered = False,
    end_unregistered: EndUnregistered = False,
    reason: Reason = "stale: the list said running, nothing else did",
    exec_: Command = None,
) -> Outcome:
    """End the runs that only the list still calls running: a preview, and with --apply the sweep itself.

    Use it when `inngest runs --status stale` names runs that will never end by themselves. Stop the server before --apply.

    A verified backup comes first, beside the database. Then, in one transaction: the gates again, the missing terminal
    history, the finish rows, the spans, and the status last. A run that the history calls completed or failed gets that
    status. It can be interrupted anywhere and run again.

    A run that waits or is queued is left alone, unless the queue is gone (--queue-lost, or the server that is up proves it).

    \b
    Example:
      clawbus inngest sweep-stale --db main.db --functions check/o11y-triage,check/system-health
    """
    if skip_unregistered and end_unregistered:
        raise typer.BadParameter("not together with --end-unregistered", param_hint="--skip-unregistered")
    unregistered = "skip" if skip_unregistered else "end" if end_unregistered else "refuse"
    more = {"queue_lost": queue_lost, "unregistered": unregistered}
    options = {
        "path": str(db),
        "scope": {**_scope(functions, older_than, max_runs, sample, exclude), **more},
        "redis_uri": redis_uri,
        "by": user(),
        "reason": reason[:500],
        "apply": apply,
        "while_running": while_running,
    }
    report, problem = _operate(exec_, "sweep", options)
    if report is None:
        return Outcome(problem=problem)
    return Outcome(report, lambda console: _views().show_sweep(console, report), _after(report, db, exec_), problem)


def restore(
    _: Invocation,
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="The backup that a sweep named.")],
    db: Database,
    exec_: Command = None,
) -> Outcome:
    """Restore a sweep's backup: the database is as it was just before that sweep.

    What the server wrote since then is lost, so stop it first; it is refused while a process has the file open. What is
    there now is backed up before. Use it when a sweep turns out to have been wrong.

    \b
    Example:
      clawbus inngest restore main.db.pre-sweep-20260304T192943Z.sqlite --db main.db
    """
    result, problem = _operate(exec_, "restore", {"path": str(db), "backup": str(backup)})
    if result is None:
        return Outcome(problem=problem)
    undo = NextAction(
        f"clawbus inngest restore {shlex.quote(result['before']['path'])} {_place(db, exec_)}", "undo this"
    )
    return Outcome(result, lambda console: _views().show_restore(console, result), (undo,))


def canary(
    _: Invocation,
    db: Database,
    url: Annotated[str, typer.Option("--url", metavar="URL", help="The event endpoint: http://HOST:8288/e/EVENT_KEY.")],
    event: Annotated[str, typer.Option("--event", metavar="NAME", help="An event whose functions are safe to run.")],
    wait: Annotated[
        float, typer.Option("--wait", "-w", min=1, max=3600, help="Seconds until its runs must have completed.")
    ] = 60,
    signing_key: Annotated[
        str | None,
        typer.Option(
            "--signing-key",
            metavar="KEY",
            envvar="INNGEST_SIGNING_KEY",
            show_envvar=False,
            help="The server's: it is asked for the runs then, and its database is not read. Better in the environment.",
        ),
    ] = None,
    exec_: Command = None,
) -> Outcome:
    """Send one event through the running server and wait until every run that it starts has completed.

    Use it after a sweep, once the server is up again. It really runs the event's functions.

    \b
    Example:
      clawbus inngest canary --db main.db --url http://localhost:8288/e/KEY --event system/health.requested
    """
    from daemon.inngest.canary import Waiting, await_completion, runs_from_server, send_event  # noqa: PLC0415

    event_id = send_event(url, event)

    def look() -> Mapping[str, Any]:
        if signing_key is not None:
            return runs_from_server(url, event_id, signing_key)
        report, problem = _operate(exec_, "event", {"path": str(db), "event_id": event_id})
        if report is None:
            raise _LookError(problem)
        return report

    try:
        result = {"event": event, **await_completion(look, wait, Waiting(time.monotonic, time.sleep))}
    except _LookError as error:
        return Outcome({"event": event, "event_id": event_id}, problem=error.problem)
    return Outcome(result, lambda console: _views().show_canary(console, result))


class _LookError(Exception):
    """The database could not be read. `canary` catches it."""

    def __init__(self, problem: Problem | None) -> None:
        super().__init__()
        self.problem = problem


def _operate(
    command: str | None, name: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, Problem | None]:
    """Run the operation here or in the pod. Raise InngestExecError."""
    if command is not None:
        from daemon.inngest.remote import operate_there  # noqa: PLC0415

        answer = operate_there(command, name, options)
    else:
        from daemon.inngest.operations import operate  # noqa: PLC0415

        answer = operate(name, options, _tell if options.get("apply") else _silent)
    error = answer["error"]
    return answer["result"], None if error is None else Problem(error["code"], error["message"], error["fix"])


def _scope(
    functions: Sequence[str] | None,
    older_than: str,
    max_runs: int = 200,
    sample: int = 25,
    exclude: Sequence[str] | None = None,
) -> dict[str, Any]:
    named = [name.strip() for given in functions or () for name in given.split(",")]
    return {
        "functions": [name for name in named if name],
        "older_than_ms": span_ms(older_than),
        "max_runs": max_runs,
        "sample": sample,
        "exclude": [run_id.strip() for run_id in exclude or ()],
    }


def _after(report: Mapping[str, Any], db: Path, command: str | None) -> tuple[NextAction, ...]:
    place = _place(db, command)
    if report["applied"]:
        return (
            NextAction(f"clawbus inngest runs {place} --status stale", "what is left"),
            NextAction(f"clawbus inngest canary {place} --url URL --event NAME", "does a fresh run complete?"),
            NextAction(f"clawbus inngest restore {shlex.quote(report['backup']['path'])} {place}", "undo it"),
        )
    if report["refusal"] is not None or not report["candidates"]:
        first = next((one for one in report["candidates"] if not one["registered"]), None)
        return (
            ()
            if first is None
            else (NextAction(f"clawbus inngest run {first['run_id']} {place}", "why it is refused"),)
        )
    scope = report["scope"]
    if not scope["functions"]:
        return ()
    words = ["--functions", ",".join(scope["functions"]), "--older-than", span_text(scope["older_than_ms"])]
    words += [word for run_id in scope["exclude"] for word in ("--exclude", run_id)]
    words += ["--queue-lost"] if scope["lost_before_ms"] is not None else []
    words += [] if scope["unregistered"] == "refuse" else [f"--{scope['unregistered']}-unregistered"]
    words += ["--max", str(scope["max_runs"]), "--apply"]
    return (
        NextAction(f"clawbus inngest sweep-stale {place} {shlex.join(words)}", "sweep them, with the server stopped"),
    )


def _place(db: Path, command: str | None) -> str:
    words = ["--db", str(db), *(("--exec", command) if command is not None else ())]
    return shlex.join(words)


def _views() -> Any:
    from daemon.cli import inngest_views  # noqa: PLC0415 - tables, when people read

    return inngest_views


def _tell(step: str) -> None:
    """Print progress on standard error, so that standard output contains only the result."""
    progress(f"sweep: {step}")


def _silent(_: str) -> None:
    return
