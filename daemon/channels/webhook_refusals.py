"""The reasons why the webhook channel refuses a request, and their HTTP status. Pure.

A 4xx tells the sender what to change. A 5xx means that it is not the sender's fault, and that the message may not have been
stored. No refusal reveals what would have been accepted.
"""

from __future__ import annotations

from typing import Final

from daemon.core.errors import (
    AnswerForbiddenError,
    AnswerRefusedError,
    AttachmentError,
    BodyTooLargeError,
    ContentError,
    IdConflictError,
    MessageError,
    QuestionClosedError,
    RequestRefusedError,
    UnknownAgentError,
    UnknownQuestionError,
    UnknownSessionError,
)
from schema.errors import ClawbusError, InvalidNameError

RETRY_AFTER_S: Final = 5


class UnknownHookError(RequestRefusedError):
    """404: no such path, or a hook that has no such session."""

    code = "UNKNOWN_HOOK"
    default_hint = "POST to /hooks/NAME, or /hooks/NAME/SESSION where the hook's session is '*'."


class MethodRefusedError(RequestRefusedError):
    """405: hooks accept only POST."""

    code = "METHOD_REFUSED"
    default_hint = "Use POST."


class SignatureRefusedError(RequestRefusedError):
    """401: the signature or its timestamp is missing, wrong, too old or used before."""

    code = "SIGNATURE_REFUSED"
    default_hint = (
        "Sign as docs/channels.md shows for this hook's signature: with its own secret, over the body's raw bytes."
    )


class BodyRefusedError(RequestRefusedError):
    """400: the body is not what its content type says."""

    code = "BODY_INVALID"
    default_hint = "Correct what the message names; JSON and text are in UTF-8."


class BodyTimeoutError(RequestRefusedError):
    """408: the body came too slowly."""

    code = "BODY_TIMEOUT"
    default_hint = "Send the whole body at once; body_timeout_s is how long it may take."


class MediaTypeError(RequestRefusedError):
    """415: a content type that hooks do not accept."""

    code = "MEDIA_TYPE"
    default_hint = "Send application/json, text/plain, application/x-www-form-urlencoded or multipart/form-data."


class FileFetchError(ClawbusError):
    """503: a host did not give a file that the request names by URL. Nothing was stored."""

    code = "FILE_NOT_FETCHED"
    default_hint = "Send the request again later, with the same id, or send the file itself."


_STATUS: Final[tuple[tuple[type[ClawbusError], int], ...]] = (
    (UnknownHookError, 404),
    (MethodRefusedError, 405),
    (SignatureRefusedError, 401),
    (BodyTimeoutError, 408),
    (MediaTypeError, 415),
    (BodyTooLargeError, 413),
    (RequestRefusedError, 400),
    (InvalidNameError, 400),
    (MessageError, 400),
    # The JSON was already checked, so this is the bus's own limit on the size of a message's content.
    (ContentError, 413),
    (AttachmentError, 413),  # their number or size: names are cleaned before
    (UnknownAgentError, 404),
    (UnknownSessionError, 404),
    (IdConflictError, 409),
    (UnknownQuestionError, 404),
    (QuestionClosedError, 409),
    (AnswerRefusedError, 400),
    (AnswerForbiddenError, 403),
)


# What a sender is told of refusals whose own words are the operator's: they name agents, people and commands of the host.
_OUTSIDE: Final[tuple[tuple[type[ClawbusError], str, str], ...]] = (
    (IdConflictError, "another message has this id already.", IdConflictError.default_hint),
    (UnknownAgentError, "nobody answers at this hook now.", "Ask who runs it."),
    (UnknownSessionError, "there is no such conversation.", "Send a message first."),
    (UnknownQuestionError, "there is no such question here.", "Send the agent a message instead."),
    (QuestionClosedError, "the question is closed.", "Send the agent a message instead."),
    (AnswerForbiddenError, "you may not answer this question.", "Have somebody answer who may."),
    (AnswerRefusedError, "the question has no such answer.", "Answer with an option's label, id or number."),
)


def said_outside(error: ClawbusError) -> tuple[str, str]:
    """Return what a sender is told of a refusal that is its own to correct: the reason and what to do."""
    neutral = next(((said, fix) for kind, said, fix in _OUTSIDE if isinstance(error, kind)), None)
    return neutral if neutral is not None else (str(error), error.hint)


def status_of(error: ClawbusError) -> int:
    """Return the HTTP status of a refusal: 503 for anything that the sender cannot correct."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 503)
