"""Reads dead letters from the files alone: the open ones of one session or of all, and the details of one.

Read-only and bounded. outbound.db is opened as hostile input, and only to show one letter; a file of an older shape has
no dead_letters_closed, and then nothing is closed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from daemon.core.clock import Clock
from daemon.core.content import decode, preview
from daemon.core.errors import UnknownMessageError
from daemon.inspect.across_sessions import read_across_sessions
from daemon.inspect.bounds import BUDGET_S
from daemon.inspect.central_reading import folder_of
from daemon.inspect.explain import next_step
from daemon.inspect.history_rows import history_of, history_row
from daemon.inspect.open_registry import open_registry, require_session
from daemon.inspect.queues import holds_nothing_open
from daemon.inspect.row_values import CONTENT, place, values_of
from daemon.inspect.trusted_files import open_inbound, table_rows
from daemon.store.agent_words import agent_words
from daemon.store.backlog import dead_answers, failed_messages
from daemon.store.dead_letters import CLOSED_TABLE
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.handles import Reader
from schema.instants import from_text
from schema.layout import SessionFolder
from schema.outbound_copy import open_outbound_copy
from schema.plain_file import ReadLimits

_OUT: Final = "id, seq, in_reply_to, timestamp, deliver_after, kind, platform_id, channel_type, thread_id"
_TRACKED: Final = "SELECT * FROM delivery_attempts WHERE message_out_id"
_RECEIPT: Final = "SELECT * FROM delivered WHERE message_out_id"
_ONE_LINE: Final = 200
_SAID: Final = 10  # lines of what the agent said besides its answers


@frozen
class Wanted:
    """Which open dead letters to read. `oldest_first` is the order to work in; the default is the order to show."""

    limit: int
    letter_id: str | None = None
    code: str | None = None
    since: int | None = None  # given up at or after it, epoch ms
    oldest_first: bool = False

    def has(self, letter: Mapping[str, Any]) -> bool:
        """Return whether a letter has the code and the time that are asked for."""
        return self.code in (None, letter["code"]) and (self.since is None or (letter["at"] or 0) >= self.since)


def read_dead_letters(folder: SessionFolder, wanted: Wanted) -> tuple[list[dict[str, Any]], int]:
    """Return up to `wanted.limit` open dead letters of one session, and how many match in all.

    Each is {kind: in|out, id, seq, arrived_at, at, where, code, reason, attempts}. Oldest first is by `seq`, the order
    of arrival; newest first is by `at`, when it was given up. Raise ClawbusError when the file cannot be read.
    """
    with open_inbound(folder) as reader:
        if holds_nothing_open(reader):
            return [], 0
        closed = bool(reader.columns(CLOSED_TABLE))
        failed = _open_rows(reader, "messages_in", "id", failed_messages(closed=closed), wanted)
        dead = _open_rows(reader, "delivery_attempts", "message_out_id", dead_answers(closed=closed), wanted)
        letters = [_failed(reader, row) for row in failed[0]] + [_dead(reader, row) for row in dead[0]]
    total = failed[1] + dead[1]
    if wanted.code is not None or wanted.since is not None:
        letters = [letter for letter in letters if wanted.has(letter)]
        total = len(letters)
    if wanted.oldest_first:
        letters.sort(key=lambda letter: letter["seq"])
    else:
        letters.sort(key=lambda letter: letter["at"] or 0, reverse=True)
    return letters[: wanted.limit], total


def in_order_of_arrival(letters: Iterable[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Return the `limit` letters that arrived first, oldest first; within one session always in the order of `seq`.

    A clock that was set back between two arrivals must not swap them: a later one counts as no older than those before it.
    """
    latest: dict[tuple[str, str], int] = {}
    keyed: list[tuple[int, str, str, int, dict[str, Any]]] = []
    for letter in sorted(letters, key=lambda one: (one["agent"], one["session"], one["seq"])):
        session = (letter["agent"], letter["session"])
        latest[session] = max(latest.get(session, 0), letter["arrived_at"] or 0)
        keyed.append((latest[session], *session, letter["seq"], letter))
    return [one[-1] for one in sorted(keyed, key=lambda one: one[:-1])[:limit]]


