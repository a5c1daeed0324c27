"""`clawbus message cancel|retry`: one message, by an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.command import Invocation, add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.operator import ReasonOption, SessionScope, session_of, user
from daemon.core.command_words import two_words
from daemon.core.commands import CancelMessage, RetryMessage, RowVerb

if TYPE_CHECKING:
    from rich.console import Console

MessageArgument = Annotated[str, typer.Argument(metavar="ID", help="A message's id.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Cancel a message, or have it tried again.\n\n\b\nExample:\n"
        "  clawbus message retry 01JD0000000000000000000000",
        rich_markup_mode=None,
    )
    add(group, "cancel", cancel, path="message")
    add(group, "retry", retry, path="message")
    add_group(app, group, "message")


def cancel(
    invocation: Invocation,
    message: MessageArgument,
    session: SessionScope = None,
    reason: ReasonOption = None,
    kill: Annotated[
        bool, typer.Option("--kill", help="Also while a container works on it; the container is killed.")
    ] = False,
) -> Outcome:
    """Cancel a message that is not finished. Its sender is told, with the reason; its series ends.

    Use it for a message that must not be worked on any more. `message retry` sends it on its way again, as a new one.

    \b
    Example:
      clawbus message cancel 01JD0000000000000000000000 --reason 'sent twice'
    """
    named = session_of(invocation, message, session)
    return _execute(invocation, CancelMessage(*named, by=user(), reason=reason, id=message, kill=kill), "cancelled")


def retry(
    invocation: Invocation, message: MessageArgument, session: SessionScope = None, reason: ReasonOption = None
) -> Outcome:
    """Have a message tried now, whatever its back-off; one that was given up or cancelled goes as a new message ID+rN.

    Use it after mending what stopped it. A completed message is not repeated.

    \b
    Example:
      clawbus message retry 01JD0000000000000000000000 --reason 'the disk has room again'
    """
    named = session_of(invocation, message, session)
    return _execute(invocation, RetryMessage(*named, by=user(), reason=reason, id=message), "is tried again")


def _execute(invocation: Invocation, verb: RowVerb, what: str) -> Outcome:
    from daemon.cli.executor import execute  # noqa: PLC0415

    named, message = (verb.agent, verb.session), verb.id
    done = execute(invocation, verb)
    result = {"agent": named[0], "session": named[1], **done}

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        as_ = f" as {done['retried_as']}" if done.get("retried_as") not in (None, message) else ""
        say(console, f"{message} of {'/'.join(named)}: {what}{as_} (it was {done['was']})")

    identity = done.get("retried_as") or message
    step = NextAction(f"clawbus session show {two_words(*named)} --message {identity}", "its life")
    return Outcome(result, people, (step,))
