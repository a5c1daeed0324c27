"""Messages between agents: who asked whom, for which message, and how often it was passed on. Pure.

A relay is the host's own record of one such message, kept beside the message in the receiver's inbound.db, which a container
cannot write. What a container's row says about its thread decides nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, cast

from schema.frozen import frozen

_MAX_PATH: Final = 200  # names; a path grows by one or two with each hop


@frozen
class Root:
    """The message of a person, or a schedule's, that a chain of agents began with. `message` None: it is not known."""

    agent: str
    session: str
    message: str | None


@frozen
class Relay:
    """One message between agents, sent by `agent` and `session`. `reply`: it answers a question.

    `cause` is a message of the session that asked: what it worked on when it sent the question. An answer carries it back.
    """

    agent: str
    session: str
    cause: str | None
    hops: int
    path: tuple[str, ...]
    root: Root
    reply: bool = False

    def to_text(self) -> str:
        """Return the relay as JSON."""
        return json.dumps(
            {
                "agent": self.agent, "session": self.session, "cause": self.cause, "hops": self.hops,
                "path": list(self.path), "root": [self.root.agent, self.root.session, self.root.message],
                "reply": self.reply,
            }
        )  # fmt: skip


def from_text(text: str | None) -> Relay | None:
    """Return the relay of a row; None for a message that no agent sent, and for text that is no relay."""
    if text is None:
        return None
    try:
        found = cast("dict[str, Any]", json.loads(text))
        root = found["root"]
        return Relay(
            str(found["agent"]), str(found["session"]), found["cause"], int(found["hops"]), tuple(map(str, found["path"])),
            Root(str(root[0]), str(root[1]), root[2]), bool(found.get("reply")),
        )  # fmt: skip
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def question(asker: tuple[str, str], cause: str | None, before: Relay | None) -> Relay:
    """Return the relay of a question that `asker` (agent, session) sends while it works on its message `cause`.

    `before` is that message's relay: a chain goes on, and its hops count up.
    """
    if before is None:
        return Relay(*asker, cause, 1, (asker[0],), Root(*asker, cause))
    path = (*before.path, asker[0])[-_MAX_PATH:]
    return Relay(*asker, cause, before.hops + 1, path, before.root)


def answer(asked: Relay, answerer: tuple[str, str], before: Relay) -> Relay:
    """Return the relay of an answer to `asked`, which `answerer` gives while it works on a message whose relay is `before`.

    It keeps the higher count of the two, so that asking again goes on counting.
    """
    hops = max(asked.hops, before.hops)
    return Relay(*answerer, asked.cause, hops, (*before.path, answerer[0])[-_MAX_PATH:], asked.root, reply=True)


@dataclass(slots=True)
class Bucket:
    """A token bucket: `burst` messages at once, then `per_minute`. Times are monotonic seconds."""

    per_minute: float
    burst: int
    tokens: float = -1.0
    at: float = 0.0

    def wait_s(self, now: float) -> float:
        """Take a token and return 0, or return in how many seconds there is one."""
        rate = self.per_minute / 60
        self.tokens = self.burst if self.tokens < 0 else min(self.burst, self.tokens + (now - self.at) * rate)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0