def read_dead_letter(folder: SessionFolder, letter_id: str, limits: ReadLimits) -> dict[str, Any] | None:
    """Return everything known about one letter, open or closed, or another row of this id; None if the session has none."""
    found: dict[str, Any] = {"errors": []}
    with open_inbound(folder) as reader:
        sql = f"SELECT *, {CONTENT} FROM messages_in WHERE id = ?"
        message = next(iter(table_rows(reader, "messages_in", sql, letter_id)), None)
        tracked = next(iter(table_rows(reader, "delivery_attempts", f"{_TRACKED} = ?", letter_id)), None)
        receipt = next(iter(table_rows(reader, "delivered", f"{_RECEIPT} = ?", letter_id)), None)
        if message is None and tracked is None and receipt is None:
            return None
        closed = table_rows(reader, CLOSED_TABLE, f"SELECT * FROM {CLOSED_TABLE} WHERE id = ?", letter_id)
        found["closed"] = values_of(closed[0]) if closed else None
        found["history"] = history_of(reader, letter_id)
        if message is not None and tracked is None:
            found |= _failed(reader, message) | {"state": message["status"], "row": _row(message)}
            tries = "SELECT * FROM attempts WHERE message_id = ? ORDER BY claimed_at LIMIT 500"
            found["tries"] = [values_of(row) for row in table_rows(reader, "attempts", tries, letter_id)]
        elif tracked is not None:
            found |= _dead(reader, tracked) | {"state": tracked["state"], "delivery": _delivery(tracked)}
            found["row"] = _host_row(reader, letter_id) if tracked["source"] == "host" else None
        else:
            found |= {"kind": "out", "id": letter_id, "state": receipt["status"] if receipt else None, "row": None}
            found |= {"at": None, "where": None, "code": None, "reason": None, "attempts": None}
    if found["kind"] == "out" and found["row"] is None:
        found["row"] = _agent_row(folder, letter_id, limits, found["errors"])
    found["said"] = [asdict(one) for one in agent_words(folder, letter_id, _SAID)] if found["kind"] == "in" else []
    found["open"] = found["closed"] is None and found["state"] == ("failed" if found["kind"] == "in" else "dead")
    found["next_step"] = next_step(found["kind"], found["code"]) if found["open"] else None
    return found


def _open_rows(reader: Reader, table: str, key: str, where: str, wanted: Wanted) -> tuple[list[sqlite3.Row], int]:
    if not reader.columns(table):
        return [], 0
    values: tuple[object, ...] = ()
    if wanted.letter_id is not None:
        where, values = f"{where} AND {key} = ?", (wanted.letter_id,)
    total = reader.one(f"SELECT count(*) {where}", values)
    # A letter's code and time are in its history alone: only the caller knows which rows have them.
    limit = wanted.limit if wanted.code is None and wanted.since is None else -1
    order = "ASC" if wanted.oldest_first else "DESC"
    rows = reader.all(f"SELECT * {where} ORDER BY seq {order} LIMIT ?", (*values, limit))
    return rows, int(total[0]) if total is not None else 0


def _failed(reader: Reader, row: sqlite3.Row) -> dict[str, Any]:
    event = _last(reader, row["id"], "failed")
    detail: Mapping[str, Any] = event.get("detail") or {}
    names = row.keys()
    address = [row[name] for name in ("channel_type", "platform_id", "thread_id") if name in names]
    code = detail.get("code") or ("FAILED" if row["status"] == "failed" else None)
    return {
        "kind": "in",
        "id": row["id"],
        "seq": row["seq"] or 0,
        "arrived_at": from_text(row["timestamp"]),
        "at": event.get("at") or from_text(row["timestamp"]),
        "where": "/".join(str(part) for part in address if part) or None,
        "code": code,
        "reason": _line(detail.get("reason") or detail.get("error")),
        "attempts": attempts_of(row["tries"], code),
    }


