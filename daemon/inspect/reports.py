"""Reports from the files alone: they work while the daemon is down, and the daemon's own API answers with them too.

Read-only and bounded in rows and time. A session whose file is missing, locked or corrupt is one line in the report
and never the end of it. Times are epoch milliseconds; every value fits JSON.

Closing a file drops this process's POSIX locks on it (fcntl(2)), so inside the daemon `session_report` and
`message_life`, which open outbound.db, run where the session's other readers run one at a time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from daemon.core.clock import Clock
from daemon.core.errors import DataFolderError, RegistryGoneError, UnknownMessageError, UnknownSessionError
from daemon.inspect.answer_reading import AnswersWanted, read_open_answers
from daemon.inspect.central_reading import Key, read_central
from daemon.inspect.dead_reading import Wanted, in_order_of_arrival, read_dead_letter, read_dead_letters
from daemon.inspect.explain import explain, held_up, state_of
from daemon.inspect.message_life import read_life
from daemon.inspect.question_reading import read_questions
from daemon.inspect.session_reading import Queues, open_current, open_inbound, read_detail, read_queues
from daemon.store.data_folder import Layout
from daemon.store.install import InstallFile
from daemon.store.mailbox import MailboxEntry, read_mailbox
from daemon.store.pruned import read as read_pruned
from daemon.store.rebuild import REMAKE_HINT, found_sessions, is_session
from daemon.store.verified_idle import still_idle
from schema.connect import Reader, ReadLimits
from schema.errors import ClawbusError, StorageError
from schema.ids import check_name, check_session, session_path
from schema.layout import SessionFolder
from schema.rows import DeliveryState

CENTRAL_DB: Final = "central.db"
MAX_SESSIONS: Final = 20_000
_BUDGET_S: Final = 6.0  # for looking into sessions; a status that comes late is no status
PATIENT_BUDGET_S: Final = 60.0  # when the files are the only source: a report that leaves nothing out is worth the wait
_ATTENTION: Final = 50


@dataclass(frozen=True, slots=True)
class _Looked:
    registry: Mapping[str, Any]
    live: Mapping[str, Any] | None
    state: str
    queues: Queues | None  # None: there was no time to look
    at: int
    changed_at: int | None  # when one of its files changed last, epoch ms


def session_folder(data_dir: Path, agent: str, session: str) -> SessionFolder:
    """Where a session's files lie. Raises InvalidNameError."""
    return SessionFolder(session_path(data_dir / "sessions", check_name("agent", agent), check_session(session)))


def status_report(data_dir: Path, clock: Clock, *, budget_s: float = _BUDGET_S) -> dict[str, Any]:
    """Sessions by state, queues, dead letters, live incarnations, what needs attention. Raises DataFolderError, RegistryGoneError."""
    now = clock.now_ms()
    with _open_central(data_dir) as central:
        install = central.one("SELECT install_id FROM install WHERE id = 1")
        total = _number(central.one("SELECT count(*) FROM sessions"))
        looked = _look(data_dir, central, clock, MAX_SESSIONS, budget_s)
        live = [dict(row) for row in central.all(f"{_LIVE} ORDER BY created_at LIMIT 1000")]
        pruned = read_pruned(central)
    status = _status(data_dir, looked, now)
    return {
        **status,
        "install_id": install["install_id"] if install is not None else None,
        "sessions": {"total": total, **status["sessions"]},
        "incarnations": live,
        "pruned": pruned,
        "not_examined": total - len(looked) + status["not_examined"],
    }


def status_without_registry(data_dir: Path, clock: Clock, why: str, *, budget_s: float = _BUDGET_S) -> dict[str, Any]:
    """As `status_report` while central.db is missing or broken, from the session folders; `registry_error` is `why`.

    Raises DataFolderError, SchemaTooNewError.
    """
    rows = [_unregistered(*key) for key in read_central(data_dir).known()]
    looked = _read(data_dir, rows, {}, frozenset(), clock, budget_s)
    return {
        **_status(data_dir, looked, clock.now_ms()),
        "registry_error": why,
        "sessions": {"total": len(rows)},
        "incarnations": [],
    }


