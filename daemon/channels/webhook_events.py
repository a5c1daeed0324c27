"""Turns a hook's request into a message for the hook's own agent, or an event of a place that the router decides on. Pure.

A hook's place is its name, or `NAME:` and what its `place` template says, so that an answer finds its hook again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from daemon.channels.protocol import Incoming, PlaceMessage
from daemon.channels.webhook_refusals import BodyRefusedError, UnknownHookError
from daemon.channels.webhook_settings import ANY_SESSION, OF_PLACE, Hook
from daemon.core.attachments import Attachment, FilesToFetch
from daemon.core.place_names import escape, fitted
from daemon.core.routing import PlaceEvent
from daemon.core.templates import MissingFieldError, look_up, parse
from schema.frozen import frozen
from schema.ids import check_session
from schema.rows import Address

_FIELDS: Final = "Send the fields that are named; a name is made of text, whole numbers, true and false."
_ONE_FIELD: Final = 2  # literals in a template with one field: the text before it and the text after it
# Where services put a person's text in the bodies that they post, for routes that match the text.
_TEXTS: Final = (("text",), ("body", "text"), ("body", "message"), ("body", "comment", "body"), ("body", "content"))


@frozen
class HookRequest:
    """A request whose signature is right. `payload` is {"body": ...} or {"text": ...}."""

    channel: str
    hook: str
    message_id: str
    event: str
    content: Mapping[str, object]
    payload: Mapping[str, object]
    session: str | None
    traceparent: str | None
    not_after: int | None
    files: tuple[Attachment, ...] = ()
    to_fetch: FilesToFetch | None = None


def message_of(hook: Hook, request: HookRequest) -> Incoming | PlaceMessage:
    """Return the message or the event. Raise UnknownHookError or BodyRefusedError."""
    values = {**request.payload, "event": request.event, "hook": request.hook}
    if hook.agent is None:
        return _event(hook, request, values)
    return Incoming(
        agent=hook.agent,
        session=_session(hook, request, values),
        content=request.content,
        message_id=request.message_id,
        kind=hook.kind,
        address=Address(request.channel, request.hook),
        traceparent=request.traceparent,
        not_after=request.not_after,
        files=request.files,
        to_fetch=request.to_fetch,
    )


def is_wanted(hook: Hook, event: str, payload: Mapping[str, object]) -> bool:
    """Return whether the hook takes events of this kind: `events` names the kind, or the kind and the body's action."""
    if not hook.events:
        return True
    kind = event or look_up(payload, ("body", "event", "type")) or look_up(payload, ("body", "type")) or ""
    action = look_up(payload, ("body", "action"))
    return kind in hook.events or (action is not None and f"{kind}.{action}" in hook.events)


def _event(hook: Hook, request: HookRequest, values: Mapping[str, object]) -> PlaceMessage:
    if request.session is not None:
        raise UnknownHookError("routes name this hook's sessions.", hint="POST /hooks/NAME")
    within = _filled("place", hook.place, values)
    place = request.hook if within is None else f"{request.hook}{OF_PLACE}{within}"
    text = _filled("text", hook.text, values)
    if text is None:
        text = next((found for path in _TEXTS if (found := look_up(values, path))), "")
    thread, sender = _filled("thread", hook.thread, values), _filled("sender", hook.sender, values)
    event = PlaceEvent(
        channel=request.channel,
        place=place,
        id=request.message_id,
        text=text,
        thread=thread,
        sender=sender,
        verified=True,  # the hook's signature verified it
        fields=values,
    )
    content = {**request.content, "sender": sender} if sender is not None else dict(request.content)
    return PlaceMessage(
        event, content, Address(request.channel, place, thread), hook.kind, request.traceparent, request.not_after,
        request.files, request.to_fetch,
    )  # fmt: skip


def _filled(key: str, template: str | None, values: Mapping[str, object]) -> str | None:
    """Return what a template says, or None where the event lacks its fields: the router decides what that means.

    A name stays as the service has it, blanks included: two people must not become one. For the same reason the values of
    a name with several fields are escaped, so that none can pretend to hold what joins them.
    """
    if template is None:
        return None
    parsed = parse(template)
    try:
        if key == "text":
            return parsed.render(values).strip() or None
        several = len(parsed.literals) > _ONE_FIELD
        return (parsed.render(values, escape) if several else parsed.render(values)) or None
    except MissingFieldError as error:
        if key == "place":
            raise BodyRefusedError(f"the hook's place cannot be filled: {error}.", hint=_FIELDS) from error
        return None


def _session(hook: Hook, request: HookRequest, values: Mapping[str, object]) -> str:
    own, given = cast("str", hook.session), request.session
    if own == ANY_SESSION:
        if given is None:
            raise UnknownHookError("this hook needs a session in its path.", hint="POST /hooks/NAME/SESSION")
        return check_session(given)
    if given is not None:
        raise UnknownHookError("this hook always uses the same session.", hint="POST /hooks/NAME")
    template = parse(own)
    if not template.has_fields:
        return template.render({})
    try:
        return fitted(template.render(values, escape))
    except MissingFieldError as error:
        raise BodyRefusedError(f"the hook's session cannot be named: {error}.", hint=_FIELDS) from error
