"""What reports on sessions need to know about their agents: which are configured, and which may begin no turn today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Final

from schema.frozen import frozen


@frozen
class AgentsNow:
    """`stopped` maps an agent whose daily budget is used up to what of it is. `configured` is None where nobody knows."""

    stopped: Mapping[str, str] = field(default_factory=dict[str, str])
    configured: frozenset[str] | None = None


UNKNOWN: Final = AgentsNow()
