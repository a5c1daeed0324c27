"""What must hold of a data folder whatever happened before: the invariants of the contract that files can show.

`check_session` and `check_data_folder` raise one AssertionError that names every violation; `session_violations` and
`data_folder_violations` return them. They only read. Call them in a process that has no session file open (closing a
file drops this process's locks on it) and while no daemon or runner is in mid-commit.

- `at_rest`: nothing runs and all is done, so every ack is settled, no attempt is open and no send is in doubt.
- `hostile`: the container wrote what it liked; nothing is asked of outbound.db, nor of what only it could explain.
- `restored`: the folder was restored from a backup. Its outbound.db files are others, so the host reads them again from the start.
- `pruned`: retention took what was old. A row's counterpart in another file may be gone; whoever asks has seen it go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from daemon.store.data_layout import Layout
from schema.connect import open_reader
from schema.errors import ClawbusError
from schema.ids import session_folder
from tests.support.invariants_files import file_violations, plain_database
from tests.support.invariants_session import Row, SessionRows, load_session, messages_due, row_violations, sends_due


def check_session(root: Path, *, at_rest: bool = False, hostile: bool = False, pruned: bool = False) -> None:
    """Raise AssertionError unless the session folder `root` (`<data>/sessions/<agent>/<session>`) is sound."""
    _raise(session_violations(root, at_rest=at_rest, hostile=hostile, pruned=pruned))


def check_data_folder(data_dir: Path, *, at_rest: bool = False, hostile: bool = False, pruned: bool = False) -> None:
    """Raise AssertionError unless the registry, the mailbox and every session folder are sound, and agree."""
    _raise(data_folder_violations(data_dir, at_rest=at_rest, hostile=hostile, pruned=pruned))


def session_violations(
    root: Path, *, at_rest: bool = False, hostile: bool = False, pruned: bool = False, restored: bool = False
) -> list[str]:
    """Every violation in one session folder, as text."""
    found = list(file_violations(root, at_rest=at_rest, hostile=hostile))
    try:
        rows = load_session(root, hostile=hostile)
    except ClawbusError as error:
        return [*found, f"cannot be read: {error.code}: {error}"]
    return [*found, *row_violations(rows, at_rest=at_rest, pruned=pruned, restored=restored)]


def data_folder_violations(
    data_dir: Path, *, at_rest: bool = False, hostile: bool = False, pruned: bool = False, restored: bool = False
) -> list[str]:
    """Every violation in a whole data folder; a session's begin with its `agent/session`."""
    layout = Layout(data_dir)
    found = list(plain_database(layout.central_db, must_exist=True))
    if found:
        return found
    with open_reader(layout.central_db) as db:
        sessions = {(row["agent"], row["session"]): dict(row) for row in db.all("SELECT * FROM sessions")}
        incarnations = {row["id"]: dict(row) for row in db.all("SELECT * FROM incarnations")}
    found += _incarnation_violations(sessions, incarnations)
    mailbox, gone = _mailbox(layout, found), _deleted(layout)
    on_disk = {(path.parent.name, unquote(path.name)) for path in layout.sessions_dir.glob("*/*") if path.is_dir()}
    for key in sorted(on_disk):
        root = layout.sessions_dir / key[0] / session_folder(key[1])
        problems = session_violations(root, at_rest=at_rest, hostile=hostile, pruned=pruned, restored=restored)
        rows = None if problems else load_session(root, hostile=hostile)
        if key not in sessions:
            # A crash between the files and the registry leaves an empty folder; the first message takes it over.
            if rows is None or rows.messages or rows.outbound:
                problems.append("has a folder, and central.db does not know it")
        elif rows is not None:
            problems += _registry_violations(rows, sessions[key], incarnations, key, pruned=pruned)
            if mailbox is not None and not pruned:
                # What was delivered before an earlier session of this name was deleted stays in the mailbox.
                own = {
                    row["message_out_id"]
                    for row in mailbox
                    if _key(row) == key and row["delivered_at"] > gone.get(key, -1)
                }
                problems += _mailbox_violations(rows, own)
        found += [f"{'/'.join(key)}: {problem}" for problem in problems]
    if at_rest:
        missing = sorted(key for key, row in sessions.items() if row["active"] == 0 and key not in on_disk)
        found += [f"{'/'.join(key)}: central.db knows it, and its folder is gone" for key in missing]
    return found


