"""How the commands take a session, two words (AGENT SESSION) or one (AGENT/SESSION), and whom they say it was."""

from __future__ import annotations

import os
import pwd
from typing import Annotated

import typer

from schema.ids import check_name

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
    return check_name("agent", agent), check_name("session", session)


def operator_name() -> str:
    """The unix user, and who became it through sudo."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    before = os.environ.get("SUDO_USER")
    return f"{name} (sudo by {before[:64]})" if before else name
