"""The runner's log: one JSON object per line on stderr, each with the incarnation. It writes nowhere else.

stdout stays unused, so that no output of the runner can be mistaken for an answer.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import TextIO, TypeAlias


@contextlib.contextmanager
def _as_if_absent(package: str) -> Generator[None]:
    """Let imports of this package fail meanwhile, as if it were not installed. One that is imported already stays."""
    # https://docs.python.org/3/reference/import.html#the-module-cache: None there raises ModuleNotFoundError.
    modules: dict[str, object] = sys.modules  # pyright: ignore[reportAssignmentType]
    hidden = package not in modules
    if hidden:
        modules[package] = None
    try:
        yield
    finally:
        if hidden:
            del modules[package]


# structlog imports rich to paint tracebacks. This log is JSON, and beside a daemon's packages rich would take a sixth of
# the runner's start. So every module here takes the logger's type from this one.
with _as_if_absent("rich"):
    import structlog
    from structlog.typing import FilteringBoundLogger

Logger: TypeAlias = FilteringBoundLogger


def build_logger(stream: TextIO, incarnation: str, level: str) -> Logger:
    """Return a logger, without changing structlog's global configuration. `level` is a lower-case name."""
    logger: Logger = structlog.wrap_logger(
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
