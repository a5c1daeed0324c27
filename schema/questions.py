"""A question that an agent asks a person: what a container writes, and what the host records. Pure; both sides use it.

A container asks with a row of messages_out, kind `system`, whose content has the type `question`. Its id follows from the
message that the turn works on and from a key, so a turn that is tried again asks the same question and finds its answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, cast

from schema.frozen import frozen
from schema.json_text import UnsendableError, encode, sendable

TYPE: Final = "question"
TOOL: Final = "question"  # what a runner declares as its tool while a question is open
MAX_TEXT: Final = 4_000
MAX_OPTIONS: Final = 20
MAX_WHAT: Final = 1_000  # characters of what a request asks for, and of its reason
MAX_LABEL: Final = 200
MAX_DESCRIPTION: Final = 500
MIN_TIMEOUT_S: Final = 1.0
MAX_TIMEOUT_S: Final = 7 * 86_400.0
DEFAULT_TIMEOUT_S: Final = 3_600.0


class Outcome(StrEnum):
    """How a question ended: questions.outcome."""

    ANSWERED = "answered"
    DECLINED = "declined"  # the person declined to answer
    TIMEOUT = "timeout"  # its deadline came first
    CANCELLED = "cancelled"  # the message that it belongs to ended without it


@frozen
class Option:
    """One choice. `id` is what the agent gets back; people see the label."""

    id: str
    label: str
    description: str | None = None


# What an agent may ask an approver to change, and what that is.
CHANGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "packages": "programs or libraries in its image",
        "mcp_server": "another MCP server",
        "egress_host": "a host that it may reach",
        "secret": "a key or a file with one",
        "mount": "a folder of the host",
        "limit": "more memory, time, tokens or disk",
    }
)
APPROVAL: Final = (Option("approve", "Approve"), Option("refuse", "Refuse"))


class QuestionError(ValueError):
    """A question or an answer that breaks a rule; the text completes "it ..."."""


@frozen
class Question:
    """What is asked. `free_text`: an answer may be any text, not only an option.

    `default`: the id of the option that applies when no answer comes in time; None for none, which means no.
    `notify`: the turn does not wait; the answer comes as a message that wakes the agent. A request for a change is made by
    `change_request` alone.
    """

    text: str
    options: tuple[Option, ...] = ()
    free_text: bool = True
    timeout_s: float = DEFAULT_TIMEOUT_S
    default: str | None = None
    notify: bool = False
    asks_for: str | None = None  # one of CHANGES; then only an approver may answer

    def __post_init__(self) -> None:
        """Raise QuestionError for a question that no channel could show or no person could answer."""
        _check_text("text", self.text, MAX_TEXT)
        if len(self.options) > MAX_OPTIONS:
            raise QuestionError(f"has more than {MAX_OPTIONS} options")
        for option in self.options:
            _check_text("option's id", option.id, MAX_LABEL)
            _check_text("option's label", option.label, MAX_LABEL)
            if option.description is not None:
                _check_text("option's description", option.description, MAX_DESCRIPTION)
        ids = [option.id for option in self.options]
        if len(set(ids)) < len(ids):
            raise QuestionError("has two options with one id")
        if not self.options and not self.free_text:
            raise QuestionError("has no options and takes no text")
        if self.default is not None and self.default not in ids:
            raise QuestionError("has a default that is not an option")
        if not (math.isfinite(self.timeout_s) and MIN_TIMEOUT_S <= self.timeout_s <= MAX_TIMEOUT_S):
            raise QuestionError(f"has a timeout_s that is not between {MIN_TIMEOUT_S:g} and {MAX_TIMEOUT_S:g} seconds")


@frozen
class Decision:
    """How a question ended. `choice` is an option's id; `text` is what was written; `by` says who answered."""

    outcome: Outcome
    choice: str | None = None
    text: str | None = None
    by: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return the decision as an agent sees it."""
        return {
            "status": self.outcome.value,
            "choice": self.choice,
            "text": self.text,
            "by": self.by,
        }


def key_of(question: Question) -> str:
    """Return a key made from what is asked, for a caller that has none."""
    return encode([question.text, [[option.id, option.label] for option in question.options]])


def change_request(kind: str, what: str, reason: str) -> Question:
    """Return the question whether an approver agrees to a change of the agent's surroundings. Raise QuestionError."""
    if kind not in CHANGES:
        raise QuestionError(f"asks for a change that is none of {', '.join(CHANGES)}")
    _check_text("`what`", what, MAX_WHAT)
    _check_text("`reason`", reason, MAX_WHAT)
    text = f"The agent asks an admin for a change ({kind}): {what.strip()}\nReason: {reason.strip()}"
    return Question(text, APPROVAL, free_text=False, timeout_s=MAX_TIMEOUT_S, notify=True, asks_for=kind)


