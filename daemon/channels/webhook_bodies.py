"""Builds the body that is posted to a reply_url: clawbus's own JSON, a chat service's format, or the operator's own. Pure.

Slack: docs.slack.dev/messaging/sending-messages-using-incoming-webhooks. `&`, `<` and `>` are escaped, so that no agent can
mention a whole channel. It drops what goes beyond 40,000 characters without a word. Discord:
docs.discord.com/developers/resources/webhook. It takes at most 2,000 characters; mentions are switched off. Teams: the Adaptive
Card message that a Workflows webhook takes. It refuses more than 28 KB, which it may count in UTF-16
(learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from daemon.channels.protocol import Outgoing
from daemon.core.content import text_of
from daemon.core.errors import PermanentDeliveryError
from daemon.core.printable import one_line
from daemon.core.templates import MissingFieldError, TemplateError, parse
from schema.questions import QuestionError, from_content, is_question

DISCORD_LIMIT: Final = 2_000
SLACK_LIMIT: Final = 40_000
TEAMS_LIMIT: Final = 26_000  # bytes of UTF-16, which leaves 2 KB for the card around the text
_SLACK_ESCAPES: Final = MappingProxyType({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
REPLY_VALUES: Final = frozenset(
    ("text", "agent", "session", "id", "in_reply_to", "kind", "timestamp", "place", "thread", "content")
)
_MAX_DEPTH: Final = 8
_MAX_VALUES: Final = 100


def clawbus_body(message: Outgoing) -> object:
    """Return clawbus's own format. It is the same on every attempt. Raise PermanentDeliveryError if the content is not JSON."""
    return {
        "id": message.message_out_id,
        "in_reply_to": message.in_reply_to,
        "agent": message.agent,
        "session": message.session,
        "kind": message.kind,
        "timestamp": message.timestamp,
        "final": message.final,
        "content": _content(message),
    }


def slack_body(message: Outgoing) -> object:
    """Return the format of Slack's and Mattermost's incoming webhooks, cut at Slack's limit."""
    said = _cut(_said(message), SLACK_LIMIT, lambda char: len(_SLACK_ESCAPES.get(char, char)), message)
    text = "".join(_SLACK_ESCAPES.get(char, char) for char in said)
    thread = message.address.thread_id
    return {"text": text} if thread is None else {"text": text, "thread_ts": thread}


def discord_body(message: Outgoing) -> object:
    """Return the format of Discord's webhooks, cut at their limit."""
    return {"content": _cut(_said(message), DISCORD_LIMIT, len, message), "allowed_mentions": {"parse": []}}


def teams_body(message: Outgoing) -> object:
    """Return the format of a Teams workflow for webhooks, cut at their limit."""
    text = _cut(_said(message), TEAMS_LIMIT, _utf16_in_json, message)
    card = {
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [{"type": "TextBlock", "text": text, "wrap": True}],
    }
    return {
        "type": "message",
        "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}],
    }


FORMATS: Final[Mapping[str, Callable[[Outgoing], object]]] = MappingProxyType(
    {"clawbus": clawbus_body, "slack": slack_body, "discord": discord_body, "teams": teams_body}
)


def check_body(body: object) -> None:
    """Raise ValueError if an operator's body has an invalid template, an unknown field, or too many levels or values."""
    _walk(body, _checked, 0, [0])


def operator_body(body: Mapping[str, Any], message: Outgoing) -> object:
    """Return the operator's body with its templates filled in. A template that names a missing value becomes an empty string.

    Raise PermanentDeliveryError if a template names `content` and that is not JSON.
    """
    values: dict[str, object] = {
        "text": _said(message), "agent": message.agent, "session": message.session,
        "id": message.message_out_id, "in_reply_to": message.in_reply_to, "kind": message.kind,
        "timestamp": message.timestamp, "place": message.address.platform_id, "thread": message.address.thread_id,
    }  # fmt: skip

    def fill(text: str) -> str:
        template = parse(text)
        if "content" in template.first_words and "content" not in values:
            values["content"] = _content(message)
        try:
            return template.render(values)
        except MissingFieldError:
            return ""

    return _walk(body, fill, 0, [0])


def encoded(body: object) -> bytes:
    """Return the body as JSON in UTF-8. Raise PermanentDeliveryError for a value that JSON cannot hold."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise PermanentDeliveryError(f"the content is not JSON: {str(error)[:200]}") from error


def _cut(text: str, limit: int, size: Callable[[str], int], message: Outgoing) -> str:
    """Cut a text whose characters' sizes are above the limit and say so in it; the session keeps the whole text."""
    note = f"\n[cut: {len(text)} characters; the whole answer is {message.message_out_id}]"
    room, used, kept = limit - sum(map(size, note)), 0, 0
    for number, char in enumerate(text, 1):
        used += size(char)
        if used <= room:
            kept = number
        if used > limit:
            return text[:kept] + note
    return text


def _utf16_in_json(char: str) -> int:
    """Return how many bytes of UTF-16 a character takes within a JSON string."""
    return len(json.dumps(char, ensure_ascii=False).encode("utf-16-le", "surrogatepass")) - 4


def _said(message: Outgoing) -> str:
    """Return what a person reads: the text, and of a question each option with the number that chooses it."""
    text = text_of(message.content)
    if not is_question(message.kind, message.content):
        return text
    try:
        options = from_content(message.message_out_id, message.content).options
    except QuestionError:  # the host has refused it, so nobody can answer it
        return text
    lines = [
        f"{number}. {one_line(one.label)}" + (f": {one_line(one.description)}" if one.description else "")
        for number, one in enumerate(options, 1)
    ]
    return "\n".join((text, *lines))


def _content(message: Outgoing) -> object:
    try:
        found: object = json.loads(message.content)
    except (ValueError, RecursionError) as error:
        raise PermanentDeliveryError(f"the content is not JSON: {str(error)[:200]}") from error
    return found


def _checked(text: str) -> str:
    try:
        unknown = sorted(parse(text).first_words - REPLY_VALUES)
    except TemplateError as error:
        raise ValueError(f"the template {error}") from error
    if unknown:
        raise ValueError(f"there is no field {{{unknown[0]}}}; the fields are {', '.join(sorted(REPLY_VALUES))}")
    return text


def _walk(value: object, convert: Callable[[str], str], depth: int, seen: list[int]) -> object:
    """Return a copy with every string replaced by `convert(string)`. Raise ValueError for too many levels or values.

    `seen` holds one number, which all levels share: how many values were visited.
    """
    seen[0] += 1
    if depth > _MAX_DEPTH or seen[0] > _MAX_VALUES:
        raise ValueError(f"has more than {_MAX_DEPTH} levels or {_MAX_VALUES} values")
    if isinstance(value, str):
        return convert(value)
    if isinstance(value, dict):
        items = cast("dict[str, object]", value)
        return {name: _walk(one, convert, depth + 1, seen) for name, one in items.items()}
    if isinstance(value, list):
        return [_walk(one, convert, depth + 1, seen) for one in cast("list[object]", value)]
    return value
