"""Prints the Inngest commands' results as text. Every text from the database is cleaned before it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console

from daemon.cli.present import age, brief, pairs, say, table, when
from daemon.core.clock import SystemClock
from daemon.core.printable import counted

_ROWS: Final = 50


def show_runs(console: Console, report: Mapping[str, Any]) -> None:
    """Print a table of runs, the stale ones with their reasons."""
    now = SystemClock().now_ms()
    rows = [
        (
            one["run_id"],
            one["function"],
            one["status"],
            one["listed"] or "/".join(one["listed_from_spans"]),
            _ago(one, now),
            _stale(one),
        )
        for one in report["runs"]
    ]
    title = (
        f"{counted(report['total'], 'run')}, {report['listed_as_running']} listed as running, {report['stale']} stale"
    )
    console.print(table(title, ("run", "function", "true status", "listed", "started", "stale"), rows))
    _say_server(console, report)


def show_run(console: Console, report: Mapping[str, Any]) -> None:
    """Print one run, source by source."""
    now = SystemClock().now_ms()
    sources = report["sources"]
    finish, listed = sources["finish"], sources["list"]
    pairs(
        console,
        {
            "run": report["run_id"],
            "function": report["function"],
            "status": f"{report['status']}, by its {report['source']}",
            "stale": _stale(report) or "no",
            "started": when(report["started_at"], now),
            "last seen": when(report["last_at"], now),
            "waits until": when(report["waits_until"], now),
            "1 trace": ", ".join(f"{one['status']} ({one['span']})" for one in sources["trace"]) or None,
            "2 history": ", ".join(f"{one['type']} {when(one['at'], now)}" for one in sources["history"]) or None,
            "3 finish": f"{finish['status']} {when(finish['at'], now)}" if finish else None,
            "4 list": f"{listed['status']} ({listed['code']})" if listed else None,
            "registered": "yes" if report["registered"] else "no: it has no function_runs row",
        },
    )
    if report["code"]:
        say(console, report["code"])
    say(console, *(f"error: {text[:300]}" for text in report["errors"]))


def show_sweep(console: Console, report: Mapping[str, Any]) -> None:
    """Print the candidates by function, then each one; after an apply also what was written and verified."""
    now = SystemClock().now_ms()
    counts = [
        (name, one["total"], brief({key: value for key, value in one.items() if key != "total"}))
        for name, one in report["by_function"].items()
    ]
    total = sum(one["total"] for one in report["by_function"].values())
    console.print(table(f"{total} stale runs", ("function", "runs", "become"), counts))
    rows = [
        (
            one["run_id"],
            one["function"],
            when(one["started_at"], now),
            one["becomes"],
            ", ".join(one["adds"]),
            _notes(one),
        )
        for one in report["candidates"][:_ROWS]
    ]
    if rows:
        console.print(table("", ("run", "function", "started", "becomes", "adds", "because"), rows))
    if len(report["candidates"]) > _ROWS:
        say(console, f"and {len(report['candidates']) - _ROWS} more: --json names them")
    if report["left_alone"]:
        say(console, f"left alone: {brief(report['left_alone'])}")
    say(console, *(f"warning: {text}" for text in report["warnings"]))
    _say_end(console, report)


def show_restore(console: Console, result: Mapping[str, Any]) -> None:
    """Print what was put back, and where the state before it is."""
    say(console, f"{result['path']} has the {counted(result['rows'], 'row')} of {result['backup']} again")
    say(console, f"what was there before: {result['before']['path']}")


def show_canary(console: Console, result: Mapping[str, Any]) -> None:
    """Print the runs of the canary's event."""
    rows = [(one["run_id"], one["function"], one["status"]) for one in result["runs"]]
    console.print(
        table(f"{result['event']}: {counted(len(rows), 'run')} completed", ("run", "function", "status"), rows)
    )


def _say_end(console: Console, report: Mapping[str, Any]) -> None:
    """Print what became of it: written and verified, refused, or only previewed."""
    if report["backup"]:
        say(console, f"backup: {report['backup']['path']} ({report['backup']['rows']} rows, verified)")
    if report["applied"]:
        checked = report["verification"]
        say(console, f"written: {brief(report['written'])}")
        say(
            console,
            f"verified: {len(checked['sampled'])} runs have ended; still listed: {brief(checked['still_listed_as_running']) or 'none'}",
        )
        say(console, f"canary: not done. {report['canary']['why']}")
    elif report["refusal"]:
        say(console, f"--apply would refuse: {report['refusal']['message']}", f"fix: {report['refusal']['fix']}")
    else:
        say(console, "nothing was changed")


def _ago(one: Mapping[str, Any], now_ms: int) -> str:
    return f"{age(now_ms - one['started_at'])} ago"


def _stale(one: Mapping[str, Any]) -> str:
    return f"{', '.join(one['reasons'])} ({one['confidence']})" if one["stale"] else ""


def _notes(one: Mapping[str, Any]) -> str:
    notes = [", ".join(one["reasons"])]
    notes += ["no function_runs row"] if not one["registered"] else []
    notes += ["still in the queue snapshot"] if one["in_queue_snapshot"] else []
    return "; ".join(notes)


def _say_server(console: Console, report: Mapping[str, Any]) -> None:
    say(console, *(f"open in {one['command'] or '?'} (pid {one['pid']})" for one in report["server"]))
