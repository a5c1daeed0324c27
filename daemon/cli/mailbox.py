"""`clawbus mailbox`: answers that were delivered on the `local` channel, by cursor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from daemon.cli.answers import as_result, file_lines, lines_of, question_of
from daemon.cli.command import add
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.same_place import operand
from daemon.core.clock import SystemClock

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.store.mailbox import MailboxEntry


_MAX_NAMES: Final = 10
_FROM_FILES: Final = "(the daemon does not answer: read from the files)"


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "mailbox", mailbox)


def mailbox(
    invocation: Invocation,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The mailbox.")] = "cli",
    after: Annotated[
        int, typer.Option("--after", metavar="CURSOR", min=0, help="Show only entries after this cursor.")
    ] = 0,
    last: Annotated[
        int | None,
        typer.Option("--last", min=1, max=1000, help="Show only this many, the newest; --follow starts there."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many, oldest first.")
    ] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing what arrives (JSON: one entry a line).")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Save the files that came with the answers here.")
    ] = None,
) -> Outcome:
    """Read a mailbox: the answers to what was sent with `send`, including those that no command waited for.

    Use it with --after to read only what is new: the result's next_after is the cursor to give next time. Reading
    removes nothing.

    \b
    Example:
      clawbus mailbox cli --last 10
      clawbus mailbox cli --after 42
      clawbus mailbox cli --follow --save .
    """
    if last is not None:
        if after:
            raise typer.BadParameter("--last counts from the end: leave --after out.")
        after, limit = _before_newest(invocation, name, last), last
    if follow:
        _follow(invocation, name, after, limit, save)
    entries, source = _read(invocation, name, after, limit, 0.0)
    cursor = entries[-1].cursor if entries else after
    results = _results(invocation, entries, save)
    result = {"source": source, "mailbox": name, "entries": results, "next_after": cursor}

    empty = ""
    if not entries:
        empty = f"mailbox {name} holds nothing" + (f" after cursor {after}." if after else f".{_others(invocation)}")

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        for entry, answer in zip(entries, results, strict=True):
            _print(console, entry, answer)
        say(console, *filter(None, [empty, _FROM_FILES if source == "files" else ""]))

    more = (
        (NextAction(f"clawbus mailbox --after {cursor} {operand(name)}", "what came after these"),) if entries else ()
    )
    return Outcome(result, people, more)


def _before_newest(invocation: Invocation, name: str, count: int) -> int:
    from daemon.inspect.mailbox_reading import before_newest  # noqa: PLC0415

    return before_newest(invocation.place.data_dir, name, count)


def _others(invocation: Invocation) -> str:
    """Return a sentence that names the mailboxes with entries: the given name may be mistyped."""
    from daemon.inspect.mailbox_reading import known_mailboxes  # noqa: PLC0415

    names = known_mailboxes(invocation.place.data_dir, _MAX_NAMES + 1)
    more = ", ..." if len(names) > _MAX_NAMES else ""
    return f" Mailboxes with entries: {', '.join(names[:_MAX_NAMES])}{more}." if names else ""


def _results(invocation: Invocation, entries: Sequence[MailboxEntry], save: Path | None) -> list[dict[str, Any]]:
    results = [as_result(entry) for entry in entries]
    if save is not None:
        from daemon.cli.saved_files import save_files  # noqa: PLC0415

        save_files(invocation, results, save)
    return results


def _follow(invocation: Invocation, name: str, after: int, limit: int, save: Path | None) -> None:
    """Print entries as they come, until interrupted."""
    console = None if invocation.json else invocation.console()
    while True:
        entries, source = _read(invocation, name, after, limit, 30.0)
        for entry, answer in zip(entries, _results(invocation, entries, save), strict=True):
            if console is None:
                invocation.emit(answer)
            else:
                _print(console, entry, answer)
        after = entries[-1].cursor if entries else after
        if not entries and source == "files":
            time.sleep(1.0)


def _read(invocation: Invocation, name: str, after: int, limit: int, wait_s: float) -> tuple[list[MailboxEntry], str]:
    from daemon.cli.daemon_status import daemon_or_files  # noqa: PLC0415

    def look() -> list[MailboxEntry]:
        from daemon.inspect.mailbox_reading import mailbox_entries  # noqa: PLC0415

        return mailbox_entries(invocation.place.data_dir, name, after, limit)

    return daemon_or_files(invocation, lambda client: client.read_mailbox(name, after, limit, wait_s), look)


def _print(console: Console, entry: MailboxEntry, answer: dict[str, Any]) -> None:
    from daemon.cli.present import say, say_block, when  # noqa: PLC0415

    reply = f" in reply to {entry.in_reply_to}" if entry.in_reply_to else ""
    time_text = when(entry.delivered_at, SystemClock().now_ms())
    say(console, f"[{entry.cursor}] {time_text} {entry.agent}/{entry.session}{reply}")
    if question_of(answer) is not None:
        for line in lines_of(answer):
            say_block(console, line, "    ")
        return
    say_block(console, answer["text"], f"    {'error: ' if answer['error'] is not None else ''}")
    for line in file_lines(answer):
        say_block(console, line, "    ")
