"""The order in which waiting sessions get a container: first in, first out within an agent group; round robin between groups.

Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from daemon.core.session_key import SessionKey


class WakeQueue:
    """Sessions waiting for a container, each at most once. One busy group cannot starve another."""

    def __init__(self) -> None:
        self._groups: OrderedDict[str, OrderedDict[SessionKey, None]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def __contains__(self, key: SessionKey) -> bool:
        return key in self._groups.get(key.agent, ())

    def add(self, key: SessionKey) -> bool:
        """Add the session to the queue. Return False if it is already queued."""
        group = self._groups.setdefault(key.agent, OrderedDict())
        if key in group:
            return False
        group[key] = None
        return True

    def discard(self, key: SessionKey) -> None:
        """Remove the session from the queue, if it is queued."""
        group = self._groups.get(key.agent)
        if group is not None:
            group.pop(key, None)
            if not group:
                del self._groups[key.agent]

    def pop(self, may: Callable[[str], bool] = lambda _: True) -> SessionKey | None:
        """Remove and return the next session of a group for which `may` returns True. Move its group to the back."""
        agent = next((agent for agent in self._groups if may(agent)), None)
        if agent is None:
            return None
        group = self._groups.pop(agent)
        key, _ = group.popitem(last=False)
        if group:
            self._groups[agent] = group
        return key

    def groups(self) -> tuple[str, ...]:
        """Return the waiting groups, the next one first."""
        return tuple(self._groups)

    def keys(self) -> tuple[SessionKey, ...]:
        """Return all waiting sessions, group by group."""
        return tuple(key for group in self._groups.values() for key in group)
