"""The life of an inbound message as a table: which status may follow which. An illegal step raises and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from schema.errors import ClawbusError
from schema.rows import MessageStatus

_S = MessageStatus

# `pending -> pending` is the retry: it changes tries and process_after, so it goes through the same gate.
# A finished message never comes back: a runner claims no id again that it has acked. An operator's requeue is a new message.
TRANSITIONS: Final[Mapping[MessageStatus, frozenset[MessageStatus]]] = MappingProxyType(
    {
        _S.PENDING: frozenset({_S.PENDING, _S.COMPLETED, _S.FAILED, _S.PAUSED, _S.CANCELLED}),
        _S.PAUSED: frozenset({_S.PENDING, _S.COMPLETED, _S.CANCELLED}),
        _S.FAILED: frozenset(),
        _S.COMPLETED: frozenset(),
        _S.CANCELLED: frozenset(),
    }
)


class IllegalTransitionError(ClawbusError):
    """The message's status cannot change this way."""

    code = "ILLEGAL_TRANSITION"
    default_hint = "Read the message's history (`clawbus message show`); a finished message never changes."


def check_transition(message_id: str, current: MessageStatus, target: MessageStatus) -> None:
    """Raise IllegalTransitionError unless `current -> target` is in the table."""
    if target not in TRANSITIONS[current]:
        raise IllegalTransitionError(f"message {message_id} is {current.value} and cannot become {target.value}.")
