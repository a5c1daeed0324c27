"""Messages of all sessions as a list: the newest ones, by session, agent, status and time. From inbound.db alone; read-only."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from daemon.core.clock import Clock
from daemon.core.content import preview
from daemon.core.errors import UnknownSessionError
from daemon.inspect.across_sessions import visit_sessions
from daemon.inspect.central_reading import Key, folder_of, read_central
from daemon.inspect.row_values import CONTENT
from daemon.inspect.session_detail import attempts_of
from daemon.inspect.trusted_files import open_inbound
from schema.frozen import frozen
from schema.handles import Reader
from schema.instants import from_text, to_text

BUDGET_S: Final = 60.0
_TEXT: Final = 120


@frozen
class MessageQuery:
    """What a list shows. `since`: accepted at or after this instant, epoch ms."""

    session: Key | None = None
    agent: str | None = None
    status: str | None = None
    since: int | None = None
    limit: int = 50


def messages_report(data_dir: Path, clock: Clock, query: MessageQuery, *, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """Return {messages, total, not_examined, errors}: the newest matching messages, newest first.

    Each is {agent, session, id, status, kind, trigger, attempts, tries, at, process_after, text}. Raise UnknownSessionError,
    DataFolderError, SchemaTooNewError.
    """
    deadline = clock.monotonic() + budget_s
    keys = _keys(data_dir, query)
    found: list[dict[str, Any]] = []
    total = 0

    def visit(key: Key) -> None:
        nonlocal total
        with open_inbound(folder_of(data_dir, key)) as reader:
            rows, count = _read(reader, query)
        total += count
        found.extend({"agent": key[0], "session": key[1], **_values(row)} for row in rows)

    left, errors = visit_sessions(keys, clock, deadline, visit)
    found.sort(key=lambda one: (one["at"] or 0, one["seq"]), reverse=True)
    return {"messages": found[: query.limit], "total": total, "not_examined": left, "errors": errors}


def _keys(data_dir: Path, query: MessageQuery) -> list[Key]:
    known = read_central(data_dir).known()
    if query.session is not None:
        if query.session not in known:
            raise UnknownSessionError(f"there is no session {'/'.join(query.session)}.")
        return [query.session]
    return [key for key in known if query.agent in (None, key[0])]


def _read(reader: Reader, query: MessageQuery) -> tuple[Sequence[sqlite3.Row], int]:
    where, values = ["true"], list[object]()
    if query.status is not None:
        where.append("status = ?")
        values.append(query.status)
    if query.since is not None:
        where.append("julianday(timestamp) >= julianday(?)")
        values.append(to_text(query.since))
    matching = f"FROM messages_in WHERE {' AND '.join(where)}"
    count = reader.one(f"SELECT count(*) {matching}", values)
    rows = reader.all(
        f"SELECT *, {attempts_of(reader)} AS attempts, {CONTENT} {matching} ORDER BY seq DESC LIMIT ?",
        (*values, query.limit),
    )
    return rows, int(count[0]) if count is not None else 0


def _values(row: sqlite3.Row) -> dict[str, Any]:
    values = dict(row)
    return {
        "id": str(values["id"]),
        "seq": values.get("seq") or 0,
        "status": values.get("status"),
        "kind": values.get("kind"),
        "trigger": bool(values.get("trigger", 1)),
        "attempts": values["attempts"],
        "tries": values.get("tries") or 0,
        "at": from_text(values.get("timestamp")),
        "process_after": from_text(values.get("process_after")),
        "text": preview(str(row[-1]), _TEXT),
    }
