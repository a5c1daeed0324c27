"""The arguments that name a session: two words (AGENT SESSION) or one (AGENT/SESSION)."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli.output import progress
from schema.ids import check_name, check_session

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="The agent; or AGENT/SESSION in one word.")]
SessionArgument = Annotated[str | None, typer.Argument(metavar="SESSION", help="The session of that agent.")]
AgentOption = Annotated[
    str | None,
    typer.Option("--agent", "-a", metavar="NAME", help="A configured agent; not needed with --session AGENT/SESSION."),
]
SessionOption = Annotated[
    str, typer.Option("--session", "-s", metavar="NAME", help="The session, made if it is new; or AGENT/SESSION.")
]


def addressed(agent: str | None, session: str) -> tuple[str, str]:
    """Return (agent, session) for a message to send. Without `agent`, split `session` at its first slash.

    A session's name may contain slashes, so with `agent` it is taken as it is. Raise a usage error.
    """
    if agent is not None:
        if session.startswith(f"{agent}/"):  # valid, but usually a slip
            progress(f"note: this is session {agent}/{session}; for session {session}, leave out --agent.")
        return agent, session
    agent, slash, name = session.partition("/")
    if not slash or not agent or not name:
        raise typer.BadParameter("name the agent too: --agent NAME --session NAME, or --session AGENT/SESSION.")
    return agent, name


def pair(agent: str, session: str | None) -> tuple[str, str]:
    """Return (agent, session), both checked. Raise a usage error or InvalidNameError."""
    if session is None:
        agent, slash, session = agent.partition("/")
        if not slash:
            raise typer.BadParameter(f"{agent!r} is not AGENT/SESSION: name both, the agent and its session.")
    return check_name("agent", agent), check_session(session)
