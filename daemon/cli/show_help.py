"""`clawbus help [COMMAND]`: what `--help` prints, for a command that is named in words."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from daemon.cli.command import add
from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.man_page import man_page


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "help", help_)


def help_(
    invocation: Invocation,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="The command's words; none for the list of all.")
    ] = None,
    man: Annotated[bool, typer.Option("--man", help="The manual page of all commands, for `man -l -`.")] = False,
) -> Outcome:
    """Show what a command is for, its options and an example.

    Use it as `--help`, which every command takes.

    \b
    Example:
      clawbus help
      clawbus help session show
      clawbus help --man | man -l -
    """
    from importlib import metadata  # noqa: PLC0415

    context = _context_of(invocation.context.find_root(), command or [])
    text = man_page(metadata.version("clawbus"), every_help(context)).rstrip() if man else str(context.get_help())
    return Outcome({"help": text}, text=text)


def every_help(context: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and the help of a command and of all below it."""
    yield context.command_path, str(context.get_help())
    for name, child in getattr(context.command, "commands", {}).items():
        yield from every_help(context.command.context_class(child, info_name=name, parent=context))


def _context_of(context: Any, words: list[str]) -> Any:
    """Return the context of the command that the words name. Raise a usage error."""
    for word in words:
        children: dict[str, Any] = getattr(context.command, "commands", {})
        if word not in children:
            close = get_close_matches(word, list(children))
            meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise typer.BadParameter(f"`{context.command_path}` has no command {word!r}.{meant}")
        context = context.command.context_class(children[word], info_name=word, parent=context)
    return context
