"""Shared by the operator's commands: who asks, for the history; the session of an id; a verb carried out on several rows."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.envelope import Problem, problem_of
from daemon.cli.invocation import Invocation
from daemon.cli.names import pair
from daemon.core.errors import DaemonDownError, DaemonSilentError, UnknownAgentError
from daemon.core.printable import counted
from schema.errors import ClawbusError

if TYPE_CHECKING:
    from daemon.core.verb import RowVerb

ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; goes into the history.")]
SessionScope = Annotated[
    str | None, typer.Option("--session", "-s", metavar="A/S", help="Only of this session, AGENT/SESSION.")
]

AgentFilter = Annotated[str | None, typer.Option("--agent", "-a", metavar="NAME", help="Only of this agent.")]
SinceFilter = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Only since then: 90s, 15m, 2h, 3d ago, or an instant.")
]


def since_of(text: str | None, now_ms: int) -> int | None:
    """Return the instant of a filter, epoch ms, None for none. Raise a usage error."""
    from daemon.cli.durations import since_ms  # noqa: PLC0415

    return since_ms(text, now_ms) if text is not None else None


def known_agent(invocation: Invocation, agent: str | None) -> str | None:
    """Return the agent of a filter, None for none. Raise UnknownAgentError for one without a table and without a session."""
    if agent is None:
        return None
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415

    config = invocation.config
    known = {*config.agents, *(name for name, _ in read_central(config.data_dir).known())}
    if agent in known:
        return agent
    close = get_close_matches(agent, known)
    advice = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known)[:10]) or 'none'}."
    raise UnknownAgentError(f"there is no agent {agent!r}; {advice}", hint="Name one that `clawbus agent list` lists.")


def user() -> str:
    """Return the unix user, and who became it through sudo."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    # Anybody can set this variable, to bytes that no history can hold, too.
    before = os.environ.get("SUDO_USER", "").encode("utf-8", "backslashreplace").decode()
    return f"{name} (sudo by {before[:64]})" if before else name


def session_of(invocation: Invocation, message_id: str, session: str | None) -> tuple[str, str]:
    """Return the session of a message: the named one, or the only one that has it. Raise UnknownMessageError, AmbiguousIdError."""
    if session is not None:
        return pair(session, None)
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415
    from daemon.inspect.finding import sessions_with, the_only  # noqa: PLC0415

    data_dir = invocation.place.data_dir
    found, unread = sessions_with(data_dir, read_central(data_dir).known(), message_id)
    return the_only(found, "a message", message_id, unread=unread)


def carry_out(
    invocation: Invocation,
    verb: Callable[[tuple[str, str], str], RowVerb],
    chosen: Iterable[tuple[tuple[str, str] | None, str]],
    find: Callable[[str], tuple[str, str]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Problem | None]:
    """Carry out a verb on each row, by (session or None, id): what is refused is reported, and the others are done.

    Returns what was done, what was refused, and the first refusal's problem. `find` finds the session of an id.
    """
    from daemon.cli.executor import executor  # noqa: PLC0415

    done: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    problem: Problem | None = None
    with executor(invocation) as found:
        for scope, identity in chosen:
            try:
                named = scope or find(identity)
                done.append({"agent": named[0], "session": named[1], **found.execute(verb(named, identity))})
            except (DaemonDownError, DaemonSilentError):
                raise
            except ClawbusError as error:
                this = problem_of(error)
                problem = problem or this
                refused.append({"id": identity, "error": {"code": this.code, "message": str(error)}, "fix": error.hint})
    return done, refused, problem


def not_examined(report: Mapping[str, Any], what: str) -> tuple[str, str] | None:
    """Return a problem's message and fix where --all could not mean every one of `what`: sessions were not read."""
    if not (report["not_examined"] or report["errors"]):
        return None
    said = (
        [f"{counted(report['not_examined'], 'session was', 'sessions were')} not examined (no time)"]
        if report["not_examined"]
        else []
    )
    said += [f"{one['agent']}/{one['session']} could not be read ({one['error']})" for one in report["errors"]]
    message = f"{'; '.join(said)}. {what} there were left alone."
    return message, "Repeat it with --session AGENT/SESSION for those sessions."