def _status(data_dir: Path, looked: Sequence[_Looked], now: int) -> dict[str, Any]:
    """Return what a status says of these sessions; `sessions` are their states alone."""
    needing = [entry for one in looked if (entry := _attention(one)) is not None]
    return {
        "data_dir": str(data_dir),
        "install_id": None,
        **install_report(data_dir),
        "at": now,
        "sessions": dict(sorted(Counter(one.state for one in looked).items())),
        "queues": sum_queues([one.queues for one in looked if one.queues is not None], now),
        "attention": needing[:_ATTENTION],
        "attention_total": len(needing),
        "working": [_named(one) for one in looked if one.state == "working"][:_ATTENTION],
        "not_examined": sum(one.queues is None for one in looked),
    }


def install_report(data_dir: Path) -> dict[str, Any]:
    """Return the containers' engine and what the folder was copied from; None where it is not known."""
    try:
        found = InstallFile(Layout(data_dir).install_record).read()
    except ClawbusError:
        found = None
    engine, origin = (found.engine, found.origin) if found is not None else (None, None)
    return {
        "engine": asdict(engine) if engine is not None else None,
        "copied_from": asdict(origin) if origin is not None else None,
    }


def sessions_report(
    data_dir: Path, clock: Clock, *, limit: int = 1000, budget_s: float = _BUDGET_S
) -> list[dict[str, Any]]:
    """One entry a session, those with work first. Raises DataFolderError, RegistryGoneError."""
    with _open_central(data_dir) as central:
        return [_summary(one) for one in _look(data_dir, central, clock, limit, budget_s)]


def session_report(
    data_dir: Path,
    agent: str,
    session: str,
    clock: Clock,
    *,
    limit: int = 20,
    limits: ReadLimits | None = None,
    held: str | None = None,
) -> dict[str, Any]:
    """Everything about one session, `limit` rows of each kind. Raises UnknownSessionError, DataFolderError, RegistryGoneError.

    `held` says why the container's file must not be opened now; the report is then of the host's own files alone.
    """
    folder = session_folder(data_dir, agent, session)
    now = clock.now_ms()
    with _open_central(data_dir) as central:
        row = central.one("SELECT * FROM sessions WHERE agent = ? AND session = ?", (agent, session))
        if row is None and not is_session(folder):
            raise UnknownSessionError(f"there is no session {agent}/{session}.")
        incarnations = [
            dict(found)
            for found in central.all(
                "SELECT * FROM incarnations WHERE agent = ? AND session = ? ORDER BY created_at DESC LIMIT ?",
                (agent, session, limit),
            )
        ]
    live = next((one for one in incarnations if one["ended_at"] is None), None)
    registry = dict(row) if row is not None else _unregistered(agent, session)
    queues = read_queues(folder, now)
    looked = _Looked(registry, live, state_of(registry, live, queues, now), queues, now, _changed_at(folder))
    detail = read_detail(folder, limit, limits or ReadLimits(), held)
    return {
        **_summary(looked),
        "held_up": held_up(registry, live, looked.queues or Queues(), now),
        "folder": str(folder.root),
        "registry": registry,
        "incarnation": live,
        "incarnations": incarnations,
        "messages": detail.messages,
        "undelivered": detail.undelivered,
        "attempts": detail.attempts,
        "claims": detail.claims,
        "tool": detail.tool,
        "usage": detail.usage,
        "heartbeat_at": detail.heartbeat_at,
        "routing": detail.routing,
        "destinations": detail.destinations,
        "pruned": detail.pruned,
        "errors": detail.errors,
    }


