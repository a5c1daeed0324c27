"""`clawbus schedule add|list|show|run|pause|resume|cancel`: messages that are sent to agents at given times."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.names import AgentOption, addressed, pair
from daemon.cli.operator import AgentFilter, ReasonOption, SessionScope, known_agent, user
from daemon.cli.same_place import operand
from daemon.core.clock import SystemClock
from daemon.core.printable import counted
from daemon.core.schedule_verbs import CancelSchedule, PauseSchedule, PutSchedule, ResumeSchedule, RunSchedule
from daemon.core.verb import RowVerb

if TYPE_CHECKING:
    from rich.console import Console

_PAST: Final[Mapping[type[RowVerb], str]] = MappingProxyType(
    {PauseSchedule: "paused", ResumeSchedule: "resumed", CancelSchedule: "cancelled"}
)
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The schedule's key.")]
_CatchUp = Literal["skip", "latest", "all"]
TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="What to say to the agent.")]
SessionOption = Annotated[
    str | None,
    typer.Option("--session", "-s", metavar="NAME", help="The session, or AGENT/SESSION; by default schedule-KEY."),
]
AtOption = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="Once, at this time: 2026-12-24T18:00, 'tomorrow 9:00', 'in 2h'."),
]
EveryOption = Annotated[str | None, typer.Option("--every", metavar="SPAN", help="Again and again: 90s, 15m, 2h, 3d.")]
CronOption = Annotated[str | None, typer.Option("--cron", metavar="EXPR", help="By a cron expression: '0 9 * * 1-5'.")]
ZoneOption = Annotated[
    str | None,
    typer.Option("--timezone", metavar="ZONE", help="Of --at, --until and --cron; by default the configuration's."),
]
CatchUpOption = Annotated[
    _CatchUp, typer.Option("--catch-up", help="What comes of occurrences that were missed: none, the last, or all.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="None after this time.")]
CountOption = Annotated[int | None, typer.Option("--count", min=1, help="Stop after this many.")]
MailboxOption = Annotated[
    str | None, typer.Option("--mailbox", metavar="NAME", help="The mailbox of the answers; by default KEY.")
]

CheckOption = Annotated[
    str | None,
    typer.Option(
        "--check",
        metavar="COMMAND",
        help="Run by a shell in the container: only if it prints something is the agent woken.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Messages that are sent at given times: add, list, show, run, pause, resume or cancel a schedule.\n\n\b\n"
        "Example:\n  clawbus schedule add report 'write the report' --agent echo --cron '0 9 * * 1-5'",
        rich_markup_mode=None,
    )
    add(group, "add", add_, path="schedule")
    add(group, "list", list_, path="schedule")
    add(group, "show", show, path="schedule")
    add(group, "run", run, path="schedule")
    add(group, "pause", pause, path="schedule")
    add(group, "resume", resume, path="schedule")
    add(group, "cancel", cancel, path="schedule")
    add_group(app, group, "schedule")


def add_(
    invocation: Invocation,
    key: KeyArgument,
    text: TextArgument,
    agent: AgentOption = None,
    session: SessionOption = None,
    at: AtOption = None,
    every: EveryOption = None,
    cron: CronOption = None,
    timezone: ZoneOption = None,
    catch_up: CatchUpOption = "skip",
    until: UntilOption = None,
    count: CountOption = None,
    mailbox: MailboxOption = None,
    check: CheckOption = None,
    reason: ReasonOption = None,
) -> Outcome:
    """Add a schedule, or change the one with this key: its text is sent to the agent at each of its times.

    Use it for what an agent does regularly. The same command twice changes nothing. While the message before is not finished,
    an occurrence is left out. One that is more than five minutes late counts as missed.

    \b
    Example:
      clawbus schedule add report 'write the report' --agent echo --cron '0 9 * * 1-5' --timezone Europe/Vienna
    """
    from daemon.cli.durations import span_ms  # noqa: PLC0415
    from daemon.core.schedules import check_key  # noqa: PLC0415
    from daemon.core.time_phrases import instant_of  # noqa: PLC0415

    check_key(key)
    if agent is None and session is None:
        raise typer.BadParameter("name the agent: --agent NAME.")
    named = addressed(agent, session if session is not None else f"schedule-{key}")
    zone = timezone if timezone is not None else invocation.config.timezone
    now = SystemClock().now_ms()
    verb = PutSchedule(
        *named, by=user(), reason=reason, id=key, text=text, cron=cron, timezone=zone, count=count, catch_up=catch_up,
        at=instant_of(at, zone, now) if at is not None else None,
        every_ms=span_ms(every) if every is not None else None,
        until=instant_of(until, zone, now) if until is not None else None,
        place=mailbox if mailbox is not None else key,
        check=check,
    )  # fmt: skip
    return done(invocation, verb, steps_after_put(verb))


def list_(invocation: Invocation, agent: AgentFilter = None) -> Outcome:
    """List the schedules: when each is due next, how many messages it sent, and whether they failed.

    Use it to see what agents are asked to do, and when. It reads the files, whether the daemon runs or not.

    \b
    Example:
      clawbus schedule list
    """
    from daemon.inspect.schedule_list import schedules_report  # noqa: PLC0415

    report = schedules_report(invocation.place.data_dir, SystemClock(), agent=known_agent(invocation, agent))
    steps: tuple[NextAction, ...] = ()
    if report["schedules"]:
        steps = (NextAction(f"clawbus schedule show {report['schedules'][0]['key']}", "its occurrences"),)
    return Outcome({"source": "files", **report}, lambda console: _show_list(console, report), steps)


def show(invocation: Invocation, key: KeyArgument, session: SessionScope = None) -> Outcome:
    """Show a schedule: its times, its text, and the outcome of its newest occurrences.

    Use it when a message did not come, or came twice. It reads the files, whether the daemon runs or not.

    \b
    Example:
      clawbus schedule show report
    """
    from daemon.inspect.schedule_list import schedule_report  # noqa: PLC0415

    named = _session_of(invocation, key, session)
    found = schedule_report(invocation.place.data_dir, named, key)
    sent = [one["message_id"] for one in found["runs"] if one["message_id"] is not None]
    steps = tuple(
        NextAction(f"clawbus run show {shlex.quote(one)}", "what came of the last message") for one in sent[:1]
    )
    return Outcome({"source": "files", **found}, lambda console: _show_one(console, found), steps)


def run(invocation: Invocation, key: KeyArgument, session: SessionScope = None, reason: ReasonOption = None) -> Outcome:
    """Send a schedule's message now. Its occurrences stay as they are.

    Use it to try a schedule, or to make up for an occurrence that was missed.

    \b
    Example:
      clawbus schedule run report
    """
    return _change(invocation, RunSchedule, key, session, reason)


def pause(
    invocation: Invocation, key: KeyArgument, session: SessionScope = None, reason: ReasonOption = None
) -> Outcome:
    """Pause a schedule until `schedule resume`, across restarts.

    Use it while what it asks for would do harm. One of the configuration can be paused too.

    \b
    Example:
      clawbus schedule pause report --reason 'on holiday'
    """
    return _change(invocation, PauseSchedule, key, session, reason)


def resume(
    invocation: Invocation, key: KeyArgument, session: SessionScope = None, reason: ReasonOption = None
) -> Outcome:
    """Resume a paused schedule with its next occurrence. What was due meanwhile does not come.

    Use it after `schedule pause`.

    \b
    Example:
      clawbus schedule resume report
    """
    return _change(invocation, ResumeSchedule, key, session, reason)


def cancel(
    invocation: Invocation, key: KeyArgument, session: SessionScope = None, reason: ReasonOption = None
) -> Outcome:
    """Delete a schedule. Messages that it has sent stay; `message cancel` ends one.

    Use it for a schedule that is over; `schedule pause` keeps it.

    \b
    Example:
      clawbus schedule cancel report
    """
    return _change(invocation, CancelSchedule, key, session, reason)


def _change(invocation: Invocation, verb: type[RowVerb], key: str, session: str | None, reason: str | None) -> Outcome:
    named = _session_of(invocation, key, session)
    steps = (NextAction("clawbus schedule list", "all schedules"),)
    return done(invocation, verb(*named, by=user(), reason=reason, id=key), steps)


def steps_after_put(verb: PutSchedule) -> tuple[NextAction, ...]:
    """Return what is worth doing after a schedule was added."""
    return (
        NextAction(f"clawbus schedule show {verb.id}", "its next occurrences, and what came of the last"),
        NextAction(f"clawbus mailbox {operand(verb.place)}", "its answers"),
    )


def done(invocation: Invocation, verb: RowVerb, steps: tuple[NextAction, ...]) -> Outcome:
    """Execute the verb, and show what it did."""
    from daemon.cli.executor import execute  # noqa: PLC0415

    done = {"agent": verb.agent, "session": verb.session, **execute(invocation, verb)}
    return Outcome(done, lambda console: _show_done(console, type(verb), done), steps)


def _session_of(invocation: Invocation, key: str, session: str | None) -> tuple[str, str]:
    """Return the session of a schedule. Raise UnknownScheduleError, AmbiguousIdError."""
    if session is not None:
        return pair(session, None)
    from daemon.core.errors import AmbiguousIdError, UnknownScheduleError  # noqa: PLC0415
    from daemon.inspect.schedule_list import schedules_report  # noqa: PLC0415

    report = schedules_report(invocation.place.data_dir, SystemClock(), key=key)
    found = [(one["agent"], one["session"]) for one in report["schedules"]]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join("/".join(one) for one in found[:5])
        raise AmbiguousIdError(f"{len(found)} sessions have a schedule {key!r}: {names}.")
    unread = report["not_examined"] + len(report["errors"])
    unseen = f"; {unread} sessions could not be read" if unread else ""
    raise UnknownScheduleError(f"there is no schedule {key!r:.80}{unseen}.")


def _show_done(console: Console, verb: type[RowVerb], done: Mapping[str, Any]) -> None:
    from daemon.cli.present import say, when  # noqa: PLC0415

    what = f"{done['key']} of {done['agent']}/{done['session']}"
    if "message_id" in done:
        say(console, f"{what}: sent message {done['message_id']}")
        return
    words = done["was"] if verb is PutSchedule else _PAST[verb]
    active = done.get("next_at") and done.get("state") != "paused"
    due = f"; next {when(done['next_at'], SystemClock().now_ms())}" if active else ""
    paused = "; it is paused (`clawbus schedule resume`)" if done.get("state") == "paused" else ""
    say(console, f"{what}: {words}{due}{paused}")


def _show_list(console: Console, report: Mapping[str, Any]) -> None:
    from daemon.cli.present import say, table, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    rows = [
        (one["key"], f"{one['agent']}/{one['session']}", one["times"], one["state"],
         when(one["next_at"], now) if one["next_at"] else "-", str(one["sent"]), str(one["failures"] or "-"))
        for one in report["schedules"]
    ]  # fmt: skip
    columns = ("key", "session", "when", "state", "next", "sent", "failing")
    console.print(table(f"{counted(len(rows), 'schedule')}", columns, rows))
    if report["not_examined"]:
        say(console, f"{counted(report['not_examined'], 'session was', 'sessions were')} not examined (no time)")
    say(console, *(f"{one['agent']}/{one['session']} could not be read: {one['error']}" for one in report["errors"]))


def _state(one: Mapping[str, Any]) -> str:
    after = one["paused_after"]
    return f"paused after {after} failures in a row" if after is not None else str(one["state"])


def _show_one(console: Console, one: Mapping[str, Any]) -> None:
    from daemon.cli.present import pairs, table, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    pairs(console, {
        "schedule": one["key"], "session": f"{one['agent']}/{one['session']}", "when": one["times"],
        "missed ones": one["catch_up"], "state": _state(one),
        "next": "; ".join(when(at, now) for at in one["upcoming"]) or "none", "sent": one["sent"],
        "failed in a row": one["failures"], "answers to": one["to"], "says": one["text"], **({"check": one["check"]} if one["check"] is not None else {}),
        "set by": f"{one['changed_by']}, {when(one['changed_at'], now)}",
    })  # fmt: skip
    rows = [
        (when(run["due"], now), run["message_id"] or "-", run["status"] or run["detail"] or "pruned")
        for run in one["runs"]
    ]
    if rows:
        console.print(table("Newest occurrences", ("due", "message", "what came of it"), rows))
