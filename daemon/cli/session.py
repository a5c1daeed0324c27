"""`clawbus session list|show|stop|kill|release|quarantine|reset|delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.life import life
from daemon.cli.names import AgentArgument, SessionArgument, pair
from daemon.cli.operator import ReasonOption, user
from daemon.cli.sessions import sessions
from daemon.core.clock import SystemClock
from daemon.core.command_words import two_words
from daemon.core.printable import counted
from daemon.core.session_verbs import (
    DeleteSession,
    KillSession,
    QuarantineSession,
    ReleaseSession,
    ResetSession,
    StopSession,
)
from daemon.core.verb import Verb
from schema.errors import HostileFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

_PLACES: Final = 10  # destinations that `session show` names


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="List and show sessions; stop, kill, quarantine, release, reset or delete one.\n\n\b\nExample:\n"
        "  clawbus session show echo demo",
        rich_markup_mode=None,
    )
    add(group, "list", sessions, path="session")
    for name, function in (("show", show), ("stop", stop), ("kill", kill), ("release", release)):
        add(group, name, function, path="session")
    add(group, "quarantine", quarantine, path="session")
    add(group, "reset", reset, path="session")
    add(group, "delete", delete, path="session")
    add_group(app, group, "session")


def show(
    invocation: Invocation,
    agent: AgentArgument,
    session: SessionArgument = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="ID", help="Show the life of this message instead.")
    ] = None,
) -> Outcome:
    """Show one session: its state and why, messages, undelivered answers, containers; or one message's life.

    Use it when an answer does not come: the explanation says what it waits for. It works from the files when the daemon
    is down or hangs; a message's life is always read from the files.

    \b
    Example:
      clawbus session show echo demo
      clawbus session show echo/demo --message 01JD0000000000000000000000
    """
    named = pair(agent, session)
    if message is not None:
        return life(invocation, named, message)
    from daemon.cli.at_work import with_work  # noqa: PLC0415
    from daemon.cli.daemon_status import agents_of, daemon_or_files  # noqa: PLC0415

    def look() -> dict[str, Any]:
        from daemon.inspect.session_report import session_report  # noqa: PLC0415

        return session_report(invocation.place.data_dir, *named, SystemClock(), agents=agents_of(invocation))

    report, source = daemon_or_files(invocation, lambda client: client.session(*named), look)
    (report,) = with_work(invocation, [report])
    steps: tuple[NextAction, ...] = ()
    if report["state"] == "quarantined":
        steps = (
            NextAction(
                f"clawbus session release {two_words(*named)}", "take it out of quarantine, once its cause is repaired"
            ),
        )
        if any(error.startswith(HostileFileError.code) for error in report["errors"]):
            reset = f"clawbus session reset {two_words(*named)} --discard"
            steps += (
                NextAction(reset, "or, if it cannot be repaired, set out/ aside: a release alone would not last"),
            )
    elif report["messages"]:
        newest = report["messages"][0]["id"]
        steps = (
            NextAction(f"clawbus session show {two_words(*named)} --message {newest}", "its newest message's life"),
        )
    return Outcome({"source": source, **report}, lambda console: _show(console, report, source), steps)


def stop(invocation: Invocation, agent: AgentArgument, session: SessionArgument = None) -> Outcome:
    """Ask a session's container to end, without waiting for it.

    Use it to make an agent start afresh: its next message wakes a new container. Nothing is lost; a turn in progress
    may finish.

    \b
    Example:
      clawbus session stop echo demo
    """
    return _execute(invocation, StopSession(*pair(agent, session), by=user()), "stopping", "nothing was running")


def kill(
    invocation: Invocation,
    agent: Annotated[
        str | None, typer.Argument(metavar="AGENT", help="The agent; or AGENT/SESSION in one word.")
    ] = None,
    session: SessionArgument = None,
    every: Annotated[bool, typer.Option("--all", help="Kill every agent of this installation.")] = False,
    reason: ReasonOption = None,
) -> Outcome:
    """Kill a session's container, or with --all every one, and return when each exit is confirmed.

    Use it when `stop` does not help. The message in progress is tried again by a new container; that costs it one try.
    Stop the daemon before --all, or it starts an agent again as soon as a message is due.

    \b
    Example:
      clawbus session kill echo demo --reason 'runs in circles'
      clawbus session kill --all --reason 'uninstall'
    """
    if every == (agent is not None):
        raise typer.BadParameter("name one session (AGENT SESSION), or every agent with --all.")
    if agent is None:
        from daemon.cli.kill_all import kill_all  # noqa: PLC0415

        return kill_all(invocation, reason)
    verb = KillSession(*pair(agent, session), by=user(), reason=reason)
    return _execute(invocation, verb, "killed", "nothing was running")


def release(
    invocation: Invocation, agent: AgentArgument, session: SessionArgument = None, reason: ReasonOption = None
) -> Outcome:
    """Take a session out of quarantine, so that it is worked on again.

    Use it after fixing what `session show` names as the reason; otherwise the session is soon quarantined again.

    \b
    Example:
      clawbus session release echo demo
    """
    verb = ReleaseSession(*pair(agent, session), by=user(), reason=reason)
    return _execute(invocation, verb, "released", "it was not in quarantine")


def quarantine(
    invocation: Invocation, agent: AgentArgument, session: SessionArgument = None, reason: ReasonOption = None
) -> Outcome:
    """Take a session out of service until it is released: its container is killed, its messages are kept.

    Use it when an agent does harm and you need time to look. Messages to it are still accepted.

    \b
    Example:
      clawbus session quarantine echo demo --reason 'writes to everybody'
    """
    verb = QuarantineSession(*pair(agent, session), by=user(), reason=reason)
    return _execute(invocation, verb, "quarantined", "it was in quarantine already")


def reset(
    invocation: Invocation,
    agent: AgentArgument,
    session: SessionArgument = None,
    reason: ReasonOption = None,
    discard: Annotated[
        bool,
        typer.Option("--discard", help="Even if out/ holds answers or finished turns that the host has not recorded."),
    ] = False,
) -> Outcome:
    """Give a session a new out/ folder: its container is killed, the old out/ moved aside, its messages kept.

    Use it when out/ is broken and cannot be repaired. What the agent kept there (its conversation) goes aside with it.
    Unfinished messages are worked on again; that costs them no try.

    \b
    Example:
      clawbus session reset echo demo --reason 'outbound.db is corrupt' --discard
    """
    verb = ResetSession(*pair(agent, session), by=user(), reason=reason, discard=discard)
    return _execute(invocation, verb, "reset", "", reset=True)


def delete(
    invocation: Invocation,
    agent: AgentArgument,
    session: SessionArgument = None,
    reason: ReasonOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it has work, which is then lost. Needs --reason.")
    ] = False,
) -> Outcome:
    """Delete a session for good: its container is stopped, its folder and its registry row go; the mailbox stays.

    Use it when a conversation is over. It refuses while messages are unfinished or answers undelivered. The next message
    to that name begins a new session. `retention.idle_sessions_s` deletes idle sessions by age. It works while the daemon
    is down, too.

    \b
    Example:
      clawbus session delete echo demo
      clawbus session delete echo demo --force --reason 'the customer left'
    """
    if force and not (reason or "").strip():
        raise typer.BadParameter("--force loses work: say why with --reason.")
    verb = DeleteSession(*pair(agent, session), by=user(), reason=reason, force=force)
    return _execute(invocation, verb, "deleted", "")


def _execute(invocation: Invocation, verb: Verb, done: str, nothing: str, **more: object) -> Outcome:
    """Carry out `verb` and return what to show: the word `done` if the result has it as a true field, else `nothing`.

    `more`: fields to add to the result.
    """
    from daemon.cli.executor import execute  # noqa: PLC0415

    named = (verb.agent, verb.session)
    answer = {**more, **execute(invocation, verb)}
    result = {"agent": named[0], "session": named[1], **answer}

    def people(console: Console) -> None:
        from daemon.cli.present import brief, say  # noqa: PLC0415

        rest = {key: value for key, value in answer.items() if key != done}
        say(console, f"{'/'.join(named)}: {done if answer.get(done) else nothing} {brief(rest)}".rstrip())

    step = NextAction(f"clawbus session show {two_words(*named)}", "its state now")
    if isinstance(verb, DeleteSession):
        step = NextAction("clawbus session list", "the sessions that are left")
    return Outcome(result, people, (step,))


def _show(console: Console, report: dict[str, Any], source: str) -> None:
    from daemon.cli.doing import doing  # noqa: PLC0415
    from daemon.cli.present import pairs, pruned, say, usage_text, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    live = report["incarnation"]
    facts: dict[str, object] = {"session": f"{report['agent']}/{report['session']}", "state": report["state"]}
    if said := doing(report, now):
        facts["what"] = said
    facts["container"] = f"{live['container_id']} since {when(live['started_at'], now)}" if live else "none"
    facts["heartbeat"] = when(report["heartbeat_at"], now)
    facts["unfinished"] = "unknown" if report["pending"] is None else report["pending"]
    if said := usage_text(report.get("usage")):
        facts["used"] = said
    if places := report.get("destinations"):
        facts["writes to"] = _writes_to(places)
    facts["folder"] = report["folder"]
    if report.get("out_folder"):
        facts["out/"] = _counted(report["out_folder"])
    if home := report.get("home_folder"):
        facts["home/"] = f"{counted(home['bytes'], 'byte')} in {counted(home['files'], 'file')} and folders"
    if report["pruned"]:
        facts["pruned"] = pruned(report["pruned"], now)
    if source == "files":
        facts["daemon"] = "does not answer (read from the files)"
    pairs(console, facts)
    _tables(console, report, now)
    say(console, *(f"could not be read: {error}" for error in report["errors"]))


def _writes_to(places: list[dict[str, Any]]) -> str:
    """Name the session's destinations: a place with its channel, an agent as one."""
    shown = [
        f"{one['name']} (agent {one['agent_group_id']})"
        if one["type"] == "agent" and one["channel_type"] is None
        else f"{one['name']} ({one['channel_type']}:{one['platform_id']})"
        for one in places[:_PLACES]
    ]
    return ", ".join([*shown, *([f"and {len(places) - _PLACES} more"] if len(places) > _PLACES else [])])


