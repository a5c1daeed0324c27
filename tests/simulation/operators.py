"""A simulated operator: asks for the product's own verbs at any time, and remembers what it was told.

It asks as the command line does: the daemon while one serves, a program on the files while none runs. It draws the ids it names from the files, right or wrong,
and judges each answer at the moment it comes, by the simulated machine and the files, never by the product's word.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio

from daemon.core.message_verbs import (
    AnswerQuestion,
    CancelMessage,
    DropAnswer,
    DropDead,
    RequeueDead,
    RetryAnswer,
    RetryMessage,
)
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import (
    ApplyStale,
    KillSession,
    PreviewStale,
    QuarantineSession,
    ReleaseSession,
    ResetSession,
    StopSession,
    UndoStale,
)
from daemon.core.verb import RowVerb, Verb
from schema.errors import ClawbusError
from schema.layout import SessionFolder
from tests.simulation.bus import SimDaemon, session_root
from tests.simulation.host import Container, SimHost
from tests.simulation.world import World

NAME: Final = "operator"
_STALE_MS: Final = 300_000  # the youngest that a stale sweep takes
_RUNS: Final = 200
_LATE_S: Final = 600.0  # quarantined for longer, a session is given no container by any start under way
_OPEN: Final = "status IN ('pending', 'paused')"
_UNSENT: Final = "state IN ('queued', 'intended', 'retrying')"


@dataclass(eq=False)
class Asked:
    """One verb that was asked for, and what was answered, if anything was."""

    verb: Verb
    at: float  # virtual seconds
    by: str  # the process that was asked
    running: Sequence[Container] = ()  # of its session, when it was asked
    result: dict[str, Any] | None = None
    error: Exception | None = None
    answered_at: float | None = None
    answered: anyio.Event = field(default_factory=anyio.Event)

    @property
    def key(self) -> SessionKey:
        """The session it is about."""
        return SessionKey(self.verb.agent, self.verb.session)

    @property
    def id(self) -> str:
        """The message or answer that it is about, if it is about one."""
        return self.verb.id if isinstance(self.verb, RowVerb) else ""


@dataclass
class Records:
    """Everything that was asked for: what the operator has caused is no fault of the bus, and nothing else is excused."""

    asked: list[Asked] = field(default_factory=list[Asked])

    def of(self, key: SessionKey, *kinds: type[Verb]) -> list[Asked]:
        """What was asked for of these kinds about one session, answered or not."""
        return [one for one in self.asked if one.key == key and type(one.verb) in kinds]

    def ids(self, key: SessionKey, *kinds: type[RowVerb]) -> set[str]:
        """The ids that were named in them."""
        return {one.id for one in self.of(key, *kinds)}

    def may_be_cancelled(self, key: SessionKey, message_id: str) -> bool:
        """Whether the operator asked for that: by name, or for the sweep of its session."""
        return message_id in self.ids(key, CancelMessage) or bool(self.of(key, ApplyStale))

    def held(self, key: SessionKey) -> Asked | None:
        """The last answered quarantine, unless a release was asked for that may have been carried out after it."""
        last = max((one for one in self.of(key, QuarantineSession) if one.result), key=_answered_at, default=None)
        ends = self.of(key, ReleaseSession, ResetSession)
        if last is None or any(one.answered_at is None or one.answered_at >= last.at for one in ends):
            return None
        return last


class Operator:
    """Draws from a source of its own: a draw of the world's more would make another run of every seed."""

    def __init__(self, world: World, daemon: SimDaemon, host: SimHost, sessions: Sequence[SessionKey]) -> None:
        self.world = world
        self.daemon = daemon
        self.host = host
        self.sessions = sessions
        self.records = Records()
        self._rng = rng = Random(f"operator {world.seed}")
        every: list[Callable[[SessionKey], Verb | None]] = [
            self._stop, self._kill, self._kill, self._quarantine, self._reset, self._cancel, self._cancel, self._retry,
            self._requeue, self._requeue, self._drop, self._answer, self._sweep, self._reply, self._reply,
        ]  # fmt: skip
        # Some kinds and no others; in some runs it acts on its own account, too, and in some just when a container is made.
        self._kinds = [kind for kind in every if rng.random() < 0.6] or every
        self._every_s = rng.choice((None, 2.0, 8.0, 20.0))
        self._meddles = rng.random() < 0.4
        self._examines = rng.random() < 0.3
        self._examined: set[SessionKey] = set()  # in quarantine for as long as a sweep wants a run to be old
        host.on_created = self._created
        host.on_asked = self._container_asked_for

    # --- when

    def act(self) -> None:
        """Ask for something now."""
        key = self._rng.choice(self.sessions)
        verb = self._rng.choice(self._kinds)(key)
        if verb is not None:
            self.ask(verb)

    async def work(self, until: float) -> None:
        """Ask for something now and then."""
        if self._examines:
            after = self._rng.uniform(0.0, until - self.world.loop.time())
            self.world.loop.world_later(after, self._examine, self._rng.choice(self.sessions))
        while self._every_s is not None and self.world.loop.time() < until and not self.world.findings:
            await anyio.sleep(self._rng.expovariate(1 / self._every_s))
            self.act()

    async def settle(self) -> None:
        """Read what `doctor` names: release what a quarantine of this operator's, or a restored backup, holds; decide requests."""
        while True:
            await anyio.sleep(20.0)
            for key in self.sessions:
                reason = self.quarantine_reason(key) or ""
                if key not in self._examined and ("is a copy" in reason or reason.startswith(f"by {NAME}")):
                    self.ask(ReleaseSession(*key))
                request = self._pick(key, "questions", "id", "outcome IS NULL AND asks_for IS NOT NULL", order="id")
                if request is not None:
                    self.ask(AnswerQuestion(*key, id=request, answer=self._rng.choice(("approve", "refuse"))))

    def _created(self, container: Container) -> None:
        """A container was made and is about to start: a good moment to end another session's, or its own."""
        if self._meddles and not self.world.healing and self._rng.random() < 0.5:
            key = self._rng.choice(self.sessions)
            verb = self._rng.choice((self._kill, self._kill, self._reset, self._quarantine))(key)
            self.world.loop.world_later(self._rng.uniform(0.0, 0.2), self.ask, verb)

    # --- what

    def _stop(self, key: SessionKey) -> Verb:
        return StopSession(*key)

    def _kill(self, key: SessionKey) -> Verb:
        return KillSession(*key)

    def _quarantine(self, key: SessionKey) -> Verb:
        if self._rng.random() < 0.7:
            self.world.loop.world_later(self._rng.uniform(0.0, 40.0), self.ask, ReleaseSession(*key))
        return QuarantineSession(*key)

    def _reset(self, key: SessionKey) -> Verb:
        return ResetSession(*key)

    def _cancel(self, key: SessionKey) -> Verb | None:
        message_id = self._pick(key, "messages_in", "id", _OPEN)
        return CancelMessage(*key, id=message_id, kill=self._rng.random() < 0.5) if message_id else None

    def _retry(self, key: SessionKey) -> Verb | None:
        message_id = self._pick(key, "messages_in", "id", "status <> 'completed'")
        return RetryMessage(*key, id=message_id) if message_id else None

    def _requeue(self, key: SessionKey) -> Verb | None:
        letter = self._dead(key)
        return RequeueDead(*key, id=letter) if letter else None

    def _drop(self, key: SessionKey) -> Verb | None:
        letter = self._dead(key)
        return DropDead(*key, id=letter) if letter else None

    def _dead(self, key: SessionKey) -> str | None:
        if self._rng.random() < 0.5:
            return self._pick(key, "messages_in", "id", "status = 'failed'")
        return self._pick(key, "delivery_attempts", "message_out_id", "state = 'dead'")

    def _answer(self, key: SessionKey) -> Verb | None:
        answer_id = self._pick(key, "delivery_attempts", "message_out_id", _UNSENT)
        if answer_id is None:
            return None
        return self._rng.choice((RetryAnswer, DropAnswer))(*key, id=answer_id)

    def _reply(self, key: SessionKey) -> Verb | None:
        question = self._pick(key, "questions", "id", "outcome IS NULL", order="id")
        if question is None:
            return None
        return AnswerQuestion(*key, id=question, answer=self._rng.choice(("yes", "no", "perhaps", "approve", None)))

    def _sweep(self, key: SessionKey) -> None:
        self.world.loop.spawn(None, self._sweep_stale(key), "a stale sweep")

    async def _sweep_stale(self, key: SessionKey) -> None:
        """As `clawbus sweep stale` does it: what the preview named and nothing else, and sometimes the backup put back."""
        preview = await self._answer_to(PreviewStale(*key, older_than_ms=_STALE_MS, max_runs=_RUNS))
        runs = [str(one["run"]) for one in preview["runs"]] if preview is not None else []
        if not runs:
            return
        swept = await self._answer_to(ApplyStale(*key, older_than_ms=_STALE_MS, max_runs=_RUNS, expected=runs))
        if swept is not None and swept["backup"] is not None:
            self.world.counts["operator_swept"] += len(swept["swept"])
            if self._rng.random() < 0.3:
                await anyio.sleep(self._rng.uniform(0.0, 10.0))
                await self._answer_to(UndoStale(*key, backup=Path(swept["backup"]["path"]).name))

    def _examine(self, key: SessionKey) -> None:
        self.world.loop.spawn(None, self._examine_long(key), "an examination")

    async def _examine_long(self, key: SessionKey) -> None:
        """Take a session out of service until what it left is old enough for a sweep, sweep it, and put it back."""
        self._examined.add(key)
        self.ask(QuarantineSession(*key, reason="to be examined"))
        await anyio.sleep(_STALE_MS / 1000 + self._rng.uniform(1.0, 60.0))
        await self._sweep_stale(key)
        self._examined.discard(key)

    async def _answer_to(self, verb: Verb) -> dict[str, Any] | None:
        asked = self.ask(verb)
        with anyio.move_on_after(900.0):
            await asked.answered.wait()
        return asked.result

    def _pick(self, key: SessionKey, table: str, column: str, where: str, *, order: str = "seq") -> str | None:
        """Pick an id that this verb is for, or now and then one that it is not for."""
        path = SessionFolder(session_root(self.daemon.layout, key)).inbound_db
        which = where if self._rng.random() < 0.85 else "1"
        with contextlib.suppress(sqlite3.Error), contextlib.closing(read_only(path)) as db:
            found = [row[0] for row in db.execute(f"SELECT {column} FROM {table} WHERE {which} ORDER BY {order}")]
            return str(self._rng.choice(found)) if found else None
        return None

    # --- asking, and what must be so when the answer comes

    def ask(self, verb: Verb) -> Asked:
        """Have one verb carried out by the daemon that serves, or on the files while none runs; by nobody in between."""
        world, key = self.world, SessionKey(verb.agent, verb.session)
        name = f"{type(verb).__name__} {key} {getattr(verb, 'id', '')}".rstrip()
        process = self.daemon.process
        running = [one for one in self.host.running() if _session_of(one) == key]
        asked = Asked(verb, world.loop.time(), process.name if process is not None else "", running)

        def answered(answer: dict[str, Any] | Exception) -> None:
            asked.answered_at = world.loop.time()
            if isinstance(answer, Exception):
                asked.error = answer
                world.trace("operator", f"{name} is refused: {getattr(answer, 'code', '')} {answer!r}")
                if not isinstance(answer, ClawbusError):
                    world.broken(f"{name} raised {answer!r}")
            else:
                asked.result = answer
                world.counts[f"done_{type(verb).__name__}"] += 1
                world.trace("operator", f"{name} is answered: {answer}")
                self._judge(asked, answer)
            world.loop.world_later(0.0, asked.answered.set)

        if self.daemon.execute(verb, answered):
            world.step("operator", f"asks for {name}")
            world.counts[f"operator_{type(verb).__name__}"] += 1
            self.records.asked.append(asked)
        else:
            asked.answered.set()
        return asked

    def _judge(self, asked: Asked, result: dict[str, Any]) -> None:
        verb, key, broken = asked.verb, asked.key, self.world.broken
        match verb:
            case KillSession() | ResetSession():
                # The exit is confirmed. What began after the request is another container.
                alive = [one.id for one in asked.running if one.state == "running"]
                if alive:
                    broken(f"{key}: {type(verb).__name__} is answered with {result}, and {alive} still runs")
            case StopSession():
                alive = [one.id for one in asked.running if one.state == "running"]
                if alive and not result["stopping"]:
                    broken(f"{key}: nothing is stopped by the answer, and {alive} still runs")
            case CancelMessage():
                status = self._status(key, verb.id)
                if status not in ("cancelled", None):
                    broken(f"{key}: {verb.id} is cancelled by the answer, and {status} in the file")
                alive = [one.id for one in asked.running if one.state == "running"]
                # Without `kill` the turn is asked to stop; that it does, or ends with its container, is asked at rest.
                if verb.kill and result["running"] and alive:
                    broken(f"{key}: {verb.id} is cancelled with its container killed, and {alive} still runs")
            case QuarantineSession():
                if self.records.held(key) is asked and not self.quarantine_reason(key):
                    broken(f"{key}: is in quarantine by the answer, and central.db has no reason")
            case ApplyStale():
                # A container that has finished a run by its own ack, which the host had not seen yet, may go on.
                ended = {
                    run: incarnation
                    for run, _, incarnation in (str(one["run"]).partition("@") for one in result["swept"])
                    if not self._finished_by(key, run, incarnation)
                }
                alive = [one.id for one in self.host.running() if one.spec.incarnation in ended.values()]
                if alive:
                    broken(f"{key}: a sweep has ended runs of {alive}, which still works")
                if result["swept"] and not Path(result["backup"]["path"]).is_file():
                    broken(f"{key}: a sweep has no backup at {result['backup']['path']}")
            case _:
                pass

    def _container_asked_for(self, key: SessionKey, process: str) -> None:
        """The daemon asks for a container: not for a session that it has said is out of service."""
        held = self.records.held(key)
        if held is not None and (held.by != process or self.world.loop.time() - held.at > _LATE_S):
            self.world.broken(f"{key}: gets a container, and is in quarantine since {held.at - 1000:.1f}")

    def _status(self, key: SessionKey, message_id: str) -> str | None:
        path = SessionFolder(session_root(self.daemon.layout, key)).inbound_db
        with contextlib.suppress(sqlite3.Error), contextlib.closing(read_only(path)) as db:
            row = db.execute("SELECT status FROM messages_in WHERE id = ?", (message_id,)).fetchone()
            return row[0] if row is not None else None
        return None

    def _finished_by(self, key: SessionKey, message_id: str, incarnation: str) -> bool:
        path = SessionFolder(session_root(self.daemon.layout, key)).outbound_db
        sql = "SELECT 1 FROM processing_ack WHERE message_id = ? AND incarnation = ? AND status IN ('completed', 'failed')"
        with contextlib.suppress(sqlite3.Error), contextlib.closing(read_only(path)) as db:
            return db.execute(sql, (message_id, incarnation)).fetchone() is not None
        return False

    def quarantine_reason(self, key: SessionKey) -> str | None:
        """Why the session is in quarantine, by central.db; None if it is not."""
        with contextlib.suppress(sqlite3.Error), contextlib.closing(read_only(self.daemon.layout.central_db)) as db:
            sql = "SELECT quarantine_reason FROM sessions WHERE agent = ? AND session = ?"
            row = db.execute(sql, key).fetchone()
            return row[0] if row is not None else None
        return None


def _answered_at(asked: Asked) -> float:
    return asked.answered_at or 0.0


def read_only(path: Path) -> sqlite3.Connection:
    """Open a file past the simulation. A hot journal makes it unreadable (sqlite3.Error)."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.0)


def _session_of(container: Container) -> SessionKey:
    return SessionKey(container.spec.agent, container.spec.session)
