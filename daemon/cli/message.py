"""`clawbus message list|show|cancel|retry`: messages, and what an operator does about one."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.life import life
from daemon.cli.names import pair
from daemon.cli.operator import (
    AgentFilter,
    ReasonOption,
    SessionScope,
    SinceFilter,
    known_agent,
    session_of,
    since_of,
    user,
)
from daemon.core.clock import SystemClock
from daemon.core.command_words import two_words
from daemon.core.message_verbs import CancelMessage, RetryMessage
from daemon.core.printable import counted
from daemon.core.verb import RowVerb

if TYPE_CHECKING:
    from rich.console import Console

MessageState = Literal["pending", "completed", "failed", "cancelled", "paused"]
MessageArgument = Annotated[str, typer.Argument(metavar="ID", help="A message's id.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="List messages, show one's life, cancel it, or have it tried again.\n\n\b\nExample:\n"
        "  clawbus message list --state failed",
        rich_markup_mode=None,
    )
    add(group, "list", list_, path="message")
    add(group, "show", show, path="message")
    add(group, "cancel", cancel, path="message")
    add(group, "retry", retry, path="message")
    add_group(app, group, "message")


def list_(
    invocation: Invocation,
    session: SessionScope = None,
    agent: AgentFilter = None,
    state: Annotated[
        MessageState | None, typer.Option("--state", "--status", help="Only those with this status.")
    ] = None,
    since: SinceFilter = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")] = 50,
) -> Outcome:
    """List messages, newest first: status, attempts, when they came, and their text.

    Use it to find a message; `message show` or `run show` then shows its history. `run list` has one line for each try. --since
    is when they came. It reads the files, whether the daemon runs or not.

    \b
    Example:
      clawbus message list --agent echo --state failed --since 8h
    """
    from daemon.inspect.message_list import MessageQuery, messages_report  # noqa: PLC0415

    clock = SystemClock()
    query = MessageQuery(
        session=pair(session, None) if session is not None else None,
        agent=known_agent(invocation, agent),
        status=state,
        since=since_of(since, clock.now_ms()),
        limit=limit,
    )
    report = messages_report(invocation.place.data_dir, clock, query)
    steps: tuple[NextAction, ...] = ()
    if report["messages"]:
        newest = report["messages"][0]
        steps = (NextAction(f"clawbus message show {shlex.quote(newest['id'])}", "the life of the newest one"),)
    return Outcome({"source": "files", **report}, lambda console: _show_list(console, report), steps)


def show(invocation: Invocation, message: MessageArgument, session: SessionScope = None) -> Outcome:
    """Show a message's life: every step with its time, from its acceptance to the receipts of its answers.

    Use it when an answer does not come. `run show` adds what its container wrote and what explains it. It reads the files,
    whether the daemon runs or not.

    \b
    Example:
      clawbus message show 01JD0000000000000000000000
    """
    return life(invocation, session_of(invocation, message, session), message)


def cancel(
    invocation: Invocation,
    message: MessageArgument,
    session: SessionScope = None,
    reason: ReasonOption = None,
    kill: Annotated[
        bool,
        typer.Option("--kill", help="End the container that works on it at once, without asking the agent to stop."),
    ] = False,
) -> Outcome:
    """Cancel a message that is not finished. Its sender is notified, with the reason; its series ends.

    Use it for a message that must not be worked on any more. An agent that works on it is asked to stop; one that has not
    stopped after the agent's cancel_grace_s is ended. `message retry` sends it on its way again, as a new one.

    \b
    Example:
      clawbus message cancel 01JD0000000000000000000000 --reason 'sent twice'
    """
    named = session_of(invocation, message, session)
    verb = CancelMessage(*named, by=user(), reason=reason, id=message, kill=kill)
    return _execute(invocation, verb, "cancelled", "its container was ended" if kill else "its agent was asked to stop")


def retry(
    invocation: Invocation, message: MessageArgument, session: SessionScope = None, reason: ReasonOption = None
) -> Outcome:
    """Try a message now, whatever its back-off; one that was given up or cancelled is sent as a new message ID+rN.

    Use it after fixing what stopped it. A completed message is not repeated.

    \b
    Example:
      clawbus message retry 01JD0000000000000000000000 --reason 'the disk has room again'
    """
    named = session_of(invocation, message, session)
    return _execute(invocation, RetryMessage(*named, by=user(), reason=reason, id=message), "is tried again")


def _execute(invocation: Invocation, verb: RowVerb, what: str, in_work: str = "") -> Outcome:
    from daemon.cli.executor import execute  # noqa: PLC0415

    named, message = (verb.agent, verb.session), verb.id
    done = execute(invocation, verb)
    result = {"agent": named[0], "session": named[1], **done}

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        as_ = f" as {done['retried_as']}" if done.get("retried_as") not in (None, message) else ""
        say(console, f"{message} of {'/'.join(named)}: {what}{as_} (it was {done['was']})")
        if done.get("running"):
            say(console, f"it was being worked on; {in_work}")

    identity = done.get("retried_as") or message
    step = NextAction(f"clawbus session show {two_words(*named)} --message {identity}", "its life")
    return Outcome(result, people, (step,))


def _show_list(console: Console, report: dict[str, Any]) -> None:
    from daemon.cli.present import say, short_ids, table, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    ids = short_ids(console, [one["id"] for one in report["messages"]])
    rows = [
        (
            short,
            f"{one['agent']}/{one['session']}",
            _status(one, now),
            one["attempts"],
            when(one["at"], now),
            one["text"],
        )
        for one, short in zip(report["messages"], ids, strict=True)
    ]
    columns = ("id", "session", "status", "attempts", "accepted", "text")
    console.print(table(f"{counted(report['total'], 'message')}, newest first", columns, rows))
    if report["total"] > len(rows):
        say(console, f"and {report['total'] - len(rows)} more: --limit, or --session")
    if report["not_examined"]:
        say(
            console,
            f"{counted(report['not_examined'], 'session was', 'sessions were')} not examined (no time): --session",
        )
    say(console, *(f"{one['agent']}/{one['session']} could not be read: {one['error']}" for one in report["errors"]))


def _status(one: dict[str, Any], now_ms: int) -> str:
    from daemon.cli.present import age  # noqa: PLC0415

    due = one["process_after"]
    if one["status"] != "pending" or due is None or due <= now_ms:
        return str(one["status"]) if one["trigger"] else f"{one['status']} (context)"
    return f"{'backing_off' if one['tries'] else 'scheduled'}, {age(due - now_ms)}"
