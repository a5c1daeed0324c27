"""Carries out the verbs about people, on central.db. Each is one transaction; who may decide is checked inside it."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any, Final

from daemon.core.errors import NotAnApproverError, UserRefusedError
from daemon.core.pairing import Pairing, PairingOutcome, may_approve
from daemon.core.people import ANY_AGENT, Grant, RoleScope, UserRole
from daemon.core.people_verbs import AddUser, BindUser, DecidePairing, RestoreUser, RevokeUser, SetRole, UserVerb
from daemon.core.place_names import name_fault
from daemon.store import people
from schema.handles import Writer
from schema.ids import check_name

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME: Final = 40


def change_user(
    db: Writer, verb: UserVerb, agents: Container[str], channels: Container[str], now: int
) -> dict[str, Any]:
    """Carry out one verb. Raise UnknownUserError or UserRefusedError."""
    with db.transaction():
        match verb:
            case AddUser():
                people.add_user(db, verb.name, verb.by, now)
                return {"name": verb.name}
            case BindUser():
                people.check_user(db, verb.name)
                fault = name_fault(verb.sender)
                if fault is not None or verb.channel not in channels:
                    what = f"the sender {fault}" if fault is not None else f"there is no channel {verb.channel!r}"
                    raise UserRefusedError(f"{what}.")
                people.bind(db, (verb.channel, verb.sender), verb.name, verb.by, now)
                return {"name": verb.name, "channel": verb.channel, "sender": verb.sender}
            case SetRole():
                return _set_role(db, verb, agents, now)
            case RevokeUser() | RestoreUser():
                people.check_user(db, verb.name)
                revoked = isinstance(verb, RevokeUser)
                people.set_revoked(db, verb.name, verb.by if revoked else None, verb.reason, now)
                return {"name": verb.name, "revoked": revoked}
            case _:
                raise NotImplementedError(type(verb).__name__)


def _set_role(db: Writer, verb: SetRole, agents: Container[str], now: int) -> dict[str, Any]:
    people.check_user(db, verb.name)
    if verb.agent != ANY_AGENT and verb.agent not in agents:
        raise UserRefusedError(f"there is no agent {verb.agent!r}.", hint="See `clawbus agent list`.")
    if verb.scope not in tuple(RoleScope) or verb.role not in (None, *UserRole):
        raise UserRefusedError(f"a role is one of {', '.join(UserRole)}, a scope one of {', '.join(RoleScope)}.")
    if verb.role is None:
        people.take_role(db, verb.name, verb.agent, verb.scope)
    else:
        people.grant(db, verb.name, Grant(UserRole(verb.role), verb.agent, RoleScope(verb.scope)), verb.by, now)
    return {"name": verb.name, "role": verb.role, "agent": verb.agent, "scope": verb.scope}


def decide_pairing(db: Writer, verb: DecidePairing, now: int) -> dict[str, Any]:
    """Let a stranger in, or refuse. Raise PairingClosedError, NotAnApproverError, UnknownUserError or UserRefusedError."""
    with db.transaction():
        asked = people.waiting(db, verb.code, now)
        if verb.approver is not None and not may_approve(
            people.read_people(db), verb.approver, asked.agent, UserRole.MEMBER
        ):
            raise NotAnApproverError(f"{verb.approver} is not an admin of agent {asked.agent}.")
        by = verb.approver or verb.by
        if not verb.approve:
            people.decide(db, asked, PairingOutcome.REFUSED, None, by, now)
            return _decided(asked, PairingOutcome.REFUSED, None)
        name = _user_for(db, asked, verb, by, now)
        people.bind(db, (asked.channel, asked.sender), name, by, now)
        people.grant(db, name, Grant(UserRole.MEMBER, asked.agent, asked.scope), by, now)
        people.decide(db, asked, PairingOutcome.APPROVED, name, by, now)
    return _decided(asked, PairingOutcome.APPROVED, name)


def _decided(asked: Pairing, outcome: PairingOutcome, name: str | None) -> dict[str, Any]:
    return {
        "name": name, "code": asked.code, "outcome": outcome.value, "agent": asked.agent, "scope": asked.scope.value,
        "channel": asked.channel, "sender": asked.sender,
    }  # fmt: skip


def _user_for(db: Writer, asked: Pairing, verb: DecidePairing, by: str, now: int) -> str:
    """Return the user that the stranger is: the named one, the one of that identity, or a new one with a free name."""
    known = verb.user
    if known is None:
        known = people.read_people(db).user_of(asked.channel, asked.sender)
    if known is not None:
        if people.check_user(db, check_name("user", known))["revoked_at"] is not None:
            raise UserRefusedError(f"the user {known!r} was revoked.", hint="`clawbus user restore` first.")
        return known
    base = _NO_NAME.sub("-", asked.sender).strip("-._")[:_MAX_NAME] or "user"
    name, number = base, 1
    while db.one("SELECT 1 FROM users WHERE name = ?", (name,)) is not None:
        number += 1
        name = f"{base}-{number}"
    people.add_user(db, name, by, now)
    return name