def attempts_of(tries: int, code: str | None) -> int:
    """Return how often a message was worked on. `tries` counts the containers that died, not the turn that failed."""
    return tries + (code == "AGENT_FAILED")


def _dead(reader: Reader, row: sqlite3.Row) -> dict[str, Any]:
    event = _last(reader, row["message_out_id"], "dead_lettered")
    return {
        "kind": "out",
        "id": row["message_out_id"],
        "seq": row["seq"],
        "arrived_at": row["first_at"],
        "at": event.get("at") or row["first_at"],
        "where": place(row["destination"]) or None,
        "code": row["last_error_code"],
        "reason": _line(row["last_error"]),
        "attempts": row["attempts"],
    }


def _last(reader: Reader, message_id: str, name: str) -> dict[str, Any]:
    sql = "SELECT * FROM message_history WHERE message_id = ? AND event = ? ORDER BY id DESC LIMIT 1"
    rows = table_rows(reader, "message_history", sql, message_id, name)
    return history_row(rows[0]) if rows else {}


def _host_row(reader: Reader, letter_id: str) -> dict[str, Any] | None:
    sql = f"SELECT *, {CONTENT} FROM host_messages WHERE id = ?"
    rows = table_rows(reader, "host_messages", sql, letter_id)
    return _row(rows[0]) if rows else None


def _agent_row(folder: SessionFolder, letter_id: str, limits: ReadLimits, errors: list[str]) -> dict[str, Any] | None:
    """Return what the agent wrote. A file that cannot be read becomes a line in `errors`."""
    try:
        reader = open_outbound_copy(folder.outbox, limits)
        if reader is None:
            return None
        with reader:
            sql = f"SELECT {_OUT}, {CONTENT} FROM messages_out WHERE id = ? LIMIT 1"
            rows = table_rows(reader, "messages_out", sql, letter_id)
            return _row(rows[0]) if rows else None
    except ClawbusError as error:
        errors.append(f"{error.code}: {error}")
        return None


def _row(row: sqlite3.Row) -> dict[str, Any]:
    """Return the row with its content decoded and as text, as far as it is shown. A container may have written it."""
    values = {name: value[:1000] if isinstance(value, str) else value for name, value in values_of(row).items()}
    content = row[-1]  # the shortened one; `SELECT *` has the name too
    text = content if isinstance(content, str) else repr(content)
    return {**values, "content": decode(text), "text": preview(text, 1000)}


def _delivery(row: sqlite3.Row) -> dict[str, Any]:
    return {**values_of(row), "destination": place(row["destination"])}


def _line(text: object) -> str | None:
    if text is None:
        return None
    line = " ".join(str(text).split())
    return line if len(line) <= _ONE_LINE else line[: _ONE_LINE - 3] + "..."


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
    budget_s: float = BUDGET_S,
) -> dict[str, Any]:
    """Return {letters, total, not_examined, errors}: open dead letters of all sessions or of one (agent, session).

    The newest come first, or, to be worked on, the oldest (`oldest_first`). With `letter_id`, `code` or `since` (given up at or after it, epoch ms) only those. Raise UnknownSessionError, DataFolderError, RegistryGoneError.
    """
    wanted = Wanted(limit, letter_id, code, since, oldest_first)
    letters, rest = read_across_sessions(
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
    """Return everything known about one dead letter, or about another message or answer of this id.

    Raise UnknownSessionError, UnknownMessageError, DataFolderError, or StorageError when its file cannot be read.
    """
    folder = folder_of(data_dir, (agent, session))
    with open_registry(data_dir) as central:
        require_session(central, agent, session)
    found = read_dead_letter(folder, letter_id, limits or ReadLimits())
    if found is None:
        raise UnknownMessageError(f"there is no message {letter_id!r} in {agent}/{session}.")
    return {"agent": agent, "session": session, **found}
