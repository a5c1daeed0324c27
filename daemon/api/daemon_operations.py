"""Implements the control API's operations in the daemon: reports from the files, the live state, operators' verbs.

A session's files are read only through `Session.call`, so that no other thread has them open at the same time.
"""

from __future__ import annotations

import shlex
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread

from daemon.api.live_status import LiveStatus
from daemon.channels.local import LocalChannel
from daemon.channels.protocol import Accepted, Incoming, PlaceMessage, Routed
from daemon.config.models import Config
from daemon.config.policies import read_limits
from daemon.core.answer_place import check_channel
from daemon.core.clock import Clock
from daemon.core.command_words import two_words
from daemon.core.errors import NoAnswerError, UnknownSessionError
from daemon.core.session_key import SessionKey
from daemon.core.verb import AnyVerb
from daemon.engine.router import Router
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.troubles import Troubles
from daemon.engine.unanswered import unanswered
from daemon.inspect.dead_reading import dead_letter_report, dead_letters_report
from daemon.inspect.session_report import session_report, sessions_report
from daemon.inspect.status_report import status_report
from daemon.maintenance.daemon_executor import DaemonExecutor
from daemon.store.mailbox import MailboxEntry
from schema.errors import ClawbusError, ReadDeadlineError
from schema.ids import check_name, check_session

_LOOK_S: Final = 1.0


class DaemonOperations:
    """Implements daemon.api.operations.Operations."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        sessions: Sessions,
        router: Router,
        supervisor: Supervisor,
        local: LocalChannel,
        executor: DaemonExecutor,
        live: LiveStatus,
    ) -> None:
        self._data_dir = config.data_dir
        self._clock = clock
        self._limits = read_limits(config)
        self._sessions = sessions
        self._router = router
        self._supervisor = supervisor
        self._local = local
        self.executor = executor
        self._live = live

    async def accept(self, incoming: Incoming) -> Accepted:
        """See Ingress.accept. Raise MessageError, too, where the answer is to go to a channel that does not exist."""
        if incoming.address is not None:
            check_channel(incoming.address.channel_type, self._router.channels)
        return await self._router(incoming)

    @property
    def mailbox_top(self) -> int | None:
        """See LocalChannel.top."""
        return self._local.top

    async def event(self, message: PlaceMessage) -> Routed:
        """See Router.event."""
        return await self._router.event(message)

    async def wait_reply(
        self,
        agent: str,
        session: str,
        message_id: str,
        timeout_s: float,
        after: int | None = None,
        accepted_at: int | None = None,
    ) -> MailboxEntry | None:
        """Return the first answer to a message, or None when none arrived within `timeout_s` seconds.

        With `after`, the first entry about it above this cursor, also one that was said in the middle of the turn. Raise
        NoAnswerError as soon as it is known that none will arrive: the message is finished and no answer is on its way, or
        its session is quarantined. Raise UnknownSessionError when there is no such session any more.
        """
        until = self._clock.monotonic() + timeout_s
        while True:
            left = until - self._clock.monotonic()
            step_s = max(0.0, min(left, _LOOK_S))
            entry = await self._local.wait_reply(agent, session, message_id, step_s, after, accepted_at)
            if entry is not None or left <= 0:
                return entry
            # Also at the end of a short wait: a terminal's `send --wait` waits a second at a time.
            error = await self._no_answer(_key(agent, session), message_id)
            if error is not None and await self._local.wait_reply(agent, session, message_id, 0.0, after) is None:
                raise error
            if left <= _LOOK_S:
                return None

    async def _no_answer(self, key: SessionKey, message_id: str) -> ClawbusError | None:
        """Return the error that says why no answer will arrive. None while one may arrive, and when this is unknown."""
        try:
            found = await self._sessions.get(key)
            if found.quarantined is not None:
                return _held(key, message_id, found.quarantined)
            alive = self._supervisor.slot(key) is not None
            why = await found.call(partial(unanswered, found.files, message_id, alive=alive))
            return _never(message_id, why) if why is not None else None
        except UnknownSessionError:
            return None if self._sessions.files_of(key).folder.root.exists() else _deleted(key, message_id)
        except ClawbusError:
            return None

    async def read_mailbox(self, mailbox: str, after: int, limit: int, wait_s: float) -> list[MailboxEntry]:
        """See LocalChannel.wait_new."""
        if wait_s > 0:
            return await self._local.wait_new(mailbox, after, wait_s, limit)
        return await self._local.read(mailbox, after, limit)

    async def status(self) -> dict[str, Any]:
        """Return the status: the report from the files plus `live`, the process's own part."""
        report = await anyio.to_thread.run_sync(
            partial(status_report, self._data_dir, self._clock, agents=self._live.agents_now())
        )
        await self.check_holders()
        return {
            **with_near_limits(with_troubles(report, self._sessions.troubles), self._live.near_limits()),
            "live": self.live(),
        }

    async def sessions(self) -> list[dict[str, Any]]:
        """See `sessions_report`."""
        found = await anyio.to_thread.run_sync(
            partial(sessions_report, self._data_dir, self._clock, agents=self._live.agents_now())
        )
        await self.check_holders()
        return [with_trouble(one, self._sessions.troubles) for one in found]

    async def session(self, agent: str, session: str) -> dict[str, Any]:
        """See `session_report`. Raise UnknownSessionError.

        When reading the container's file passes its deadline, the report comes from the host's own files alone.
        """
        found = await self._sessions.get(_key(agent, session))
        report = partial(
            session_report, self._data_dir, agent, session, self._clock, limits=self._limits,
            agents=self._live.agents_now(),
        )  # fmt: skip
        try:
            told = await found.call(report)
        except ReadDeadlineError as error:
            held = f"{error.code}: {error}"
            told = await anyio.to_thread.run_sync(partial(report, held=held), abandon_on_cancel=True)
        if found.key in self._sessions.troubles.locked_out():
            await self._live.problems.check(found)
        use, home = found.use, found.home_use
        counted = (
            {"bytes": use.bytes, "files": use.files, "deleted_bytes": use.deleted_bytes} if use is not None else None
        )
        at_home = {"bytes": home.bytes, "files": home.files} if home is not None else None
        return {**with_trouble(told, self._sessions.troubles), "out_folder": counted, "home_folder": at_home}

    async def execute(self, verb: AnyVerb) -> dict[str, Any]:
        """See DaemonExecutor.execute."""
        return await self.executor.execute(verb)

    async def dead_letters(
        self,
        session: tuple[str, str] | None,
        letter_id: str | None,
        limit: int,
        *,
        code: str | None = None,
        oldest_first: bool = False,
    ) -> dict[str, Any]:
        """See `dead_letters_report`."""
        report = partial(
            dead_letters_report, self._data_dir, self._clock, session=session, letter_id=letter_id, limit=limit,
            code=code, oldest_first=oldest_first,
        )  # fmt: skip
        return await anyio.to_thread.run_sync(report)

    async def dead_letter(self, agent: str, session: str, letter_id: str) -> dict[str, Any]:
        """See `dead_letter_report`."""
        found = await self._sessions.get(_key(agent, session))
        report = partial(dead_letter_report, self._data_dir, agent, session, letter_id, limits=self._limits)
        return await found.call(report)

    async def check_holders(self) -> None:
        """See Problems.refresh."""
        await self._live.problems.refresh()

    def live(self) -> dict[str, Any]:
        """See LiveStatus.report."""
        return self._live.report()


