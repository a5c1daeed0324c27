"""The runner's log: one JSON object a line on stderr, every line bound to the incarnation. Writes nowhere else.

stdout stays unused, so that nothing the runner says is ever taken for an answer.
"""

from __future__ import annotations

from typing import TextIO

import structlog
from structlog.typing import FilteringBoundLogger


def build_logger(stream: TextIO, incarnation: str, level: str) -> FilteringBoundLogger:
    """Return a logger and leave structlog's global configuration alone. `level` is a lower-case name."""
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
