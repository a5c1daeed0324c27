"""The outcome that every command returns, printed as one JSON envelope or as text for people.

The envelope is {ok, command, result, error?, fix?, next_actions}. Scripts and agents rely on its shape; keep it stable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from daemon.cli.output import shows
from daemon.core.printable import escape_json
from schema.errors import ClawbusError
from schema.frozen import frozen

if TYPE_CHECKING:
    from rich.console import Console

USAGE: Final = 2
INTERRUPTED: Final = 130


@frozen
class NextAction:
    """A command that the reader may want to run next."""

    command: str
    description: str


@frozen
class Problem:
    """Why a command failed, and how to fix it."""

    code: str
    message: str
    fix: str


@frozen
class Outcome:
    """A command's outcome. `people` prints the result to a terminal; without it, only the next actions are printed."""

    result: Mapping[str, Any] | None = None
    people: Callable[[Console], None] | None = None
    next_actions: tuple[NextAction, ...] = ()
    problem: Problem | None = None
    exit_code: int | None = None  # None: 0 when ok, else 1
    text: str | None = None  # printed unchanged in place of `people`, without the console, which is slow to import
    steps_shown: bool = False  # `people` prints the fix and the next actions itself
    silent: bool = False  # the command has already written all its output

    @property
    def code(self) -> int:
        """The process's exit code: 0 only when ok."""
        if self.problem is None:
            return self.exit_code or 0
        return self.exit_code or 1


def interrupted(message: str) -> Problem:
    """Return the problem for Ctrl-C in the middle of a command that has something to report. Its exit code is INTERRUPTED."""
    return Problem("INTERRUPTED", message, "Go on with the commands below, or send again with the same --id.")


def problem_of(error: ClawbusError) -> Problem:
    """Convert an error to code, message and fix. An error from the daemon keeps the daemon's code."""
    remote = getattr(error, "remote_code", None)
    return Problem(remote if isinstance(remote, str) else error.code, str(error), error.hint)


def envelope(command: str, outcome: Outcome) -> dict[str, Any]:
    """Return the envelope as a dictionary."""
    body: dict[str, Any] = {"ok": outcome.problem is None, "command": command, "result": outcome.result}
    if outcome.problem is not None:
        body["error"] = {"code": outcome.problem.code, "message": outcome.problem.message}
        body["fix"] = outcome.problem.fix
    body["next_actions"] = [{"command": one.command, "description": one.description} for one in outcome.next_actions]
    return body


def to_json(value: object) -> str:
    """Return one line of JSON that is safe on a terminal: control bytes and text-direction characters are escaped.

    It is all ASCII when standard output's encoding lacks one of its characters.
    """
    text = json.dumps(value, ensure_ascii=False, default=str, separators=(", ", ": "))
    if not shows(text):  # a lone surrogate, or standard output is ASCII or Latin-1
        text = json.dumps(value, default=str, separators=(", ", ": "))
    return escape_json(text)
