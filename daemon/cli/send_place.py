"""`clawbus send --place`: something is said at a place of the local channel, and the routes decide who hears it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.attached_files import read_files
from daemon.cli.envelope import NextAction, Outcome, Problem, problem_of
from daemon.cli.invocation import Invocation
from daemon.cli.patience import insist
from daemon.cli.same_place import operand
from daemon.core.clock import SystemClock
from daemon.core.errors import DaemonSilentError, LostAnswerError
from schema.frozen import frozen
from schema.ids import new_id

if TYPE_CHECKING:
    from rich.console import Console

PlaceOption = Annotated[
    str | None, typer.Option("--place", metavar="PLACE", help="Say it there instead: routes name the agents.")
]
ThreadOption = Annotated[str | None, typer.Option("--thread", metavar="THREAD", help="With --place: the thread.")]
SenderOption = Annotated[str | None, typer.Option("--sender", metavar="ID", help="With --place: who says it.")]
MentionOption = Annotated[bool, typer.Option("--mention", help="With --place: the agent is mentioned.")]
DirectOption = Annotated[bool, typer.Option("--direct", help="With --place: only one person is there.")]


@frozen
class LocalEvent:
    """What the options say. `message_id` is the event's id; None for a new one."""

    message_id: str | None
    place: str
    thread: str | None
    sender: str | None
    mention: bool
    direct: bool
    not_after: int | None
    files: Sequence[Path] = ()


def send_to_place(invocation: Invocation, text: str, event: LocalEvent) -> Outcome:
    """Send the event, and show which agents it reached. If it reached none, fail with each reason."""
    identity = event.message_id or new_id(SystemClock().now_ms())
    files = {"files": read_files(event.files, invocation.config)} if event.files else {}
    said = {
        "id": identity, "place": event.place, "text": text, "thread": event.thread, "sender": event.sender,
        "mention": event.mention, "direct": event.direct, "not_after": event.not_after, **files,
    }  # fmt: skip
    with invocation.client() as client:
        try:
            done = insist(invocation, lambda: client.event(said))
        except (DaemonSilentError, LostAnswerError) as error:
            problem = problem_of(error)
            message = (
                f"{problem.message.rstrip('.')}; event {identity} may have been accepted: send it again with this --id."
            )
            return Outcome({"event": identity, "place": event.place}, problem=replace(problem, message=message))
    result = {"event": identity, "place": event.place, **done}
    steps = (NextAction(f"clawbus mailbox {operand(event.place)}", "read the answers"),)
    if not done["messages"]:
        why = "; ".join(f"{one['reason']}: {one['why']}" for one in done["refused"])
        why += "".join(f"; tell an approver the code {one['code']}" for one in done["refused"] if one["code"])
        asked = any(one["code"] for one in done["refused"])
        fix = "`clawbus pairing list` shows who asks." if asked else "`clawbus route list` shows the routes."
        problem = Problem("NOBODY_REACHED", f"the event reached no agent. {why}.", fix)
        return Outcome(result, problem=problem, next_actions=(NextAction("clawbus route log", "what was refused"),))

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        for one in done["messages"]:
            again = ", it was there already" if one["duplicate"] else ""
            of = (
                f", made of event {event.message_id}" if event.message_id else ""
            )  # an event may become several messages
            say(console, f"accepted {one['message_id']} ({one['agent']}/{one['session']}{again}{of})")
        for one in done["refused"]:
            say(console, f"not {one['agent']}: {one['reason']}: {one['why']}")

    return Outcome(result, people, steps)
