"""Times the tool calls of one turn, for the host's traces and metrics. Keeps the first hundred of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from schema.json_text import whole_text
from schema.rows import ToolCall

MAX_CALLS: Final = 100
_MAX_NAME: Final = 100


class ToolTimes:
    """The calls of one turn: `one` where a tool follows another, `several` where calls with ids may overlap."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._open: dict[str, ToolCall] = {}  # by id; what is under way ends, for now, when it began
        self._ended: list[ToolCall] = []
        self._several = False

    def one(self, name: str | None) -> None:
        """Note that this tool runs and no other, or none. It says nothing where the provider names calls by `several`."""
        if not self._several:
            self._close(list(self._open))
            self._begin({} if name is None else {"": name})

    def several(self, calls: Mapping[str, str]) -> None:
        """Note that these calls are under way: names by id."""
        self._several = True
        self._close([call for call in self._open if call not in calls])
        self._begin({call: name for call, name in calls.items() if call not in self._open})

    def calls(self) -> tuple[ToolCall, ...]:
        """Return the calls so far, in the order of their start; what is under way ends now."""
        self._close(list(self._open))
        return tuple(sorted(self._ended, key=lambda call: call.started_at))

    def _begin(self, calls: Mapping[str, str]) -> None:
        now = self._now_ms()
        for call, name in calls.items():
            if len(self._open) + len(self._ended) < MAX_CALLS:
                self._open[call] = ToolCall(name, now, now)

    def _close(self, calls: list[str]) -> None:
        now = self._now_ms()
        for call in calls:
            begun = self._open.pop(call)
            self._ended.append(ToolCall(begun.name, begun.started_at, max(begun.started_at, now)))


def calls_text(calls: Sequence[ToolCall]) -> str | None:
    """Return the calls as the column `tools` of turn_usage holds them; None for none."""
    if not calls:
        return None
    return json.dumps([[whole_text(one.name)[:_MAX_NAME], one.started_at, one.ended_at] for one in calls])
