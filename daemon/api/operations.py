"""The operations that the daemon offers to its operator: the protocol between the control API and the rest.

The API (api.py) turns HTTP into these calls and errors into envelopes; it decides nothing. An implementation
raises ClawbusError for a refusal and never returns success for something it did not do.
"""

from __future__ import annotations

from typing import Any, Protocol

from daemon.channels.protocol import Accepted, Incoming, PlaceMessage, Routed
from daemon.core.verb import AnyVerb
from daemon.store.mailbox import MailboxEntry


class Operations(Protocol):
    """The daemon as an operator sees it.

    Every dictionary holds only what JSON can hold; times are epoch milliseconds.
    """

    async def accept(self, incoming: Incoming) -> Accepted:
        """Store a message and return once it is durable. Raise the errors of the ingress; then nothing is stored."""
        ...

    async def event(self, message: PlaceMessage) -> Routed:
        """Route an event of a place, and return once every message is durable. See channels.protocol.Intake."""
        ...

    async def wait_reply(
        self,
        agent: str,
        session: str,
        message_id: str,
        timeout_s: float,
        after: int | None = None,
        accepted_at: int | None = None,
    ) -> MailboxEntry | None:
        """Return the first mailbox entry that answers this message, or None after `timeout_s` seconds.

        An answer that exists already is returned at once. With `after` (a cursor), what was said in the middle of the
        turn is returned too. `accepted_at` is `mailbox_top` from before the message was accepted for the first time.
        """
        ...

    @property
    def mailbox_top(self) -> int | None:
        """The highest cursor of all mailboxes; None while it is unknown."""
        ...

    async def read_mailbox(self, mailbox: str, after: int, limit: int, wait_s: float) -> list[MailboxEntry]:
        """Return up to `limit` entries with a cursor above `after`, oldest first. Wait up to `wait_s` seconds for the first."""
        ...

    async def status(self) -> dict[str, Any]:
        """Return `inspect.status_report.status_report` plus a key `live`.

        `live` holds pid, version, started_at, runtime {name, state}, degraded [{what, since, why}], running [{agent, session, incarnation,
        container_id}], waiting_spawns [AGENT/SESSION], last_sweep {at, duration_ms, sessions, errors} or None, clock
        {jumped_at, by_ms}.
        """
        ...

    async def check_holders(self) -> None:
        """Look up again who holds the locks that block work on sessions, before an answer names them."""
        ...

    def live(self) -> dict[str, Any]:
        """Return the part `live` of the status alone, from memory, without reading any file."""
        ...

    async def sessions(self) -> list[dict[str, Any]]:
        """Return what `inspect.session_report.sessions_report` returns."""
        ...

    async def session(self, agent: str, session: str) -> dict[str, Any]:
        """Return what `inspect.session_report.session_report` returns. Raise UnknownSessionError."""
        ...

    async def execute(self, verb: AnyVerb) -> dict[str, Any]:
        """Carry out an operator's verb and return its result, as the verb says it.

        A refusal raises before anything has changed. NotConfirmedError: a container's exit was not confirmed in time.
        """
        ...

    async def dead_letters(
        self,
        session: tuple[str, str] | None,
        letter_id: str | None,
        limit: int,
        *,
        code: str | None = None,
        oldest_first: bool = False,
    ) -> dict[str, Any]:
        """Return what `inspect.dead_reading.dead_letters_report` returns. Raise UnknownSessionError."""
        ...

    async def dead_letter(self, agent: str, session: str, letter_id: str) -> dict[str, Any]:
        """Return what `inspect.dead_reading.dead_letter_report` returns. Raise UnknownSessionError, UnknownMessageError."""
        ...
