"""`clawbus worker list`: the daemons that are registered, what each owns, and when each agent last completed a turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome, Problem, problem_of
from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock
from daemon.core.deploy_errors import DuplicateOwnershipError
from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError
from daemon.core.printable import counted

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="The daemons that are registered, what each owns, and whether it does it.\n\n\b\nExample:\n  clawbus worker list",
        rich_markup_mode=None,
    )
    add(group, "list", list_, path="worker")
    add_group(app, group, "worker")


def list_(
    invocation: Invocation,
    every: Annotated[bool, typer.Option("--all", help="Also the daemons that have ended.")] = False,
) -> Outcome:
    """List the registered daemon with its role, release and last confirmation; each agent's owner and last completed turn.

    Use it when an agent is silent: an agent without a worker belongs to another role, and one that is `behind` has
    missed a whole interval of its schedule. It reads the files, with the daemon up or down. Exit code 1: an agent or a
    channel has two owners, or what runs is not one source.

    \b
    Example:
      clawbus worker list
    """
    from daemon.config.ownership import ownership_of  # noqa: PLC0415
    from daemon.core.ownership import Ownership  # noqa: PLC0415
    from daemon.inspect.workers_reading import workers_report  # noqa: PLC0415

    config = invocation.config
    duplicate: DuplicateOwnershipError | None = None
    try:
        ownership = ownership_of(config)
    except DuplicateOwnershipError as error:
        duplicate, ownership = error, Ownership()
    report = workers_report(config, ownership, SystemClock())
    live = _live(invocation)
    drift = _drift(invocation, live)
    duplicate = duplicate or _duplicate(live)
    result = {
        **report,
        "workers": [one for one in report["workers"] if every or one["state"] != "ended"],
        "duplicates": [str(duplicate)] if duplicate is not None else _known_none(live),
        "drift": drift,
    }
    problem = problem_of(duplicate) if duplicate is not None else None
    if problem is None and drift:
        problem = Problem("SOURCE_DRIFT", "; ".join(drift) + ".", "`clawbus source` names each difference and its fix.")
    return Outcome(result, lambda console: _show(console, result), _steps(result), problem)


def _live(invocation: Invocation) -> Mapping[str, Any] | None:
    """Return what only the running daemon knows; None without one."""
    try:
        with invocation.client() as client:
            return client.live()
    except (DaemonDownError, DaemonSilentError, RemoteError):
        return None


def _duplicate(live: Mapping[str, Any] | None) -> DuplicateOwnershipError | None:
    """Return what another daemon of this host owns too, as the running daemon sees it."""
    worker: Mapping[str, Any] = (live or {}).get("worker") or {}
    names: list[str] = worker.get("duplicate_ids") or []
    if not names:
        return None
    return DuplicateOwnershipError(
        f"another daemon of this host, with another data folder, owns {', '.join(names)}, too.",
        hint="A drill is stopped when it is over. Otherwise leave each name to one of the two configurations.",
    )


def _known_none(live: Mapping[str, Any] | None) -> list[str] | None:
    """Return an empty list where the daemon has looked for other owners; None where nobody has."""
    worker: Mapping[str, Any] | None = (live or {}).get("worker")
    return [] if worker is not None and worker.get("duplicate_ids") is not None else None


def _drift(invocation: Invocation, live: Mapping[str, Any] | None) -> list[str]:
    """Return each drift of the source, as `clawbus source` names it; none where no releases are used."""
    if not invocation.config.deploy.root:
        return []
    from daemon.deploy import drift  # noqa: PLC0415
    from daemon.workers.source import origin  # noqa: PLC0415

    return [str(one) for one in drift.report(invocation.config, origin(), live).drifts]


def _steps(result: Mapping[str, Any]) -> tuple[NextAction, ...]:
    if not any(one["state"] == "registered" for one in result["workers"]):
        return (NextAction("clawbus status", "no running daemon has confirmed its registration"),)
    behind = [one for one in result["agents"] if one["cadence"] is not None and one["cadence"]["behind"]]
    if behind:
        return (NextAction(f"clawbus schedule show {behind[0]['cadence']['schedule']}", "what is behind"),)
    return ()


def _show(console: Console, result: Mapping[str, Any]) -> None:
    from daemon.cli.present import age, say, say_wrapped, short_ids, table  # noqa: PLC0415

    now = SystemClock().now_ms()

    def ago(at: int | None) -> str:
        return age(max(0, now - at)) if at is not None else "-"

    workers, agents = result["workers"], result["agents"]
    names = short_ids(console, [one["id"] for one in workers])
    rows = [
        (name, one["state"], one["role"] or "-", one["slot"] or "-", (one["release"] or "-")[:12],
         len(one["agents"]), len(one["channels"]), ago(one["confirmed_at"]))
        for name, one in zip(names, workers, strict=True)
    ]  # fmt: skip
    columns = ("worker", "state", "role", "slot", "release", "agents", "channels", "confirmed")
    console.print(table(counted(len(rows), "worker"), columns, rows))
    for role, group in result["groups"].items():
        say(console, f"{role}: {counted(len(group['agents']), 'agent')}, {counted(len(group['channels']), 'channel')}")
    shown = [
        (one["agent"], one["role"] or "-", "yes" if one["worker"] else "no", ago(one["last_completed_at"]),
         _cadence(one["cadence"]))
        for one in agents
    ]  # fmt: skip
    console.print(
        table(f"{counted(len(shown), 'agent')}", ("agent", "role", "owned here", "last turn", "cadence"), shown)
    )
    if result["duplicates"] is None:
        say_wrapped(console, "", "whether another daemon of this host owns a name too is not known: no daemon says it")
    if result["not_examined"]:
        left = counted(result["not_examined"], "session with schedules was", "sessions with schedules were")
        say(console, f"{left} not examined (no time)")
    say(console, *(f"{one['agent']}/{one['session']} could not be read: {one['error']}" for one in result["errors"]))


def _cadence(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{'behind' if found['behind'] else 'kept'} ({found['schedule']}, {found['times']})"
