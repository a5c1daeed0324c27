"""The life of one message, as `message show` and `session show --message` print it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation

if TYPE_CHECKING:
    from rich.console import Console


def life(invocation: Invocation, named: tuple[str, str], message: str) -> Outcome:
    """Return every step of a message with its time, from the files. Raise UnknownSessionError, UnknownMessageError."""
    from daemon.inspect.message_life import message_life  # noqa: PLC0415

    found = message_life(invocation.place.data_dir, *named, message)

    def people(console: Console) -> None:
        from daemon.cli.present import briefs, moment, say, table  # noqa: PLC0415

        first = found["life"][0]["at"] if found["life"] else None
        details = briefs(console, [event["detail"] for event in found["life"]])
        rows = [
            (moment(event["at"], first), event["event"], one) for event, one in zip(found["life"], details, strict=True)
        ]
        console.print(table(f"The life of {message} in {'/'.join(named)}", ("when", "what", "detail"), rows))
        say(console, *(f"could not be read: {error}" for error in found["errors"]))

    return Outcome({"source": "files", **found}, people)
