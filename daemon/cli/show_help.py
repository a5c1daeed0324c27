"""`clawbus help [COMMAND]`: what `--help` prints, for a command that is named in words; or what a code, a state or a log event means."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import resources
from typing import Annotated, Any, cast

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
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND]...", help="A command's words, or a code, state or log event; none for the list of all."
        ),
    ] = None,
    man: Annotated[bool, typer.Option("--man", help="The manual page of all commands, for `man -l -`.")] = False,
) -> Outcome:
    """Show what a command is for, its options and an example; or what a code, state or log event means.

    Use it to find a command, or after an error. Every command also takes `--help`.

    \b
    Example:
      clawbus help
      clawbus help session show
      clawbus help DELIVERY_PERMANENT
      clawbus help backing_off
      clawbus help container_stuck
      clawbus help --man | man -l -
    """
    from importlib import metadata  # noqa: PLC0415

    words = command or []
    root = invocation.context.find_root()
    if not man and len(words) == 1 and words[0] not in root.command.commands:
        return _explained(words[0], root.command.commands)
    context = _context_of(root, words)
    text = man_page(metadata.version("clawbus"), every_help(context)).rstrip() if man else str(context.get_help())
    return Outcome({"help": text}, text=text)


def every_help(context: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and the help of a command and of all below it."""
    yield context.command_path, str(context.get_help())
    for name, child in getattr(context.command, "commands", {}).items():
        yield from every_help(context.command.context_class(child, info_name=name, parent=context))


def _explained(word: str, commands: Iterable[str]) -> Outcome:
    """Return what a code, a state or a log event means. Raise a usage error for an unknown word."""
    codes = cast("dict[str, list[str]]", json.loads(_text("error_codes.json")))
    events = log_events()
    code, event = word.upper().replace("-", "_"), word.lower()
    if code not in codes and event not in events:
        # Codes are written in capitals, commands and events are not: a slip is looked for among its own kind first.
        as_code = get_close_matches(code, list(codes), cutoff=0.7)
        as_name = get_close_matches(word.lower(), [*commands, *events])
        close = (as_code or as_name) if word.isupper() else (as_name or as_code)
        meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else " docs/error-codes.md lists the codes."
        raise typer.BadParameter(f"there is no command, code or log event {word!r}.{meant}")
    what, hint = codes.get(code, ("", ""))
    names, meaning = events.get(event, ("", ""))
    lines = [
        f"{code}: {what}" if what else "",
        f"fix: {hint}" if hint else "",
        f"{names} (log): {meaning}" if names else "",
    ]
    result = {"code": code if what else event, "what": what or meaning, "hint": hint}
    return Outcome({**result, "log_event": meaning} if names else result, text="\n".join(filter(None, lines)))


def log_events() -> dict[str, tuple[str, str]]:
    """Return for each log event the events that are explained with it, itself included, and the explanation."""
    areas = cast("dict[str, dict[str, str]]", tomllib.loads(_text("log_events.toml")))
    rows = [row for area in areas.values() for row in area.items()]
    return {event: (names, meaning) for names, meaning in rows for event in names.split(", ")}


def _text(name: str) -> str:
    return resources.files("daemon.cli").joinpath(name).read_text(encoding="utf-8")


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
