"""`clawbus send`: sends one message, and with --wait prints its answer.

The command chooses the id before it sends anything. After a lost connection it can send the same message again, and the
message is not stored twice.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.attached_files import read_files
from daemon.cli.command import add
from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.names import AgentOption, addressed
from daemon.cli.send_later import AtOption, EveryOption, ZoneOption, due_at, refuse_beside_every, send_every
from daemon.cli.send_place import (
    DirectOption,
    LocalEvent,
    MentionOption,
    PlaceOption,
    SenderOption,
    ThreadOption,
    send_to_place,
)
from daemon.cli.send_wait import send_and_wait
from daemon.cli.standard_input import read_text, require_text
from daemon.core.clock import SystemClock
from daemon.core.errors import ContentError
from schema.frozen import frozen
from schema.ids import check_message_id, new_id
from schema.instants import from_text

SessionOption = Annotated[
    str | None,
    typer.Option("--session", "-s", metavar="NAME", help="The session, made if it is new; or AGENT/SESSION."),
]
TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="What to say; `-` reads standard input.")]
IdOption = Annotated[
    str | None,
    typer.Option(
        "--id", metavar="ID", help="The message's id, with --place the event's. The same id twice is one message."
    ),
]
WaitOption = Annotated[
    float | None, typer.Option("--wait", "-w", metavar="SECONDS", min=0, help="Wait this long for the answer.")
]
JsonContentOption = Annotated[
    bool, typer.Option("--json-content", help='TEXT is JSON: send it as it is, not as {"text": TEXT}.')
]
ContextOption = Annotated[
    bool, typer.Option("--context", help="Do not wake the agent: it reads this with the next message that does.")
]
MailboxOption = Annotated[str, typer.Option("--mailbox", metavar="NAME", help="The mailbox that the answer goes to.")]
NotAfterOption = Annotated[
    str | None,
    typer.Option("--not-after", metavar="TIME", help="Do not begin it from then on; the mailbox gets a notice."),
]
ExpiresInOption = Annotated[
    str | None,
    typer.Option("--expires-in", metavar="DURATION", help="The same, from now (or --at) on: 90s, 15m, 2h, 3d."),
]
StopLateOption = Annotated[
    bool, typer.Option("--stop-late", help="An agent that still works on it when it expires is asked to stop.")
]
FileOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--file", metavar="PATH", help="Attach this file; repeat it for more. The agent gets a read-only copy."
    ),
]
SaveOption = Annotated[
    Path | None, typer.Option("--save", metavar="DIR", help="With --wait: save the files of the answer here.")
]
NoCreateOption = Annotated[bool, typer.Option("--no-create", help="Refuse if the session does not exist yet.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "send", send)


def send(
    invocation: Invocation,
    text: TextArgument,
    session: SessionOption = None,
    agent: AgentOption = None,
    message_id: IdOption = None,
    wait: WaitOption = None,
    json_content: JsonContentOption = False,
    context: ContextOption = False,
    mailbox: MailboxOption = "cli",
    not_after: NotAfterOption = None,
    expires_in: ExpiresInOption = None,
    stop_late: StopLateOption = False,
    no_create: NoCreateOption = False,
    file: FileOption = None,
    save: SaveOption = None,
    place: PlaceOption = None,
    thread: ThreadOption = None,
    sender: SenderOption = None,
    mention: MentionOption = False,
    direct: DirectOption = False,
    at: AtOption = None,
    every: EveryOption = None,
    timezone: ZoneOption = None,
) -> Outcome:
    """Send a message to an agent's session; with --wait, print its answer.

    Use it from a shell or a script. When it says ok, the message is stored, and survives every crash. If no answer comes
    in time, the message stays accepted: look into the mailbox later.

    \b
    Example:
      clawbus send 'hello' --agent echo --session demo --wait 30
      clawbus send - --agent echo --session demo < question.txt
      clawbus send 'summarise it' -s echo/demo --file report.pdf --wait 60 --save .
      clawbus send 'hello' --place kitchen --sender ann
      clawbus send 'what is due today?' -s echo/demo --at 'tomorrow 9:00'
    """
    words = _Words(text, json_content=json_content)
    expiry = _Expiry(not_after, expires_in, stop_late)
    if place is not None:
        _refuse_beside_place(
            agent, session, wait, expiry, scheduled=(at, every, timezone) != (None, None, None), words=words
        )
        event = LocalEvent(message_id, place, thread, sender, mention, direct, expiry.at(None), tuple(file or ()))
        return send_to_place(invocation, words.text(), event)
    if thread is not None or sender is not None or mention or direct:
        raise typer.BadParameter("--thread, --sender, --mention and --direct belong to --place.")
    if session is None:
        raise typer.BadParameter("name --session AGENT/SESSION, or a --place that a route covers.")
    if save is not None and (wait is None or context):
        raise typer.BadParameter("--save goes with --wait; `clawbus mailbox --save DIR` saves later.")
    agent, session = addressed(agent, session)
    if every is not None:
        refuse_beside_every(
            at=at, file=file, json_content=json_content, context=context, stop_late=stop_late, no_create=no_create,
            wait=wait, not_after=not_after, expires_in=expires_in,
        )  # fmt: skip
        return send_every(invocation, words.text(), (agent, session), every, message_id, mailbox, timezone)
    due = due_at(invocation, at, timezone)
    message = {
        "agent": agent,
        "session": session,
        "content": words.content(),
        "id": check_message_id(message_id) if message_id is not None else new_id(SystemClock().now_ms()),
        "address": {"channel_type": "local", "platform_id": mailbox},
        "trigger": not context,
        "create_session": not no_create,
        "process_after": due,
        **({"files": read_files(file, invocation.config)} if file else {}),
        **expiry.fields(due),
    }
    return send_and_wait(invocation, message, mailbox, None if context else wait, save)


@frozen
class _Words:
    """The TEXT argument. Read standard input, where it is `-`, only when the text is asked for."""

    argument: str
    _: KW_ONLY
    json_content: bool

    def text(self) -> str:
        """Return what to say. Raise a usage error if it is empty."""
        return require_text(self._read())

    def content(self) -> object:
        """Return the message's content. Raise ContentError if it should be JSON and is not."""
        if not self.json_content:
            return {"text": self.text()}
        try:
            return json.loads(self._read())
        except (ValueError, RecursionError) as error:
            hint = "Correct it, or leave --json-content away."
            raise ContentError(f"TEXT is not JSON: {error}.", hint=hint) from error

    def _read(self) -> str:
        return read_text() if self.argument == "-" else self.argument


