"""Who asks for a repair, for the history; and the session that a message belongs to."""

from __future__ import annotations

import os
import pwd
from typing import Annotated

import typer

from daemon.cli.command import Invocation
from daemon.cli.names import pair
from daemon.core.errors import AmbiguousIdError, UnknownMessageError

ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; goes into the history.")]
SessionScope = Annotated[
    str | None, typer.Option("--session", "-s", metavar="A/S", help="Only of this session, AGENT/SESSION.")
]


def user() -> str:
    """Return the unix user, and who became it through sudo."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    before = os.environ.get("SUDO_USER")
    return f"{name} (sudo by {before[:64]})" if before else name


def session_of(invocation: Invocation, message_id: str, session: str | None) -> tuple[str, str]:
    """Return the session of a message: the named one, or the only one that has it. Raise UnknownMessageError."""
    if session is not None:
        return pair(session, None)
    from daemon.inspect.session_reading import open_inbound  # noqa: PLC0415
    from daemon.store.data_folder import Layout  # noqa: PLC0415
    from daemon.store.rebuild import found_sessions  # noqa: PLC0415
    from schema.errors import ClawbusError  # noqa: PLC0415
    from schema.ids import session_path  # noqa: PLC0415
    from schema.layout import SessionFolder  # noqa: PLC0415

    sessions_dir = Layout(invocation.config.data_dir).sessions_dir
    found: list[tuple[str, str]] = []
    unread = 0
    for key in sorted(found_sessions(sessions_dir)):
        try:
            with open_inbound(SessionFolder(session_path(sessions_dir, *key))) as db:
                if db.one("SELECT 1 FROM messages_in WHERE id = ?", (message_id,)) is not None:
                    found.append(key)
        except ClawbusError:
            unread += 1
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join("/".join(one) for one in found)
        raise AmbiguousIdError(f"several sessions have a message {message_id!r}: {names}.")
    unseen = f"; {unread} sessions could not be read" if unread else ""
    raise UnknownMessageError(f"no session has a message {message_id!r}{unseen}.")
