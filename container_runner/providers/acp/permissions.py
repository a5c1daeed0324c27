"""Decides which of an agent's permission requests are allowed. Pure.

The kinds are the protocol's tool kinds; a kind that is not among them counts as `other`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final, cast

from schema.json_text import whole_text
from schema.questions import MAX_OPTIONS, Option, Question

KINDS: Final = ("read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other")
DEFAULT: Final = "default"
# Reading changes nothing. For everything else, a person has to decide.
_WITHOUT_ASKING: Final = frozenset({"read", "search", "think"})
_SHOWN: Final = 200
_MAX_INPUT: Final = 1500
_ORDER: Final = MappingProxyType({"allow_once": 0, "reject_once": 1, "allow_always": 2, "reject_always": 3})
_WAYS: Final[Mapping[bool, tuple[str, str]]] = {
    True: ("allow_once", "allow_always"),
    False: ("reject_once", "reject_always"),
}


class Policy(StrEnum):
    """The decision on a permission request."""

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


def is_allowed(outcome: Mapping[str, object], options: object) -> bool:
    """Return whether this outcome selects an option that allows."""
    selected = cast("dict[str, object]", outcome["outcome"]).get("optionId")
    return any(
        cast("dict[str, object]", one).get("optionId") == selected
        and cast("dict[str, object]", one).get("kind") in _WAYS[True]
        for one in _list(options)
        if isinstance(one, dict)
    )


def named(call: Mapping[str, object]) -> str:
    """Return what a tool call wants to do, on one line."""
    title = call.get("title")
    return _line(title)[:_SHOWN] if isinstance(title, str) and title.strip() else "a tool"


def permission_question(call: Mapping[str, object], kind: str, options: object) -> Question:
    """Return the question that asks a person for a permission. Raise QuestionError for one that cannot be asked.

    It shows the tool's input as well as its title, because a title may say less. The options are the agent's own; what holds
    from then on comes after what holds once.
    """
    text = f"May the agent use this tool? {named(call)} ({_line(kind)[:_SHOWN]})"
    given = call.get("rawInput")
    if isinstance(given, dict) and given:
        text += f"\n{_line(json.dumps(given, ensure_ascii=False))[:_MAX_INPUT]}"
    offered = [cast("dict[str, object]", one) for one in _list(options)[:MAX_OPTIONS] if isinstance(one, dict)]
    offered.sort(key=lambda one: _ORDER.get(str(one.get("kind")), len(_ORDER)))
    choices = tuple(Option(str(one.get("optionId")), _line(str(one.get("name")))[:_SHOWN]) for one in offered)
    no = next((str(one.get("optionId")) for one in offered if one.get("kind") in _WAYS[False]), None)
    return Question(text, choices, free_text=False, default=no)


def _line(text: str) -> str:
    shown = "".join(character if character.isprintable() else " " for character in whole_text(text))
    return " ".join(shown.split())


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
