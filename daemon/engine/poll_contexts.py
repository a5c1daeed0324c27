"""Builds the context of each poll of a session, and keeps the slots that sends need. One for all sessions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import field

from daemon.channels.protocol import InDoubt, InlineChannel, Receiver
from daemon.config.models import Delivery as DeliveryConfig
from daemon.core.attachments import IntakeLimits
from daemon.core.delivery_plan import ChannelRules, HeadRule
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.send_slots import Lane, SendSlots, SlotLimits
from daemon.engine.session import Session
from schema.frozen import frozen


@frozen
class DeliverySettings:
    """Settings of Delivery.

    `config` is [delivery]. `intake` limits one answer and its files. `head_rules` says for each channel how long a failing
    answer blocks those behind it. `jitter` returns the random number that spreads retries. `granted` returns the places
    that an agent may write to now, None while they are not known. `trying_since` returns since when the daemon can send.
    """

    config: DeliveryConfig
    intake: IntakeLimits
    head_rules: Mapping[str, HeadRule] = field(default_factory=dict[str, HeadRule])
    jitter: Callable[[], float] = random.random
    granted: Callable[[str], frozenset[tuple[str, str]] | None] = lambda _agent: None
    trying_since: Callable[[], int] = lambda: 0


class PollContexts:
    """Builds contexts from the settings, the channels, and what a session has under way."""

    def __init__(self, channels: Mapping[str, Receiver], settings: DeliverySettings) -> None:
        self._settings = settings
        self._config = config = settings.config
        self._channel_rules = {
            name: ChannelRules(
                c.capabilities.deduplicates,
                c.capabilities.in_doubt is InDoubt.HOLD,
                settings.head_rules.get(name, HeadRule()),
            )
            for name, c in channels.items()
        }
        # A channel that stores in a file of the daemon delays no other session, and takes its rows during the poll itself.
        self._unbounded = frozenset(name for name, one in channels.items() if isinstance(one, InlineChannel))
        self.slots: SendSlots[Session] = SendSlots(
            SlotLimits(config.max_sends_per_channel, config.max_sends_per_place, config.max_sends_per_session)
        )

    def give_back(self, session: Session, lane: Lane, *, slow: bool | None) -> list[Session]:
        """Free the slot of a send that has ended, if it needed one. Return the sessions that were granted it."""
        return [] if lane[0] in self._unbounded else self.slots.give_back(session, lane, slow=slow)

    def of(self, session: Session, taken: list[Lane], granted: list[Session]) -> DeliveryContext:
        """Return the context of a poll. It adds to `taken` the slots it takes, to `granted` the sessions it grants one."""
        under_way = frozenset(row_id for ids in session.sending.values() for row_id in ids)
        full = self.slots.full(session)
        # What a send under way carries, the next one will: a poll that reads less is followed by more polls.
        rows_a_send = max(1, len(under_way) // max(1, len(session.sending)))

        def take(channel: str, place: str) -> bool:
            if channel in self._unbounded:
                return True
            lane = channel, place
            if not self.slots.take(session, lane):
                return False
            taken.append(lane)
            return True

        def wait(channel: str, place: str) -> None:
            granted.extend(self.slots.wait(session, (channel, place)))

        return DeliveryContext(
            channels=self._channel_rules,
            config=self._config,
            max_content_bytes=self._settings.intake.max_content_bytes,
            intake=self._settings.intake,
            held=frozenset(session.sending),
            under_way=under_way,
            jitter=self._settings.jitter(),
            take=take,
            full=full,
            wait=wait,
            few=4 * self._config.max_sends_per_session * rows_a_send if full or session.sending else None,
            fate=session.fate,
            schedules=session.schedule_limits,
            unconfirmed=session.unconfirmed,
            granted=self._settings.granted(session.key.agent),
            lost=session.lost_places,
            trying_since=self._settings.trying_since(),
        )
