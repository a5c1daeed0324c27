"""Turns a failure to ask a runtime into a typed error, so that it is never taken for an answer about who lives."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from daemon.core.errors import RuntimeUnavailableError
from schema.errors import ClawbusError
from schema.os_faults import as_host_error


@contextlib.contextmanager
def answering(runtime: str) -> Generator[None]:
    """Raise RuntimeUnavailableError for what this host cannot do now: no descriptor, no thread, no memory, a disk that fails."""
    try:
        yield
    except ClawbusError:
        raise
    except Exception as error:
        host = as_host_error(error, f"the {runtime} runtime cannot be asked")
        if host is None:
            raise
        raise RuntimeUnavailableError(str(host), hint=host.hint) from error
