"""`clawbus sweep stale`: ends runs that are listed as running but are not."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.durations import span_ms, span_text
from daemon.cli.envelope import NextAction, Outcome, problem_of
from daemon.cli.invocation import Invocation
from daemon.cli.names import pair
from daemon.cli.operator import ReasonOption, user
from daemon.cli.output import progress
from daemon.core.clock import SystemClock
from daemon.core.command_words import one_word, two_words
from daemon.core.printable import counted
from schema.errors import ClawbusError

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.core.stale_plan import Scope
    from daemon.maintenance.stale_drive import Report


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="End runs that are listed as under way and are not.\n\n\b\nExample:\n  clawbus sweep stale",
        rich_markup_mode=None,
    )
    add(group, "stale", stale, path="sweep")
    add_group(app, group, "sweep")


def stale(
    invocation: Invocation,
    agent: Annotated[
        str | None, typer.Option("--agent", "-a", metavar="NAME", help="Only this agent's sessions.")
    ] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", metavar="A/S", help="Only this session.")] = None,
    match: Annotated[
        str | None, typer.Option("--match", metavar="GLOB", help="Only sessions whose AGENT/SESSION matches.")
    ] = None,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", metavar="AGE", help="Unfinished runs only if claimed at least this long ago: 45m, 2h."
        ),
    ] = "30m",
    max_runs: Annotated[
        int, typer.Option("--max", min=1, help="Refuse when more runs than this would be ended.")
    ] = 200,
    apply: Annotated[bool, typer.Option("--apply", help="Do it. Without this nothing is changed.")] = False,
    reason: ReasonOption = None,
    canary_wait: Annotated[
        float,
        typer.Option("--canary-wait", metavar="SECONDS", min=0, help="How long the canary may take; 0: no canary."),
    ] = 60.0,
    restore: Annotated[
        Path | None, typer.Option("--restore", metavar="BACKUP", help="Undo a sweep: put its backup back.")
    ] = None,
) -> Outcome:
    """Show the runs that are listed as under way and are not; with --apply, end them.

    Use it when `doctor` names a stale run. A run that the evidence shows as completed or failed gets that status; an unfinished
    one is cancelled, and its sender is notified.
    Applied, it checks its gates, backs each file up beside it and verifies the copy, writes history, finish and status in
    one transaction, and verifies: the runs, the running list, a canary message. It can be ended anywhere and run again.
    It works through the daemon, or, when that is down, on the files.

    \b
    Example:
      clawbus sweep stale --agent echo
      clawbus sweep stale --session echo/demo --apply --reason 'the host was rebooted'
    """
    from daemon.core.stale_plan import Scope  # noqa: PLC0415

    if restore is not None:
        return _restore(invocation, restore, reason)
    scope = Scope(
        agent=agent,
        session=pair(session, None) if session is not None else None,
        match=match,
        older_than_ms=span_ms(older_than),
        max_runs=max_runs,
    )
    return _sweep(invocation, scope, reason, apply=apply, canary_s=canary_wait or None)


def _sweep(invocation: Invocation, scope: Scope, reason: str | None, *, apply: bool, canary_s: float | None) -> Outcome:
    from daemon.cli.executor import executor  # noqa: PLC0415
    from daemon.config.policies import read_limits  # noqa: PLC0415
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415
    from daemon.inspect.idle_check import IdleSessions  # noqa: PLC0415
    from daemon.maintenance.stale_drive import StaleSweep  # noqa: PLC0415
    from daemon.store.dead_letters import Operator  # noqa: PLC0415

    def tell(step: Mapping[str, Any]) -> None:
        _tell(invocation, step)

    error: ClawbusError | None = None
    with executor(invocation, changes=apply) as access:
        config = invocation.config
        central = read_central(config.data_dir)
        idle = IdleSessions(config.data_dir, central, read_limits(config), SystemClock().now_ms())
        drive = StaleSweep(access, scope, tell, apply=apply, is_idle=idle.covers)
        try:
            drive.run(Operator(user(), reason), canary_s=canary_s)
        except ClawbusError as refusal:
            error = refusal
    report = drive.report
    result = report.as_dict()
    steps = _next(scope, report) if error is None else ()
    problem = problem_of(error) if error is not None else None
    return Outcome(result, lambda console: _show(console, result), steps, problem)


def _restore(invocation: Invocation, backup: Path, reason: str | None) -> Outcome:
    from daemon.cli.executor import backup_key, execute  # noqa: PLC0415
    from daemon.core.session_verbs import UndoStale  # noqa: PLC0415
    from daemon.store.data_layout import Layout  # noqa: PLC0415

    key, name = backup_key(backup, Layout(invocation.config.data_dir).sessions_dir)
    done = execute(invocation, UndoStale(*key, by=user(), reason=reason, backup=name))

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(console, f"{'/'.join(key)}: {name} is back, {counted(done['restored'], 'message is as it was', 'messages are as they were')}.",
            f"What it replaced is in {done['before']}.")  # fmt: skip

    return Outcome(done, people, (NextAction(f"clawbus session show {two_words(*key)}", "its state now"),))


def _next(scope: Scope, report: Report) -> tuple[NextAction, ...]:
    if report.applied:
        steps = [NextAction("clawbus doctor", "whether anything is still wrong")]
        ended = [one for swept in report.swept for one in swept["swept"] if one["becomes"] == "cancelled"]
        if ended:
            message = shlex.quote(ended[0]["run"].partition("@")[0])
            where = one_word(ended[0]["agent"], ended[0]["session"])
            retry = f"clawbus message retry {message} --session {where}"
            steps.append(NextAction(retry, "send a cancelled message on its way again"))
        if report.swept:
            backup = shlex.quote(report.swept[0]["backup"]["path"])
            steps.append(NextAction(f"clawbus sweep stale --restore {backup}", "undo it for that session"))
        return tuple(steps)
    if not report.runs:
        return ()
    named = sorted({(one["agent"], one["session"]) for one in report.runs})
    where = f"--session {one_word(*named[0])}" if len(named) == 1 else f"--agent {named[0][0]}"
    if scope.match is not None and len(named) > 1:
        where = f"--match {shlex.quote(scope.match)}"
    return (NextAction(f"clawbus sweep stale {where}{_limits(scope)} --apply", "end them"),)


def _limits(scope: Scope) -> str:
    """Return the options for limits that differ from the defaults, so that --apply sweeps what the preview showed."""
    from daemon.core.stale_plan import MAX_RUNS, OLDER_THAN_MS  # noqa: PLC0415

    age = f" --older-than {span_text(scope.older_than_ms)}" if scope.older_than_ms != OLDER_THAN_MS else ""
    return age + (f" --max {scope.max_runs}" if scope.max_runs != MAX_RUNS else "")


def _tell(invocation: Invocation, step: Mapping[str, Any]) -> None:
    """Print progress on standard error."""
    if invocation.json:
        return
    from daemon.cli.present import brief  # noqa: PLC0415

    rest = {name: value for name, value in step.items() if name != "step"}
    progress(f"{step['step']:<8} {brief(rest)}")


def _show(console: Console, result: Mapping[str, Any]) -> None:
    from daemon.cli.present import say, table  # noqa: PLC0415

    rows = [
        (one["run"], f"{one['agent']}/{one['session']}", one["truth"], one["becomes"] or "(only its attempt ends)",
         " ".join(one["reasons"]))
        for one in result["runs"]
    ]  # fmt: skip
    verb = "Swept" if result["applied"] and result["swept"] else "Stale"
    console.print(table(f"{verb} runs", ("run", "session", "truth", "becomes", "why"), rows))
    left = [(one["run"], f"{one['agent']}/{one['session']}", one["gate"], one["why"]) for one in result["left"]]
    if left:
        console.print(table("Left alone", ("run", "session", "gate", "why"), left))
    for one in result["unreadable"]:
        say(console, f"{one['agent']}/{one['session']} could not be read: {one['code']}: {one['error']}")
    if not result["applied"] and rows:
        say(console, "Nothing was changed: this is a preview. --apply ends them.")
    if result["source"] == "files":
        say(console, "(the daemon is down: the files were used)")
