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
    typer.Option("--agent", "-a", metavar="NAME", help="An [agents.NAME] of the configuration; or --session A/S."),
]
SessionOption = Annotated[
    str, typer.Option("--session", "-s", metavar="NAME", help="The session; a new name makes one. Or AGENT/SESSION.")
]


def addressed(agent: str | None, session: str) -> tuple[str, str]:
    """Return (agent, session) of a message to send; without an agent the session is AGENT/SESSION. Raise a usage error.

    A session's name may hold a slash itself, so that with an agent it is taken as it is.
    """
    if agent is not None:
        if session.startswith(f"{agent}/"):  # a valid name, and more often a slip
            progress(
                f"note: with --agent this is the session {agent}/{session}; --session {session} alone is another one."
            )
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
