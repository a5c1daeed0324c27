"""The tables workers, registrations and agent_turns of central.db: which daemon owns which agents and channels.

A function with a Writer begins its own transaction, except `check_owner`. Times are epoch milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Final

from daemon.core.deploy_errors import DuplicateOwnershipError
from daemon.core.ownership import AGENT
from schema.connect import open_reader
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.layout import CENTRAL_DB

_KEPT: Final = 20  # ended workers that stay on record
Owned = frozenset[tuple[str, str]]  # (kind, id)


@frozen
class WorkerRow:
    """A row of workers: one run of a daemon, from its start to its end.

    `confirmed_at`: when `confirm` last checked its registration. `ended_at` is None while it runs.
    """

    id: str
    role: str
    release: str
    source_digest: str
    slot: str
    host: str
    pid: int
    epoch: int
    registered_at: int
    confirmed_at: int | None = None
    ended_at: int | None = None
    end_reason: str | None = None


_COLUMNS: Final = tuple(one.name for one in fields(WorkerRow))


def register(db: Writer, worker: WorkerRow, owned: Owned) -> None:
    """Record a worker and what it owns, and end the registration of its predecessor.

    The caller must hold the data folder's lock. It was free, so a worker that is still registered has died.
    """
    with db.transaction():
        db.execute(
            "UPDATE workers SET ended_at = ?, end_reason = 'superseded' WHERE ended_at IS NULL AND id <> ?",
            (worker.registered_at, worker.id),
        )
        db.execute(
            "UPDATE registrations SET ended_at = ? WHERE ended_at IS NULL AND worker <> ?",
            (worker.registered_at, worker.id),
        )
        marks = ", ".join("?" * len(_COLUMNS))
        db.execute(f"INSERT OR REPLACE INTO workers({', '.join(_COLUMNS)}) VALUES ({marks})", astuple(worker))
        _replace(db, worker.id, owned)
        db.execute(
            "DELETE FROM workers WHERE ended_at IS NOT NULL AND id NOT IN"
            " (SELECT id FROM workers WHERE ended_at IS NOT NULL ORDER BY id DESC LIMIT ?)",
            (_KEPT,),
        )
        db.execute("DELETE FROM registrations WHERE worker NOT IN (SELECT id FROM workers)")


def confirm(db: Writer, worker: WorkerRow, owned: Owned, now: int) -> None:
    """Compare the worker's rows with what the running bus owns, repair them if they differ, and record the time of the check.

    Raise DuplicateOwnershipError when another worker has taken over.
    """
    with db.transaction():
        live = db.one("SELECT id FROM workers WHERE ended_at IS NULL AND id <> ?", (worker.id,))
        if live is not None:
            raise DuplicateOwnershipError(f"worker {live['id']} is registered instead of {worker.id}.")
        found = db.one("SELECT ended_at FROM workers WHERE id = ?", (worker.id,))
        if found is None:  # somebody replaced central.db under the running daemon
            marks = ", ".join("?" * len(_COLUMNS))
            db.execute(f"INSERT INTO workers({', '.join(_COLUMNS)}) VALUES ({marks})", astuple(worker))
        if _live_of(db, worker.id) != owned:
            _replace(db, worker.id, owned)
        db.execute("UPDATE workers SET confirmed_at = ?, ended_at = NULL, end_reason = NULL WHERE id = ?",
                   (now, worker.id))  # fmt: skip


def note_turns(db: Writer, turns: Mapping[str, tuple[str, int]]) -> None:
    """Record each agent's last completed turn, {agent: (session, time)}. A turn older than the recorded one changes nothing."""
    if turns:
        with db.transaction():
            db.executemany(
                "INSERT INTO agent_turns(agent, session, completed_at) VALUES (?, ?, ?) ON CONFLICT(agent) DO UPDATE"
                " SET session = excluded.session, completed_at = excluded.completed_at"
                " WHERE excluded.completed_at > completed_at",
                [(agent, *turn) for agent, turn in turns.items()],
            )


def end(db: Writer, worker: str, now: int) -> None:
    """Record that the worker stopped in order. Safe to repeat; a successor's rows stay as they are."""
    with db.transaction():
        db.execute("UPDATE workers SET ended_at = ?, end_reason = 'stopped' WHERE id = ? AND ended_at IS NULL",
                   (now, worker))  # fmt: skip
        db.execute("UPDATE registrations SET ended_at = ? WHERE worker = ? AND ended_at IS NULL", (now, worker))


def check_owner(db: Writer, worker: str, agent: str) -> None:
    """Raise DuplicateOwnershipError when another worker is registered for the agent. Call inside a transaction."""
    row = db.one("SELECT worker FROM registrations WHERE kind = ? AND id = ? AND ended_at IS NULL", (AGENT, agent))
    if row is not None and row["worker"] != worker:
        raise DuplicateOwnershipError(
            f"agent {agent!r} is registered by worker {row['worker']}, and this daemon is worker {worker}."
        )


def read_workers(db: Reader) -> list[WorkerRow]:
    """Return every worker on record, newest first. Return none if the file is older than this table."""
    if not db.columns("workers"):
        return []
    return [WorkerRow(*row) for row in db.all(f"SELECT {', '.join(_COLUMNS)} FROM workers ORDER BY id DESC LIMIT 100")]


def last_slot(data_dir: Path) -> str:
    """Return the slot of the last daemon that registered; an empty text for none, and where that cannot be read."""
    path = data_dir / CENTRAL_DB
    if not path.is_file():
        return ""
    try:
        with open_reader(path) as db:
            found = read_workers(db)
    except ClawbusError:
        return ""
    return found[0].slot if found else ""


def read_owned(db: Reader, worker: str) -> list[tuple[str, str]]:
    """Return (kind, id) of everything that a worker owns or last owned. Return none if the file is older than this table."""
    if not db.columns("registrations"):
        return []
    rows = db.all("SELECT kind, id FROM registrations WHERE worker = ? ORDER BY kind, id LIMIT 10000", (worker,))
    return [(row["kind"], row["id"]) for row in rows]


def read_turns(db: Reader) -> dict[str, tuple[str, int]]:
    """Return each agent's last completed turn, {agent: (session, time)}. Return none if the file is older than this table."""
    if not db.columns("agent_turns"):
        return {}
    rows = db.all("SELECT agent, session, completed_at FROM agent_turns LIMIT 10000")
    return {row["agent"]: (row["session"], row["completed_at"]) for row in rows}


def _live_of(db: Writer, worker: str) -> Owned:
    rows = db.all("SELECT kind, id FROM registrations WHERE worker = ? AND ended_at IS NULL", (worker,))
    return frozenset((row["kind"], row["id"]) for row in rows)


def _replace(db: Writer, worker: str, owned: Iterable[tuple[str, str]]) -> None:
    db.execute("DELETE FROM registrations WHERE worker = ?", (worker,))
    db.executemany(
        "INSERT INTO registrations(worker, kind, id) VALUES (?, ?, ?)", [(worker, *one) for one in sorted(owned)]
    )
