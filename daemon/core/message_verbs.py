"""The operator's verbs about what waits or failed in a session: messages, answers, dead letters, questions."""

from __future__ import annotations

from typing import ClassVar

from daemon.core.verb import RowVerb
from schema.frozen import frozen


@frozen
class RequeueDead(RowVerb):
    """Send a dead letter on its way again: {id, kind: in|out, requeued_as}."""

    route: ClassVar[str] = "/v1/dead/requeue"
    wait_s: ClassVar[float] = 0.0


@frozen
class DropDead(RowVerb):
    """Take a dead letter off the list: {id, kind}."""

    route: ClassVar[str] = "/v1/dead/drop"
    wait_s: ClassVar[float] = 0.0


@frozen
class CancelMessage(RowVerb):
    """Cancel an unfinished message: {id, was, running}. A turn that works on it is asked to stop; `kill` ends its container."""

    route: ClassVar[str] = "/v1/messages/cancel"

    kill: bool = False


@frozen
class RetryMessage(RowVerb):
    """Have a message tried now: {id, was, retried_as}."""

    route: ClassVar[str] = "/v1/messages/retry"


@frozen
class RetryAnswer(RowVerb):
    """Try a failing answer now: {id, was, attempts}."""

    route: ClassVar[str] = "/v1/answers/retry"


@frozen
class DropAnswer(RowVerb):
    """Give an answer up: {id, was, attempts}."""

    route: ClassVar[str] = "/v1/answers/drop"


@frozen
class AnswerQuestion(RowVerb):
    """Answer an open question: {id, outcome, choice, text}. `answer` None: there will be no answer."""

    route: ClassVar[str] = "/v1/questions/answer"

    answer: str | None = None
