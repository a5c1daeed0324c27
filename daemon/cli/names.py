"""How the commands take a session: two words (AGENT SESSION) or one (AGENT/SESSION)."""

from __future__ import annotations

from typing import Annotated

import typer

from schema.ids import check_name, check_session

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="The agent; or AGENT/SESSION in one word.")]
SessionArgument = Annotated[str | None, typer.Argument(metavar="SESSION", help="The session of that agent.")]
AgentOption = Annotated[
    str, typer.Option("--agent", "-a", metavar="NAME", help="An [agents.NAME] of the configuration.")
]
SessionOption = Annotated[
    str, typer.Option("--session", "-s", metavar="NAME", help="The session; a new name makes one.")
]


def pair(agent: str, session: str | None) -> tuple[str, str]:
    """(agent, session), both checked. Raises a usage error or InvalidNameError."""
    if session is None:
        agent, slash, session = agent.partition("/")
        if not slash:
            raise typer.BadParameter("name the session too: AGENT SESSION, or AGENT/SESSION.")
    return check_name("agent", agent), check_session(session)
