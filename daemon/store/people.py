"""SQL over the people in central.db: users, their roles and identities, and strangers' requests."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

from daemon.core.errors import PairingClosedError, UnknownUserError, UserRefusedError
from daemon.core.pairing import MAX_WAITING, REFUSED_FOR_MS, Pairing, PairingOutcome
from daemon.core.people import Grant, People, RoleScope, UserRole
from schema.handles import Reader, Writer

MAX_USERS: Final = 100_000


def read_people(db: Reader) -> People:
    """Return who is known."""
    identities = {(row["channel"], row["sender"]): str(row["user"]) for row in db.all("SELECT * FROM identities")}
    grants: dict[str, list[Grant]] = {}
    for row in db.all("SELECT * FROM user_roles"):
        grant = Grant(UserRole(row["role"]), row["agent"], RoleScope(row["scope"]))
        grants.setdefault(row["user"], []).append(grant)
    revoked = frozenset(row["name"] for row in db.all("SELECT name FROM users WHERE revoked_at IS NOT NULL"))
    return People(identities, grants, revoked)


def users(db: Reader) -> list[dict[str, Any]]:
    """Return every user with roles and identities, by name."""
    roles: dict[str, list[dict[str, Any]]] = {}
    for row in db.all("SELECT * FROM user_roles ORDER BY user, agent, scope"):
        roles.setdefault(row["user"], []).append({key: row[key] for key in ("role", "agent", "scope", "at", "by")})
    identities: dict[str, list[dict[str, Any]]] = {}
    for row in db.all("SELECT * FROM identities ORDER BY user, channel, sender"):
        identities.setdefault(row["user"], []).append({key: row[key] for key in ("channel", "sender", "at", "by")})
    return [
        {**dict(row), "roles": roles.get(row["name"], []), "identities": identities.get(row["name"], [])}
        for row in db.all("SELECT * FROM users ORDER BY name")
    ]


def check_user(db: Reader, name: str) -> Mapping[str, Any]:
    """Return a user's row. Raise UnknownUserError."""
    row = db.one("SELECT * FROM users WHERE name = ?", (name,))
    if row is None:
        raise UnknownUserError(f"there is no user {name!r}.")
    return dict(row)


def add_user(db: Writer, name: str, by: str, now: int) -> None:
    """Add a user, in a transaction of the caller's. Raise UserRefusedError if the name is taken."""
    if db.one("SELECT 1 FROM users WHERE name = ?", (name,)) is not None:
        raise UserRefusedError(f"there is a user {name!r} already.")
    count = db.one("SELECT count(*) AS n FROM users")
    if count is not None and count["n"] >= MAX_USERS:
        raise UserRefusedError(f"there are {MAX_USERS} users, and no more can be added.")
    db.execute("INSERT INTO users(name, added_at, added_by) VALUES (?, ?, ?)", (name, now, by))


def bind(db: Writer, identity: tuple[str, str], name: str, by: str, now: int) -> None:
    """Bind (channel, sender) to a user, in a transaction of the caller's. Raise UserRefusedError if it is another's."""
    row = db.one("SELECT user FROM identities WHERE channel = ? AND sender = ?", identity)
    if row is not None and row["user"] != name:
        raise UserRefusedError(f"{identity[1]} on {identity[0]} is the user {row['user']!r} already.")
    db.execute(
        "INSERT INTO identities(channel, sender, user, at, by) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (*identity, name, now, by),
    )


def grant(db: Writer, name: str, given: Grant, by: str, now: int) -> None:
    """Give a user a role, in place of the one for the same agent and scope; in a transaction of the caller's."""
    db.execute(
        "INSERT OR REPLACE INTO user_roles(user, agent, scope, role, at, by) VALUES (?, ?, ?, ?, ?, ?)",
        (name, given.agent, given.scope.value, given.role.value, now, by),
    )