@frozen
class _Expiry:
    """The options --not-after, --expires-in and --stop-late."""

    not_after: str | None
    expires_in: str | None
    stop_late: bool

    def at(self, due: int | None) -> int | None:
        """Return when a message that is due at `due` (None: now) expires, or None. Both are epoch ms. Raise a usage error."""
        from daemon.cli.durations import span_ms  # noqa: PLC0415

        if self.not_after is not None and self.expires_in is not None:
            raise typer.BadParameter("--not-after and --expires-in say the same; give one of them.")
        if self.expires_in is not None:
            return (SystemClock().now_ms() if due is None else due) + span_ms(self.expires_in)
        instant = from_text(self.not_after)
        if self.not_after is not None and instant is None:
            raise typer.BadParameter(f"{self.not_after!r} is not a time; write an instant like 2026-11-21T02:00Z.")
        return instant

    def fields(self, due: int | None) -> dict[str, Any]:
        """Return the message's fields about its expiry; none if it never expires. Raise a usage error."""
        expires_at = self.at(due)
        if expires_at is not None:
            return {"not_after": expires_at, "stop_late": self.stop_late}
        if self.stop_late:
            raise typer.BadParameter("--stop-late belongs to --expires-in or --not-after.")
        return {}


def _refuse_beside_place(
    agent: str | None, session: str | None, wait: float | None, expiry: _Expiry, *, scheduled: bool, words: _Words
) -> None:
    """Raise a usage error for options that contradict --place."""
    if expiry.stop_late:
        raise typer.BadParameter("--stop-late does not go with --place.")
    if words.json_content:
        raise typer.BadParameter("--json-content does not go with --place: what people say there is text.")
    if agent is not None or session is not None:
        raise typer.BadParameter("--place lets the routes name agent and session: leave --agent and --session out.")
    if wait is not None:
        raise typer.BadParameter("--place may reach several agents: leave --wait out, and read the mailbox.")
    if scheduled:
        raise typer.BadParameter(
            "--at, --every and --timezone go to one session: name --session, and leave --place out."
        )