def _incarnation_violations(sessions: dict[tuple[str, str], Row], incarnations: dict[str, Row]) -> Iterator[str]:
    live = Counter(_key(row) for row in incarnations.values() if row["ended_at"] is None)
    for key, count in live.items():
        if count > 1:
            yield f"central.db: {'/'.join(key)} has {count} live incarnations"
    for row in incarnations.values():
        if _key(row) not in sessions:
            yield f"central.db: incarnation {row['id']} is of a session that is not there"
        if row["ended_at"] is not None and row["end_reason"] is None:
            yield f"central.db: incarnation {row['id']} ended without a reason"


def _registry_violations(
    rows: SessionRows, registered: Row, incarnations: dict[str, Row], key: tuple[str, str], *, pruned: bool
) -> Iterator[str]:
    """What inbound.db and central.db must agree on."""
    own = {name: row for name, row in incarnations.items() if _key(row) == key}
    for attempt in rows.attempts:
        if attempt["incarnation"] not in own and not pruned:
            yield f"attempts: {attempt['message_id']} by {attempt['incarnation']}, which central.db never recorded"
    if registered["active"] or registered["quarantined_at"] is not None:
        return
    # An idle session is looked at again at next_due_at and not before: nothing may be waiting for longer.
    wake = registered["next_due_at"]
    for message, due in messages_due(rows.messages):
        if wake is None or due < wake:
            yield f"messages_in: {message['id']} is due, and central.db has the session idle until {wake}"
    for row, due in sends_due(rows.delivery_attempts):
        if wake is None or due < wake:
            yield f"delivery_attempts: {row['message_out_id']} is open, and central.db has the session idle until {wake}"


def _deleted(layout: Layout) -> dict[tuple[str, str], int]:
    """When sessions of these names were deleted last (epoch ms)."""
    if not layout.central_db.exists():
        return {}
    with open_reader(layout.central_db) as db:
        if not db.columns("session_deletions"):
            return {}
        return {_key(dict(row)): row["at"] for row in db.all("SELECT * FROM session_deletions ORDER BY at")}


def _mailbox(layout: Layout, found: list[str]) -> list[Row] | None:
    if not layout.mailbox_db.exists():
        return None
    problems = list(plain_database(layout.mailbox_db, must_exist=True))
    found += problems
    if problems:
        return None
    with open_reader(layout.mailbox_db) as db:
        return [dict(row) for row in db.all("SELECT cursor, agent, session, message_out_id, delivered_at FROM mailbox")]


def _mailbox_violations(rows: SessionRows, kept: set[str]) -> Iterator[str]:
    """Nothing is delivered to `local` without its entry, and nothing is there that nobody wrote."""
    receipts = {row["message_out_id"] for row in rows.delivered if row["status"] == "delivered"}
    for row in (*rows.outbound, *rows.host_messages):
        if row["channel_type"] == "local" and row["id"] in receipts and row["id"] not in kept:
            yield f"delivered: {row['id']} has a receipt of `local`, and the mailbox has no entry"
    if rows.hostile:
        return
    written = {row["id"] for row in (*rows.outbound, *rows.before, *rows.host_messages)}
    for message_out_id in sorted(kept - written):
        yield f"mailbox: {message_out_id} is an entry that no row of the session explains"


def _key(row: Row) -> tuple[str, str]:
    return row["agent"], row["session"]


def _raise(found: list[str]) -> None:
    if found:
        raise AssertionError(f"{len(found)} invariants broken:\n  " + "\n  ".join(found))