def message_life(
    data_dir: Path, agent: str, session: str, message_id: str, *, limits: ReadLimits | None = None
) -> dict[str, Any]:
    """One message from its acceptance to its answer's delivery: {agent, session, message_id, life, errors}.

    `life` is [{at, event, detail}] in time order. Raises UnknownSessionError, UnknownMessageError.
    """
    folder = session_folder(data_dir, agent, session)
    if not folder.root.is_dir():
        raise UnknownSessionError(f"there is no session {agent}/{session}.")
    events, errors = read_life(folder, message_id, limits or ReadLimits())
    if not events and not errors:
        raise UnknownMessageError(f"session {agent}/{session} has no message {message_id!r}.")
    return {"agent": agent, "session": session, "message_id": message_id, "life": events, "errors": errors}


def dead_letters_report(
    data_dir: Path,
    clock: Clock,
    *,
    session: tuple[str, str] | None = None,
    letter_id: str | None = None,
    limit: int = 100,
    code: str | None = None,
    agent: str | None = None,
    since: int | None = None,
    oldest_first: bool = False,
    budget_s: float = _BUDGET_S,
) -> dict[str, Any]:
    """Return {letters, total, not_examined, errors}: open dead letters of all sessions or of one (agent, session).

    The newest come first, or, to be worked on, the oldest (`oldest_first`). With `letter_id`, `code` or `since` (given up at or after it, epoch ms) only those. Raises UnknownSessionError, DataFolderError, RegistryGoneError.
    """
    wanted = Wanted(limit, letter_id, code, since, oldest_first)
    letters, rest = _of_sessions(
        data_dir, clock, session, budget_s, lambda folder: read_dead_letters(folder, wanted), agent=agent
    )
    if oldest_first:
        letters = in_order_of_arrival(letters, limit)
    else:
        letters.sort(key=lambda letter: letter["at"] or 0, reverse=True)
    return {"letters": letters[:limit], **rest}


def dead_letter_report(
    data_dir: Path, agent: str, session: str, letter_id: str, *, limits: ReadLimits | None = None
) -> dict[str, Any]:
    """All that is known of one dead letter, or of an id that is none (any more).

    Raises UnknownSessionError, UnknownMessageError, DataFolderError, or StorageError when its file cannot be read.
    """
    folder = session_folder(data_dir, agent, session)
    with _open_central(data_dir) as central:
        _known(central, agent, session)
    found = read_dead_letter(folder, letter_id, limits or ReadLimits())
    if found is None:
        raise UnknownMessageError(f"there is no message {letter_id!r} in {agent}/{session}.")
    return {"agent": agent, "session": session, **found}


def open_answers_report(
    data_dir: Path,
    clock: Clock,
    wanted: AnswersWanted | None = None,
    *,
    session: tuple[str, str] | None = None,
    agent: str | None = None,
    limit: int = 100,
    budget_s: float = _BUDGET_S,
) -> dict[str, Any]:
    """Return {answers, total, not_examined, errors}: answers without a receipt, those that are retried first.

    Raises UnknownSessionError, DataFolderError, RegistryGoneError.
    """

    def read(folder: SessionFolder) -> tuple[list[dict[str, Any]], int]:
        with open_inbound(folder) as db:
            return read_open_answers(db, clock.now_ms(), limit, wanted)

    answers, rest = _of_sessions(data_dir, clock, session, budget_s, read, agent=agent)
    answers.sort(key=lambda answer: answer["state"] != DeliveryState.RETRYING)
    return {"answers": answers[:limit], **rest}


def questions_report(
    data_dir: Path,
    clock: Clock,
    *,
    session: tuple[str, str] | None = None,
    agent: str | None = None,
    every: bool = False,
    limit: int = 100,
    budget_s: float = _BUDGET_S,
) -> dict[str, Any]:
    """Return {questions, total, not_examined, errors}: the open questions, the most urgent first; `total` is how many.

    With `every` also those that have ended, the newest first; of sessions without work only when one is named. Raises
    UnknownSessionError, DataFolderError, RegistryGoneError.
    """
    found, rest = _of_sessions(
        data_dir, clock, session, budget_s, lambda folder: read_questions(folder, limit, every=every), agent=agent
    )
    found.sort(key=lambda one: -one["asked_at"] if every else one["deadline"])
    return {"questions": found[:limit], **rest}