def _counted(use: dict[str, Any]) -> str:
    """Show what the last sweep counted in out/. Deleted files that are still open count only if their processes are visible."""
    deleted = use["deleted_bytes"]
    open_files = (
        "deleted files not visible from here" if deleted is None else f"{counted(deleted, 'byte')} in deleted files"
    )
    return f"{counted(use['bytes'], 'byte')} in {counted(use['files'], 'file')} and folders; {open_files}"


def _tables(console: Console, report: dict[str, Any], now: int) -> None:
    from daemon.cli.present import brief, short_ids, table, when  # noqa: PLC0415

    ids = short_ids(console, [one["id"] for one in report["messages"]])
    messages = [
        (
            short,
            one["status"],
            one.get("attempts", one["tries"]),
            when(one["timestamp"], now),
            one["text"],
            f"{one['last_event']['event']} {brief(one['last_event']['detail'])}" if one["last_event"] else "",
        )
        for one, short in zip(report["messages"], ids, strict=True)
    ]
    if messages:
        columns = ("id", "status", "attempts", "accepted", "text", "last event")
        console.print(table("Messages, newest first", columns, messages))
    answers = short_ids(console, [one["message_out_id"] for one in report["undelivered"]])
    undelivered = [
        (
            short,
            _sent(one, now),
            one["destination"],
            one["attempts"],
            when(one["next_attempt_at"], now),
            one["last_error"],
        )
        for one, short in zip(report["undelivered"], answers, strict=True)
    ]
    if undelivered:
        columns = ("answer", "state", "to", "attempts", "next attempt", "last error")
        console.print(table("Undelivered answers", columns, undelivered))
    containers = [
        (one["id"], when(one["created_at"], now), when(one["ended_at"], now), one["exit_code"], one["end_reason"])
        for one in report["incarnations"]
    ]
    if containers:
        console.print(table("Containers", ("incarnation", "made", "ended", "exit", "why"), containers))


def _sent(answer: Mapping[str, Any], now: int) -> str:
    """Return an answer's state in the words of `delivery list`: if its agent wants it sent later, it is scheduled, not queued."""
    waits = answer["state"] == "queued" and (answer["next_attempt_at"] or 0) > now
    return "scheduled" if waits else str(answer["state"])
