"""What a poll of a session's answers depends on: channels, limits, busy destinations. Built for each poll."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field

from daemon.config.models import Delivery as DeliveryConfig
from daemon.core.attachments import NO_FILES, IntakeLimits
from daemon.core.delivery_plan import ChannelRules
from daemon.core.giving_up import tried_long_enough
from daemon.core.message_fate import Fate
from daemon.core.schedule_limits import ScheduleLimits
from schema.frozen import frozen


@frozen
class DeliveryContext:
    """What a session's delivery depends on.

    `held`: the destinations with a send under way; `under_way`: the ids of the answers in those sends. `jitter`: a random
    number (0..1) that spreads retries.

    `take(channel, place)` takes a slot for a send and returns whether one was free. The places in `full` have none;
    `wait(channel, place)` registers that an answer waits for one. `few`: how many tracked rows to read at most, while
    full places or sends under way keep more from being sent; None for the usual number.

    `unconfirmed`: rows that were not sent because the commit of their intent failed, although it may have reached the
    disk; `collect` maintains it.

    `granted`: the (channel, place) pairs that configuration and routes let the agent write to now, None while they are not
    known. `lost`: those that were taken from it while its container was running.

    `schedules` limits the schedules that the agent makes, `intake` the files of its answers. `trying_since`: since when
    this daemon can send (epoch milliseconds).
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
        """Return whether an answer first tried at `first_at` (epoch milliseconds) is given up if it fails again."""
        return tried_long_enough(now, first_at, self.trying_since, int(self.config.retry_for_s * 1000))
