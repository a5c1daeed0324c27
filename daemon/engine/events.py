"""Publishes the engine's events to their subscribers: synchronously, in the event loop, in the order of subscription.

A subscriber that fails is logged. It disturbs neither the engine nor the other subscribers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import structlog

from daemon.core.events import E, Event


class Events:
    """The event publisher. It is built before every part that publishes."""

    def __init__(self) -> None:
        self._handlers: dict[type[Event], list[Callable[[Any], None]]] = {}
        self._log = structlog.get_logger("events")

    def subscribe(self, kind: type[E], handler: Callable[[E], None]) -> None:
        """Call `handler` with every event of exactly this class. It must be quick and must not block."""
        self._handlers.setdefault(kind, []).append(handler)

    def publish(self, event: Event) -> None:
        """Pass one event to its subscribers."""
        for handler in self._handlers.get(type(event), ()):
            try:
                handler(event)
            except Exception:  # noqa: BLE001 - a subscriber must never harm the publisher
                self._log.error(
                    "subscriber_raised", subscriber=getattr(handler, "__qualname__", repr(handler)),
                    what=type(event).__name__, exc_info=True,
                )  # fmt: skip

    def publish_all(self, events: Iterable[Event]) -> None:
        """Pass several events on, in order."""
        for event in events:
            self.publish(event)