def take_role(db: Writer, name: str, agent: str, scope: str) -> None:
    """Take a user's role for an agent and scope away, in a transaction of the caller's."""
    db.execute("DELETE FROM user_roles WHERE user = ? AND agent = ? AND scope = ?", (name, agent, scope))


def set_revoked(db: Writer, name: str, by: str | None, reason: str | None, now: int) -> None:
    """Revoke a user, or with `by` None take that back; in a transaction of the caller's."""
    db.execute(
        "UPDATE users SET revoked_at = ?, revoked_by = ?, reason = ? WHERE name = ?",
        (now if by is not None else None, by, reason, name),
    )


# --- strangers


def open_pairings(db: Reader, now: int) -> list[Pairing]:
    """Return requests that wait, and those that were refused lately."""
    rows = db.all(
        "SELECT * FROM pairings WHERE (outcome IS NULL AND expires_at > ?) OR (outcome = 'refused' AND decided_at > ?)",
        (now, now - REFUSED_FOR_MS),
    )
    return [_pairing(row) for row in rows]


def pairings(db: Reader, limit: int) -> Sequence[Pairing]:
    """Return the newest requests, whatever became of them."""
    return [_pairing(row) for row in db.all("SELECT * FROM pairings ORDER BY asked_at DESC LIMIT ?", (limit,))]


def ask(db: Writer, wanted: Pairing, *, doubted: bool = False) -> Pairing | None:
    """Record a request, or return the one of the same that waits. Return None when too many of its channel wait.

    With `doubted`, the clock may be wrong, and no request has expired.
    """
    with db.transaction():
        if not doubted:
            db.execute(
                "DELETE FROM pairings WHERE (outcome IS NULL AND expires_at <= ?) OR decided_at <= ?",
                (wanted.asked_at, wanted.asked_at - REFUSED_FOR_MS),
            )
        same = db.one(
            "SELECT * FROM pairings WHERE channel = ? AND sender = ? AND agent = ? AND scope = ? AND outcome IS NULL",
            wanted.key,
        )
        if same is not None:
            return _pairing(same)
        waiting = "SELECT count(*) AS n FROM pairings WHERE outcome IS NULL AND channel = ?"
        count = db.one(waiting, (wanted.channel,))
        if count is not None and count["n"] >= MAX_WAITING:
            return None
        db.execute(
            "INSERT INTO pairings(code, channel, sender, agent, scope, place, asked_at, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (wanted.code, *wanted.key, wanted.place, wanted.asked_at, wanted.expires_at),
        )
    return wanted


def waiting(db: Reader, code: str, now: int) -> Pairing:
    """Return the request with this code. Raise PairingClosedError if there is none that waits."""
    row = db.one("SELECT * FROM pairings WHERE code = ?", (code.strip().upper(),))
    found = _pairing(row) if row is not None else None
    if found is None:
        raise PairingClosedError(f"there is no request with the code {code!r}.")
    if found.outcome is not None:
        raise PairingClosedError(f"the request {found.code} was {found.outcome} by {found.decided_by}.")
    if not found.waits(now):
        raise PairingClosedError(f"the request {found.code} has expired.")
    return found


def decide(db: Writer, pairing: Pairing, outcome: PairingOutcome, user: str | None, by: str, now: int) -> None:
    """Record what became of a request, in a transaction of the caller's."""
    db.execute(
        "UPDATE pairings SET outcome = ?, decided_at = ?, decided_by = ?, user = ? WHERE code = ?",
        (outcome.value, now, by, user, pairing.code),
    )


def _pairing(row: sqlite3.Row) -> Pairing:
    return Pairing(
        code=row["code"],
        channel=row["channel"],
        sender=row["sender"],
        agent=row["agent"],
        scope=RoleScope(row["scope"]),
        place=row["place"],
        asked_at=row["asked_at"],
        expires_at=row["expires_at"],
        outcome=PairingOutcome(row["outcome"]) if row["outcome"] is not None else None,
        decided_at=row["decided_at"],
        decided_by=row["decided_by"],
        user=row["user"],
    )
