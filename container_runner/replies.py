"""Turns an agent's answer into outbound rows: who gets it, where, in reply to what. Pure: no I/O, no clock, generates no ids.

The rules: every trigger of a turn is visibly answered. An answer without `to` goes once to each address that the triggers
came from. It replies to the latest message from that address; if there were several, `answers` lists them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from container_runner.providers.protocol import Destination, OutMessage, TurnMessage
from container_runner.shared.errors import AnswerInvalidError, TurnFailedError
from container_runner.shared.reply import Reply
from schema.frozen import frozen
from schema.json_text import encode, sendable, whole_text
from schema.rows import Address, Kind

_MAX_REASON: Final = 1000
FAILED_TEXT: Final = "The agent could not answer this message."


@frozen
class Plan:
    """The rows to write. `unknown`: names in the answer that match no usable destination."""

    replies: tuple[Reply, ...]
    unknown: tuple[str, ...] = ()


@frozen
class _Origin:
    """An address that triggers came from, with their ids in seq order. None: neither they nor the session have one."""

    address: Address | None
    ids: tuple[str, ...]


def plan_replies(
    outputs: Sequence[OutMessage],
    messages: Sequence[TurnMessage],
    routing: Address | None,
    destinations: Sequence[Destination],
) -> Plan:
    """Return the rows of an answer, in order. An output to an unknown destination is left out and listed in `unknown`.

    Raise AnswerInvalidError for content that no channel can send.
    """
    origins = _origins(messages, routing)
    known = {destination.name: destination for destination in destinations}
    replies: list[Reply] = []
    unknown: list[str] = []
    for output in outputs:
        if output.to is None:
            replies.extend(_reply(output, origin, origin.address) for origin in origins)
            continue
        place = _place(known.get(output.to))
        if place is None:
            unknown.append(output.to)
        else:
            replies.append(_to_place(output, place, messages, origins, routing))
    return Plan(replies=tuple(replies), unknown=tuple(unknown))


def first_from(messages: Sequence[TurnMessage], routing: Address | None, address: Address | None) -> TurnMessage | None:
    """Return the first trigger that came from this address, or None."""
    there = [one for one in messages if one.trigger and _address(one, routing) == address]
    return min(there, key=lambda message: message.seq, default=None)


def failure_replies(
    failure: TurnFailedError, messages: Sequence[TurnMessage], routing: Address | None, *, open_detail: bool
) -> Plan:
    """Return the error answer for every address that a trigger came from.

    The sender may be a stranger, and an error's text may quote keys, paths and addresses. So the answer says only that the
    turn failed, with a reference by which the operator finds the reason. With `open_detail` it gives the reason.
    """
    return Plan(replies=tuple(_failure_reply(failure, origin, open_detail) for origin in _origins(messages, routing)))


def _failure_reply(failure: TurnFailedError, origin: _Origin, open_detail: bool) -> Reply:
    reference = origin.ids[-1]
    reason = str(failure)[:_MAX_REASON]
    text = f"The agent failed: {reason}" if open_detail else f"{FAILED_TEXT} Reference: {reference}."
    message = reason if open_detail else FAILED_TEXT
    error = {"code": failure.code, "message": message, "reference": reference}
    return _reply(OutMessage(content={"text": text, "error": error}), origin, origin.address)


def _origins(messages: Sequence[TurnMessage], routing: Address | None) -> tuple[_Origin, ...]:
    found: dict[Address | None, list[str]] = {}
    for message in sorted(messages, key=lambda message: message.seq):
        if message.trigger:
            found.setdefault(_address(message, routing), []).append(message.id)
    return tuple(_Origin(address, tuple(ids)) for address, ids in found.items())


def _address(message: TurnMessage, routing: Address | None) -> Address | None:
    if message.channel_type is None or message.platform_id is None:
        return routing
    return Address(message.channel_type, message.platform_id, message.thread_id)


def _place(destination: Destination | None) -> tuple[str, str] | None:
    if destination is None or destination.channel_type is None or destination.platform_id is None:
        return None
    return destination.channel_type, destination.platform_id


def _to_place(
    output: OutMessage,
    place: tuple[str, str],
    messages: Sequence[TurnMessage],
    origins: Sequence[_Origin],
    routing: Address | None,
) -> Reply:
    """Return the reply to a named destination. It goes to the thread of the latest message from there, or the output's own."""
    there = [
        address
        for message in sorted(messages, key=lambda message: message.seq)
        if (address := _address(message, routing)) is not None and (address.channel_type, address.platform_id) == place
    ]
    thread = output.thread_id if output.thread_id is not None else (there[-1].thread_id if there else None)
    address = Address(*place, thread)
    origin = next((origin for origin in origins if origin.address == address), _Origin(address, ()))
    if not origin.ids and place[0] == "agent" and origins:
        # The host follows a chain of agents by what each message was sent for: the latest trigger.
        latest = max((message for message in messages if message.trigger), key=lambda message: message.seq)
        origin = _Origin(address, (latest.id,))
    return _reply(output, origin, address)


def _reply(output: OutMessage, origin: _Origin, address: Address | None) -> Reply:
    content: Mapping[str, object] = output.content
    if len(origin.ids) > 1:
        content = {**content, "answers": list(origin.ids)}
    thread = address.thread_id if address is not None else None
    return Reply(
        kind=whole_text(output.kind) or Kind.CHAT,
        content=_encoded(content),
        in_reply_to=origin.ids[-1] if origin.ids else None,
        channel_type=address.channel_type if address is not None else None,
        platform_id=address.platform_id if address is not None else None,
        thread_id=_whole(output.thread_id) if output.thread_id is not None else thread,
        deliver_after=output.deliver_after,
        files=output.attached,
    )


def _encoded(content: Mapping[str, object]) -> str:
    """Encode the content as JSON that any channel can send. Raise AnswerInvalidError if it cannot: providers return anything."""
    try:
        return encode(sendable(content))
    except ValueError as error:
        raise AnswerInvalidError(f"A message of the answer {error}.") from error


def _whole(text: str | None) -> str | None:
    return None if text is None else whole_text(text)
