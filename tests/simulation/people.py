"""People at routed places: some messages come from them, and they answer the questions that they read there, in plain words.

What they write is handed in as the router does it: as a message that may be an answer. Their channel sometimes hands it in
once more. Whether a text was taken as an answer or as a message is the bus's to say, and must be true for good.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

import anyio

from daemon.channels.protocol import Accepted, Incoming, Outgoing
from daemon.core.answering import Person
from daemon.core.session_key import SessionKey
from schema.rows import Address
from tests.simulation.world import World

NAMES: Final = ("ann", "ben")
WORDS: Final = ("yes", "no", "YES", "1", "2", "3", "perhaps", "approve")
_MOST: Final = 6  # texts a run

Insist = Callable[[SessionKey, str, Incoming, list[Accepted]], Awaitable[None]]


@dataclass
class Written:
    """One text that somebody wrote where a question had been asked, and each yes that the bus gave for it."""

    incoming: Incoming
    sender: str
    accepted: list[Accepted] = field(default_factory=list[Accepted])


class People:
    """Draws from a source of its own. `senders`: who wrote a message, by session and id."""

    def __init__(self, world: World, insist: Insist) -> None:
        self._world = world
        self._insist = insist
        self._rng = Random(f"people {world.seed}")
        self._elsewhere = Random(f"elsewhere {world.seed}")  # of its own, as in `Scenario`
        self._left = self._rng.choice((0, 3, _MOST))
        self.senders: dict[tuple[SessionKey, str], str] = {}
        self.written: dict[tuple[SessionKey, str], Written] = {}
        self.waiting = 0

    def from_somebody(self, key: SessionKey, incoming: Incoming) -> Incoming:
        """Return the message, in some cases as one that a person has written at its place."""
        if not self._left or self._rng.random() < 0.1 or incoming.message_id is None:
            return incoming
        sender = self.senders[key, incoming.message_id] = self._rng.choice(NAMES)
        return _by(sender, incoming, incoming.message_id)

    def read(self, out: Outgoing) -> None:
        """Something has arrived at its place. If it is a question, who reads it may answer."""
        asked = json.loads(out.content)
        if asked.get("type") != "question" or not self._left or self._rng.random() < 0.2:
            return
        key, about = SessionKey(out.agent, out.session), (out.in_reply_to or "").partition("+r")[0]
        sender = self.senders.get((key, about), NAMES[0])
        if self._rng.random() < 0.2:
            sender = self._rng.choice(NAMES)
        self._left -= 1
        self._world.counts["people_write"] += 1
        identity, text = f"w{self._left}", self._rng.choice(WORDS)
        incoming = Incoming(*key, {"text": text}, identity, address=self._where(out.address))
        self.senders[key, identity] = sender  # where it is no answer, it is a message of theirs
        self.written[key, identity] = Written(_by(sender, incoming, text), sender)
        self.waiting += 1
        self._world.loop.spawn(None, self._write(key, identity), f"{sender} answers")

    def _where(self, asked: Address) -> Address:
        """Where the question was asked; at times in another thread or room, where the same word is an ordinary message."""
        if self._elsewhere.random() < 0.7:
            return asked
        self._world.counts["people_write_elsewhere"] += 1
        if self._elsewhere.random() < 0.5:
            return replace(asked, thread_id=None if asked.thread_id else "t")
        return replace(asked, platform_id="attic")

    async def _write(self, key: SessionKey, identity: str) -> None:
        rng, written = self._rng, self.written[key, identity]
        await anyio.sleep(rng.choice((0.0, 0.0, rng.uniform(0.0, 3.0), rng.uniform(0.0, 100.0))))
        for _ in range(rng.choice((1, 1, 2, 3))):
            await self._insist(key, identity, written.incoming, written.accepted)
            self._world.counts["people_answered"] += written.accepted[-1].seq == 0
            await anyio.sleep(rng.choice((0.1, rng.uniform(0.0, 40.0))))
        self.waiting -= 1


def _by(sender: str, incoming: Incoming, text: str) -> Incoming:
    return replace(incoming, plain=text, person=Person(sender), note={"sender": sender, "user": None})
