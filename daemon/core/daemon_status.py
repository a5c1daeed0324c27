"""The result of asking the daemon for its status: up, down or silent, with its report. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from schema.frozen import frozen


class DaemonState(StrEnum):
    """Whether a daemon works on this data folder."""

    UP = "up"
    DOWN = "down"
    SILENT = "silent"  # a process holds the folder, and the socket does not answer


@frozen
class DaemonStatus:
    """The result of asking the daemon. `live` is the live part of its status, None without one.

    `code` is set when it answered with an error instead; `detail` is the reason then, or why there was no answer.
    """

    state: DaemonState
    live: Mapping[str, Any] | None = None
    detail: str | None = None
    code: str | None = None