def _of_sessions(
    data_dir: Path,
    clock: Clock,
    session: Key | None,
    budget_s: float,
    read: Callable[[SessionFolder], tuple[list[dict[str, Any]], int]],
    *,
    agent: str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read every session's inbound.db, or those of one agent, or that of one. Return what was found, and {total, not_examined, errors}.

    `read` returns rows and how many there are in all; each row gets its agent and session. Raises UnknownSessionError,
    DataFolderError, RegistryGoneError.
    """
    deadline = clock.monotonic() + budget_s
    with _open_central(data_dir) as central:
        known = _keys_to_read(data_dir, central, session, clock.now_ms())
    keys = [key for key in known if agent in (None, key[0])]
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    total, examined = 0, 0
    for owner, name in keys:
        if clock.monotonic() > deadline:
            break
        examined += 1
        try:
            found, count = read(session_folder(data_dir, owner, name))
        except ClawbusError as error:
            errors.append({"agent": owner, "session": name, "error": f"{error.code}: {error}"})
            continue
        total += count
        rows += [{"agent": owner, "session": name, **row} for row in found]
    return rows, {"total": total, "not_examined": len(keys) - examined, "errors": errors[:_ATTENTION]}


def mailbox_entries(data_dir: Path, mailbox: str, after: int, limit: int) -> list[MailboxEntry]:
    """Entries of one mailbox above a cursor, oldest first; none while nothing was ever delivered to it."""
    _check_folder(data_dir)
    return read_mailbox(Layout(data_dir).mailbox_db, mailbox, after, limit)


def _unregistered(agent: str, session: str) -> dict[str, Any]:
    """Return a row for a folder that central.db does not know. The next start registers it."""
    return {
        "agent": agent, "session": session, "created_at": None, "active": 1, "next_due_at": None, "quarantined_at": None,
        "quarantine_reason": None, "spawn_failures": 0, "next_spawn_at": None, "last_spawn_error": None,
        "dead_letters": 0,
    }  # fmt: skip


def _known(central: Reader, agent: str, session: str) -> None:
    if central.one("SELECT 1 FROM sessions WHERE agent = ? AND session = ?", (agent, session)) is None:
        raise UnknownSessionError(f"there is no session {agent}/{session}.")


def _keys_to_read(data_dir: Path, central: Reader, only: tuple[str, str] | None, now: int) -> list[tuple[str, str]]:
    """Return the sessions whose files have to be read, those with work first. Raise UnknownSessionError for `only`."""
    if only is not None:
        _known(central, *only)
        return [only]
    idle = still_idle(central, data_dir / "sessions", now)
    return [key for row in central.all(_KEYS) if (key := (row["agent"], row["session"])) not in idle]


_KEYS: Final = "SELECT agent, session FROM sessions ORDER BY active DESC, agent, session"
_LIVE: Final = "SELECT * FROM incarnations WHERE ended_at IS NULL"


def _check_folder(data_dir: Path) -> None:
    if not data_dir.is_dir():
        raise DataFolderError(f"the data folder {data_dir} does not exist.")


def _open_central(data_dir: Path) -> Reader:
    _check_folder(data_dir)
    path = data_dir / CENTRAL_DB
    try:
        present = path.is_file()
    except PermissionError as error:
        raise DataFolderError(
            f"the data folder {data_dir} may not be read.", hint="Run this as the daemon's user."
        ) from error
    if not present:
        if _has_sessions(data_dir / "sessions"):
            raise RegistryGoneError(f"{path} is lost; the sessions are there.", hint=REMAKE_HINT)
        raise DataFolderError(f"{data_dir} has no {CENTRAL_DB} yet.", hint="Start the daemon once: `clawbus serve`.")
    return open_current(path)


def _has_sessions(sessions_dir: Path) -> bool:
    try:
        return any(True for _ in found_sessions(sessions_dir))
    except StorageError:  # no such folder
        return False


def _look(data_dir: Path, central: Reader, clock: Clock, limit: int, budget_s: float) -> list[_Looked]:
    """Sessions with the queues of as many as the time allows; those with work come first, so they are looked at."""
    live = {(row["agent"], row["session"]): dict(row) for row in central.all(_LIVE)}
    rows = central.all(
        "SELECT * FROM sessions ORDER BY active DESC, quarantined_at IS NULL, agent, session LIMIT ?", (limit,)
    )
    idle = still_idle(central, data_dir / "sessions", clock.now_ms())
    return _read(data_dir, [dict(row) for row in rows], live, idle, clock, budget_s)


def _read(
    data_dir: Path,
    rows: Iterable[Mapping[str, Any]],
    live: Mapping[Key, Mapping[str, Any]],
    idle: AbstractSet[Key],
    clock: Clock,
    budget_s: float,
) -> list[_Looked]:
    """Read the queues of as many of these sessions as the time allows; those of `idle` ones are known to be empty."""
    now, deadline = clock.now_ms(), clock.monotonic() + budget_s
    looked: list[_Looked] = []
    for row in rows:
        key = (row["agent"], row["session"])
        queues = Queues() if key in idle else None
        if queues is None and (key in live or clock.monotonic() <= deadline):  # there are few containers
            queues = read_queues(session_folder(data_dir, *key), now)
        state = state_of(row, live.get(key), queues, now)
        looked.append(_Looked(row, live.get(key), state, queues, now, _changed_at(session_folder(data_dir, *key))))
    return looked


def _changed_at(folder: SessionFolder) -> int | None:
    """Return when one of a session's two files changed last, None where there is none."""
    found: list[int] = []
    for path in (folder.inbound_db, folder.outbound_db):
        with contextlib.suppress(OSError):
            found.append(os.lstat(path).st_mtime_ns // 1_000_000)
    return max(found, default=None)


def _summary(one: _Looked) -> dict[str, Any]:
    queues = one.queues
    return {
        "agent": one.registry["agent"],
        "session": one.registry["session"],
        "state": one.state,
        "explanation": explain(one.registry, one.live, queues or Queues(), one.at),
        "created_at": one.registry["created_at"],
        "changed_at": one.changed_at,
        "next_due_at": one.registry["next_due_at"],
        "incarnation_id": one.live["id"] if one.live is not None else None,
        "pending": queues.pending if queues else None,
        "scheduled": queues.scheduled if queues else None,
        "backing_off": queues.backing_off if queues else None,
        "oldest_pending_at": queues.oldest_pending_at if queues else None,
        "undelivered": queues.undelivered if queues else None,
        "scheduled_answers": queues.scheduled_answers if queues else None,
        "failed": queues.failed if queues else None,
        "dead": queues.dead if queues else None,
        "error": queues.error if queues else None,
    }


def _attention(one: _Looked) -> dict[str, Any] | None:
    sentence = explain(one.registry, one.live, one.queues or Queues(), one.at)
    if sentence is None:
        return None
    return {**_named(one), "state": one.state, "explanation": sentence}


def _named(one: _Looked) -> dict[str, Any]:
    return {"agent": one.registry["agent"], "session": one.registry["session"]}


def sum_queues(queues: list[Queues], now: int) -> dict[str, Any]:
    """Depths of many sessions together, and the ages of the oldest, in ms."""

    def age(stamps: Iterable[int | None]) -> int | None:
        known = [stamp for stamp in stamps if stamp is not None]
        return max(0, now - min(known)) if known else None

    return {
        "pending": sum(one.pending for one in queues),
        "scheduled": sum(one.scheduled for one in queues),
        "backing_off": sum(one.backing_off for one in queues),
        "oldest_pending_age_ms": age(one.oldest_pending_at for one in queues),
        "undelivered": sum(one.undelivered for one in queues),
        "scheduled_answers": sum(one.scheduled_answers for one in queues),
        "oldest_undelivered_age_ms": age(one.oldest_undelivered_at for one in queues),
        "failed": sum(one.failed for one in queues),
        "dead": sum(one.dead for one in queues),
        "dead_letters": sum(one.dead_letters for one in queues),
    }


def _number(row: sqlite3.Row | None) -> int:
    return int(row[0]) if row is not None else 0
