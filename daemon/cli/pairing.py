"""`clawbus pairing list|approve|refuse`: strangers who asked to talk to an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.operator import ReasonOption, user
from daemon.core.clock import SystemClock
from daemon.core.people_verbs import DecidePairing
from daemon.core.printable import counted

if TYPE_CHECKING:
    from rich.console import Console

Code = Annotated[str, typer.Argument(metavar="CODE", help="The code that the stranger got.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Strangers who asked to talk to an agent.\n\n\b\nExample:\n  clawbus pairing list", rich_markup_mode=None
    )
    add(group, "list", list_, path="pairing")
    add(group, "approve", approve, path="pairing")
    add(group, "refuse", refuse, path="pairing")
    add_group(app, group, "pairing")


def list_(
    invocation: Invocation,
    every: Annotated[bool, typer.Option("--all", help="Also those that were decided or have expired.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")] = 100,
) -> Outcome:
    """List the requests of strangers that wait for somebody to decide.

    Use it when a route has `unknown = "ask"`. Compare the code with the one that the person names.

    \b
    Example:
      clawbus pairing list
    """
    from daemon.inspect.people_reading import read_pairings  # noqa: PLC0415

    now = SystemClock().now_ms()
    found = read_pairings(invocation.place.data_dir, now, limit, every=every)

    def people(console: Console) -> None:
        from daemon.cli.present import table, when  # noqa: PLC0415

        rows = [
            (
                one["code"],
                f"{one['channel']}:{one['sender']}",
                one["agent"],
                one["scope"],
                one["state"],
                when(one["asked_at"], now),
            )
            for one in found
        ]
        console.print(table(counted(len(found), "request"), ("code", "who", "agent", "where", "state", "asked"), rows))

    waiting = next((one["code"] for one in found if one["state"] == "waiting"), None)
    steps = () if waiting is None else (NextAction(f"clawbus pairing approve {waiting}", "let the newest in"),)
    return Outcome({"pairings": found}, people, steps)


def approve(
    invocation: Invocation,
    code: Code,
    name: Annotated[
        str | None, typer.Option("--user", metavar="NAME", help="The user that this is; default: a new one.")
    ] = None,
    reason: ReasonOption = None,
) -> Outcome:
    """Let a stranger in, as a member of that agent, in that kind of place (direct chats, or groups) and no other.

    Use it when you know who has the code. What the stranger said before is not kept, and has to be said again.

    \b
    Example:
      clawbus pairing approve 7K2M9QXA --user ann
    """
    return _decide(invocation, DecidePairing(by=user(), reason=reason, code=code, approve=True, user=name))


def refuse(invocation: Invocation, code: Code, reason: ReasonOption = None) -> Outcome:
    """Refuse a stranger. For a week, approvers are not asked about that sender again.

    Use it when you do not know who has the code.

    \b
    Example:
      clawbus pairing refuse 7K2M9QXA
    """
    return _decide(invocation, DecidePairing(by=user(), reason=reason, code=code, approve=False))


def _decide(invocation: Invocation, verb: DecidePairing) -> Outcome:
    from daemon.cli.executor import execute  # noqa: PLC0415

    done = execute(invocation, verb)
    who = f"{done['channel']}:{done['sender']}"
    text = f"{who} is now {done['name']}, member of {done['agent']}" if done["name"] else f"{who} was refused"

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(console, text)

    return Outcome(done, people)
