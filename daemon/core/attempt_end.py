"""The end of one try of one message, from which metrics and traces are made. Pure."""

from __future__ import annotations

from typing import Final

from schema.frozen import frozen
from schema.rows import MessageIn

COMPLETED: Final = "completed"
FAILED: Final = "failed"  # the agent answered with an error
RETRIED: Final = "retried"
DEAD_LETTERED: Final = "dead_lettered"


@frozen
class AttemptEnd:
    """One try of one message, over. Epoch milliseconds, in order: due, claimed, ended. `outcome` is one of the above."""

    message: MessageIn
    incarnation: str | None
    outcome: str
    due_at: int
    claimed_at: int
    ended_at: int
