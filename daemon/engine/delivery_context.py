"""The context of a session's delivery: channels, limits, busy destinations. One record, built for each poll."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from daemon.config.models import Delivery as DeliveryConfig
from daemon.core.attachments import NO_FILES, IntakeLimits
from daemon.core.delivery_plan import ChannelRules
from daemon.core.giving_up import tried_long_enough
from daemon.core.message_fate import Fate
from daemon.core.schedule_limits import ScheduleLimits


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """What a session's delivery depends on.

    `held`: destinations with a send under way. `take(channel, place)` takes a slot for a send, if one is free. No slot is
    free at the places in `full`; `wait(channel, place)` registers that something waits there. `few`: the most tracked rows
    to read, since no more can be sent. `unconfirmed`: rows whose intent's commit failed but may have reached the file,
    although nothing was sent; `collect` maintains it. `granted`: the places that configuration and routes let the agent
    write to now, None while they are not known; `lost`: those that its running container lost. `schedules`: what the agent may ask for with its own. `intake` limits
    the files of answers. `trying_since`: since when this daemon can send (epoch milliseconds).
    """

    channels: Mapping[str, ChannelRules]
    config: DeliveryConfig
    max_content_bytes: int
    held: frozenset[str]
    under_way: frozenset[str]
    jitter: float
    take: Callable[[str, str], bool] = lambda _channel, _place: True
    full: frozenset[tuple[str, str]] = frozenset()
    wait: Callable[[str, str], None] = lambda _channel, _place: None
    few: int | None = None
    fate: Fate = field(default_factory=Fate)
    schedules: ScheduleLimits = field(default_factory=ScheduleLimits)
    unconfirmed: set[str] = field(default_factory=set[str])
    granted: frozenset[tuple[str, str]] | None = None
    lost: frozenset[tuple[str, str]] = frozenset()
    intake: IntakeLimits = NO_FILES
    trying_since: int = 0

    def tried_long_enough(self, now: int, first_at: int) -> bool:
        """Return whether an answer that was first tried at `first_at` is given up if it fails again."""
        return tried_long_enough(now, first_at, self.trying_since, int(self.config.retry_for_s * 1000))