def with_trouble(report: dict[str, Any], troubles: Troubles) -> dict[str, Any]:
    """Add the daemon's own troubles with this session to its report.

    The first one becomes the explanation, unless the session is quarantined or its report already explains why it is held
    up.
    """
    found = troubles.of(SessionKey(report["agent"], report["session"]))
    told = {**report, "troubles": [one.sentence for one in found]}
    if found and report["state"] != "quarantined" and (not report["explanation"] or report.get("held_up") is None):
        told["explanation"] = found[0].sentence
        if "held_up" in report:
            told["held_up"] = found[0].sentence
    return told


def with_troubles(report: dict[str, Any], troubles: Troubles) -> dict[str, Any]:
    """Return the status report, with the sessions in which the daemon fails at something added to `attention`."""
    named = {(one["agent"], one["session"]) for one in report["attention"]}
    more = [
        {"agent": key.agent, "session": key.session, "state": "failing", "explanation": found[0].sentence}
        for key, found in troubles.all().items()
        if (key.agent, key.session) not in named
    ]
    return {
        **report,
        "attention": [*report["attention"], *more],
        "attention_total": report["attention_total"] + len(more),
    }


def _never(message_id: str, why: str) -> NoAnswerError:
    """Return the error for a message whose work is over."""
    return NoAnswerError(
        f"no answer to {message_id} will come: {why}.",
        hint=f"`clawbus message show {shlex.quote(message_id)}` has its history; `clawbus dead list` lists dead letters.",
    )


def _held(key: SessionKey, message_id: str, reason: str) -> NoAnswerError:
    """Return the error for a quarantined session. Its message is kept, and worked on once the session is released."""
    name = two_words(key.agent, key.session)
    return NoAnswerError(
        f"no answer to {message_id} comes while session {key} is in quarantine: {reason.rstrip('.')}. The message is kept.",
        hint=f"`clawbus session show {name}` says why, and what ends it.",
    )


def _deleted(key: SessionKey, message_id: str) -> UnknownSessionError:
    return UnknownSessionError(
        f"no answer to {message_id} will come: session {key} was deleted, and the message with it."
    )


def _key(agent: str, session: str) -> SessionKey:
    return SessionKey(check_name("agent", agent), check_session(session))


def with_near_limits(report: dict[str, Any], near: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the status report, with the sessions whose out/ or home/ folder is close to a limit added to `attention`."""
    named = {(one["agent"], one["session"]) for one in report["attention"]}
    more = [
        {"agent": one["agent"], "session": one["session"], "state": "near_limit", "explanation": one["sentence"]}
        for one in near
        if (one["agent"], one["session"]) not in named
    ]
    return {
        **report,
        "attention": [*report["attention"], *more],
        "attention_total": report["attention_total"] + len(more),
    }
