"""The runner's log: one JSON object per line on stderr, each with the incarnation. It writes nowhere else.

stdout stays unused, so that no output of the runner can be mistaken for an answer.
"""

from __future__ import annotations

from typing import TextIO

import structlog
from structlog.typing import FilteringBoundLogger


def build_logger(stream: TextIO, incarnation: str, level: str) -> FilteringBoundLogger:
    """Return a logger, without changing structlog's global configuration. `level` is a lower-case name."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    return logger.bind(incarnation=incarnation)
