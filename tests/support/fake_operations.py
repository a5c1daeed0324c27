"""A daemon without a bus: `Operations` from memory, served on a real unix socket by a thread with its own event loop."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread

from daemon.api.api import build_api
from daemon.api.server import run
from daemon.channels.protocol import Accepted, Incoming, PlaceMessage, Routed
from daemon.core.errors import (
    IdConflictError,
    NotConfirmedError,
    RowGoneError,
    UnknownAgentError,
    UnknownMessageError,
    UnknownSessionError,
)
from daemon.core.message_verbs import DropDead, RequeueDead
from daemon.core.session_verbs import KillSession, ReleaseSession, StopSession
from daemon.core.verb import AnyVerb, Verb
from daemon.inspect.dead_reading import in_order_of_arrival
from daemon.store.mailbox import MailboxEntry

NOW = 1_763_000_000_000


@dataclass
class FakeOperations:
    """Accepts for the agents `echo` (answers at once), `mute` (never), `broken` (answers with an error)."""

    received: list[Incoming] = field(default_factory=list)
    entries: list[MailboxEntry] = field(default_factory=list)
    actions: list[tuple[str, ...]] = field(default_factory=list)
    letters: list[dict[str, Any]] = field(default_factory=list)
    not_examined: int = 0
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    polls: int = 0
    polls_ended: int = 0
    polling: threading.Event = field(default_factory=threading.Event)
    polling_again: threading.Event = field(default_factory=threading.Event)

    async def accept(self, incoming: Incoming) -> Accepted:
        if incoming.agent not in ("echo", "mute", "broken"):
            raise UnknownAgentError(f"there is no agent {incoming.agent!r}.")
        if incoming.content == "boom":
            raise RuntimeError("a bug with a secret in it")
        if not incoming.create_session:
            raise UnknownSessionError(f"there is no session {incoming.agent}/{incoming.session}.")
        for number, known in enumerate(self.received):
            if known.message_id == incoming.message_id:
                if known.content != incoming.content:
                    raise IdConflictError(f"message id {incoming.message_id!r} was used for other content.")
                return Accepted(str(known.message_id), known.agent, known.session, 2 * number + 2, True, known.address)
        self.received.append(incoming)
        if incoming.agent == "echo" and incoming.trigger:
            self.answer(incoming, incoming.content)
        if incoming.agent == "broken":
            self.answer(incoming, {"error": "exit code 3"})
        return Accepted(
            str(incoming.message_id), incoming.agent, incoming.session, 2 * len(self.received), False, incoming.address
        )

    def answer(self, incoming: Incoming, content: object) -> None:
        assert incoming.address is not None
        cursor = len(self.entries) + 1
        self.entries.append(
            MailboxEntry(
                cursor=cursor,
                mailbox=incoming.address.platform_id,
                message_out_id=f"out-{cursor}",
                agent=incoming.agent,
                session=incoming.session,
                in_reply_to=incoming.message_id,
                kind="chat",
                thread_id=None,
                content=json.dumps(content),
                delivered_at=NOW,
            )
        )

    @property
    def mailbox_top(self) -> int | None:
        return len(self.entries)

    async def wait_reply(
        self,
        agent: str,
        session: str,
        message_id: str,
        timeout_s: float,
        after: int | None = None,
        accepted_at: int | None = None,
    ) -> MailboxEntry | None:
        for entry in self.entries:
            about = (entry.agent, entry.session, entry.in_reply_to) == (agent, session, message_id)
            if about and entry.cursor > (after or 0):
                return entry
        await self._poll(timeout_s)
        return None

    async def read_mailbox(self, mailbox: str, after: int, limit: int, wait_s: float) -> list[MailboxEntry]:
        found = [entry for entry in self.entries if entry.mailbox == mailbox and entry.cursor > after][:limit]
        if not found and wait_s:
            with anyio.move_on_after(wait_s):
                while not found:
                    await anyio.sleep(0.005)
                    found = [entry for entry in self.entries if entry.mailbox == mailbox and entry.cursor > after][
                        :limit
                    ]
        return found

    async def _poll(self, timeout_s: float) -> None:
        self.polls += 1
        self.polling.set()
        if self.polls > 1:
            self.polling_again.set()
        try:
            with anyio.move_on_after(timeout_s):
                await anyio.sleep_forever()
        finally:
            self.polls_ended += 1

    async def status(self) -> dict[str, Any]:
        return {
            "data_dir": "/data",
            "install_id": "i",
            "at": NOW,
            "sessions": {"total": 1, "working": 1},
            "queues": {
                "pending": 2,
                "scheduled": 1,
                "oldest_pending_age_ms": 90_000,
                "undelivered": 0,
                "oldest_undelivered_age_ms": None,
                "failed": 1,
                "dead": 0,
                "dead_letters": 1,
            },
            "incarnations": [],
            "attention": [
                {"agent": "echo", "session": "demo", "state": "idle", "explanation": "Message m1 was \x1b[31mgiven up."}
            ],
            "attention_total": 1,
            "not_examined": 0,
            "live": {
                "pid": 7,
                "version": "0.1.0",
                "started_at": NOW,
                "runtime": {"name": "process", "state": "ok"},
                "degraded": [{"what": "docker", "since": NOW, "why": "does not answer"}],
                "running": [],
                "waiting_spawns": ["echo/a", "echo/b", "echo/c"],
                "last_sweep": {"at": NOW, "duration_ms": 4, "sessions": 1, "errors": 0},
            },
        }

    async def check_holders(self) -> None:
        return

    def live(self) -> dict[str, Any]:
        return {"pid": 1, "degraded": [], "last_sweep": None, "clock": None}

    async def sessions(self) -> list[dict[str, Any]]:
        return [
            {
                "agent": "echo",
                "session": "demo",
                "state": "working",
                "explanation": None,
                "pending": 1,
                "oldest_pending_at": NOW,
                "undelivered": 0,
                "failed": 0,
                "dead": 0,
            }
        ]

    async def session(self, agent: str, session: str) -> dict[str, Any]:
        raise UnknownSessionError(f"there is no session {agent}/{session}.")

    async def event(self, message: PlaceMessage) -> Routed:
        raise NotImplementedError(message.event.channel)

    async def execute(self, verb: AnyVerb) -> dict[str, Any]:
        if not isinstance(verb, Verb):
            raise NotImplementedError(type(verb).__name__)
        named = (verb.agent, verb.session)
        match verb:
            case StopSession():
                self.actions.append(("stop", *named))
                return {"stopping": True, "incarnation": "inc-1"}
            case KillSession():
                self.actions.append(("kill", *named, verb.reason or "", verb.by))
                if verb.session == "stuck":
                    raise NotConfirmedError("the exit of inc-1 is not confirmed.")
                return {"killed": True, "incarnation": "inc-1", "exit_code": 137}
            case ReleaseSession():
                self.actions.append(("release", *named, verb.reason or "", verb.by))
                return {"released": False, "was": None}
            case RequeueDead():
                self.actions.append(("requeue", *named, verb.id, verb.by, str(verb.reason)))
                if verb.id == "gone":
                    raise RowGoneError("the row of gone is no longer in the session's outbound.db.")
                return {"id": verb.id, "kind": "out", "requeued_as": verb.id}
            case DropDead():
                self.actions.append(("drop", *named, verb.id, verb.by, str(verb.reason)))
                return {"id": verb.id, "kind": "out"}
            case _:
                raise NotImplementedError(type(verb).__name__)

    async def dead_letters(
        self,
        session: tuple[str, str] | None,
        letter_id: str | None,
        limit: int,
        *,
        code: str | None = None,
        oldest_first: bool = False,
    ) -> dict[str, Any]:
        found = [one for one in self.letters if letter_id in (None, one["id"]) and code in (None, one["code"])]
        found = [one for one in found if session in (None, (one["agent"], one["session"]))]
        if oldest_first:
            found = in_order_of_arrival(found, limit)
        return {
            "letters": found[:limit], "total": len(found), "not_examined": self.not_examined, "errors": self.unreadable,
        }  # fmt: skip

    async def dead_letter(self, agent: str, session: str, letter_id: str) -> dict[str, Any]:
        raise UnknownMessageError(f"there is no message {letter_id!r} in {agent}/{session}.")


@contextmanager
def serving(operations: FakeOperations, path: Path) -> Generator[None]:
    """A control server on `path` in a thread of its own."""
    with anyio.from_thread.start_blocking_portal("asyncio") as portal:
        future, _ = portal.start_task(run_on, operations, path)
        try:
            yield
        finally:
            future.cancel()


async def run_on(operations: FakeOperations, path: Path, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await run(build_api(operations, max_body_bytes=100_000), path, task_status=task_status)
