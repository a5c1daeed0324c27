"""The agents that the daemons of the tests are configured with."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PROGRAM: Final = Path(__file__).with_name("agent_program.py")

ECHO: Final = """
[agents.echo]
provider = "echo"
"""


def command_agent(name: str, command: Sequence[str], timeout_s: float = 60.0) -> str:
    """An [agents.NAME] table with a program."""
    return (
        f'\n[agents.{name}]\nprovider = "command"\ncommand = {json.dumps(list(command))}\ntimeout_s = {timeout_s:g}\n'
    )


def obedient(name: str = "prog", timeout_s: float = 60.0) -> str:
    """An agent that does what its messages say: see agent_program.py."""
    return command_agent(name, (sys.executable, "-I", "-S", str(PROGRAM)), timeout_s)
