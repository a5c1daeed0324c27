"""Which of an agent's permission requests are allowed. Pure.

The kinds are the protocol's tool kinds; a kind that is not among them counts as `other`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, cast

KINDS: Final = ("read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other")
DEFAULT: Final = "default"
# Looking at what is there changes nothing; for everything else somebody has to decide.
_WITHOUT_ASKING: Final = frozenset({"read", "search", "think"})
_WAYS: Final = {True: ("allow_once", "allow_always"), False: ("reject_once", "reject_always")}


class Policy(StrEnum):
    """What becomes of a permission request."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


def read_policies(entries: Sequence[str]) -> Mapping[str, Policy]:
    """Return the policies by kind from entries "KIND=POLICY". Raise ValueError for an unknown kind or policy."""
    found: dict[str, Policy] = {}
    for entry in entries:
        kind, _, policy = entry.partition("=")
        if kind != DEFAULT and kind not in KINDS:
            raise ValueError(f"{kind!r} is not a kind of tool")
        found[kind] = Policy(policy)
    return found


def policy_for(kind: str, policies: Mapping[str, Policy]) -> Policy:
    """Return the policy for a request of this kind."""
    known = kind if kind in KINDS else "other"
    if known in policies:
        return policies[known]
    if DEFAULT in policies:
        return policies[DEFAULT]
    return Policy.ALLOW if known in _WITHOUT_ASKING else Policy.ASK


def chosen(options: object, *, allowed: bool) -> Mapping[str, object]:
    """Return the request's outcome: the agent's own option for this answer, or `cancelled` when it offers none.

    An option that holds once is preferred to one that holds from then on.
    """
    offered = [cast("dict[str, object]", one) for one in _list(options) if isinstance(one, dict)]
    for way in _WAYS[allowed]:
        for option in offered:
            if option.get("kind") == way and isinstance(option.get("optionId"), str):
                return {"outcome": {"outcome": "selected", "optionId": option["optionId"]}}
    return {"outcome": {"outcome": "cancelled"}}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