def to_content(identity: str, question: Question) -> str:
    """Return the content of the row that asks: JSON that a channel delivers as it is."""
    fields: dict[str, object] = {
        "type": TYPE,
        "question": identity,
        "text": question.text,
        "options": options_json(question.options),
        "free_text": question.free_text,
        "timeout_s": question.timeout_s,
        "default": question.default,
        "notify": question.notify,
        **({"asks_for": question.asks_for} if question.asks_for is not None else {}),
    }
    return encode(sendable(fields))


def options_json(options: tuple[Option, ...]) -> list[dict[str, object]]:
    """Return the options as JSON values."""
    return [
        {
            "id": option.id,
            "label": option.label,
            **({"description": option.description} if option.description is not None else {}),
        }
        for option in options
    ]


def is_question(kind: str, content: str) -> bool:
    """Return whether a row is meant to ask a question, whatever is wrong with it."""
    if kind != "system" or TYPE not in content:
        return False
    value = _parsed(content)
    return value is not None and value.get("type") == TYPE


def from_content(row_id: str, content: str) -> Question:
    """Return the question that a container's row asks. Raise QuestionError; the row is hostile input."""
    value = _parsed(content)
    if value is None or value.get("type") != TYPE:
        raise QuestionError("is not a question")
    if value.get("question") != row_id:
        raise QuestionError("names another id than its row's")
    return from_fields(value)


def from_fields(value: Mapping[str, object]) -> Question:
    """Return the question of these JSON fields. An option may be a text: then it is its own id. Raise QuestionError."""
    text, default, timeout = value.get("text"), value.get("default"), value.get("timeout_s", DEFAULT_TIMEOUT_S)
    if not isinstance(text, str):
        raise QuestionError("has no `text`")
    asks_for = value.get("asks_for")
    if asks_for is not None:
        return _checked_request(asks_for, text)
    if default is not None and not isinstance(default, str):
        raise QuestionError("has a `default` that is not text")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise QuestionError("has a `timeout_s` that is not a number")
    return Question(
        text=text,
        options=options_from(value.get("options")),
        free_text=_flag(value, "free_text", default=True),
        timeout_s=float(timeout),
        default=default,
        notify=_flag(value, "notify", default=False),
    )


def _checked_request(asks_for: object, text: str) -> Question:
    """Return a request for a change as the host records it: what its text says, and nothing else of the row's fields."""
    if not isinstance(asks_for, str) or asks_for not in CHANGES:
        raise QuestionError(f"asks for a change that is none of {', '.join(CHANGES)}")
    return Question(text, APPROVAL, free_text=False, timeout_s=MAX_TIMEOUT_S, notify=True, asks_for=asks_for)


def options_from(value: object) -> tuple[Option, ...]:
    """Return the options of a JSON list. Raise QuestionError."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(cast("list[object]", value)) > MAX_OPTIONS:
        raise QuestionError(f"has `options` that are not a list of at most {MAX_OPTIONS}")
    return tuple(_option(one) for one in cast("list[object]", value))


def _option(value: object) -> Option:
    if isinstance(value, str):
        return Option(value, value)
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    label = fields.get("label")
    identity, description = fields.get("id", label), fields.get("description")
    if not isinstance(label, str) or not isinstance(identity, str):
        raise QuestionError("has an option without a `label`")
    if description is not None and not isinstance(description, str):
        raise QuestionError("has an option whose `description` is not text")
    return Option(identity, label, description)


def choose(question: Question, answer: str) -> Decision:
    """Return the decision in a person's answer: an option by its id, label or number, else free text.

    Raise QuestionError when the answer is not an option and free text is not accepted. `by` is left to the caller.
    """
    said = answer.strip()
    if not said:
        raise QuestionError("is empty")
    if len(said) > MAX_TEXT:
        raise QuestionError(f"has more than {MAX_TEXT} characters")
    folded = said.casefold()
    for option in question.options:
        if said == option.id or folded == option.label.casefold():
            return Decision(Outcome.ANSWERED, option.id, option.label)
    if said.isascii() and said.isdigit() and len(said) < 4 and 1 <= int(said) <= len(question.options):
        option = question.options[int(said) - 1]
        return Decision(Outcome.ANSWERED, option.id, option.label)
    if not question.free_text:
        known = ", ".join(f"{number} {option.label}" for number, option in enumerate(question.options, 1))
        raise QuestionError(f"is not one of the options ({known})")
    return Decision(Outcome.ANSWERED, None, said)


def _parsed(content: str) -> Mapping[str, object] | None:
    try:
        value = sendable(cast("object", json.loads(content)))
        return cast("dict[str, object]", value) if isinstance(value, dict) else None
    except (ValueError, RecursionError, UnsendableError):
        return None


def _flag(value: Mapping[str, object], name: str, *, default: bool) -> bool:
    found = value.get(name, default)
    if not isinstance(found, bool):
        raise QuestionError(f"has a `{name}` that is neither true nor false")
    return found


def _check_text(what: str, text: str, longest: int) -> None:
    if not text.strip() or "\0" in text:
        raise QuestionError(f"has an empty {what}")
    if len(text) > longest:
        raise QuestionError(f"has a {what} of more than {longest} characters")
