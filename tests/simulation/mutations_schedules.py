"""Protections of schedules, taken out one at a time. See mutations.py."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final
from unittest import mock

import container_runner.saying
import daemon.engine.schedule_steps
import daemon.engine.sweep_steps

Patch = Callable[[], contextlib.AbstractContextManager[Any]]


def _recorded_and_not_stored() -> contextlib.AbstractContextManager[Any]:
    """An occurrence is on record, and its message was never stored."""
    real = vars(daemon.engine.schedule_steps.messages)
    forgetful = types.SimpleNamespace(**{**real, "insert": lambda *_, **__: None})
    return mock.patch.object(daemon.engine.schedule_steps, "messages", forgetful)


def _asks_again() -> contextlib.AbstractContextManager[Any]:
    """A later try of a message makes its request once more."""
    real, numbers = container_runner.saying.row_id, itertools.count()
    return mock.patch.object(
        container_runner.saying, "row_id", lambda kind, life, *parts: real(kind, life, *parts, str(next(numbers)))
    )


def _due_unknown() -> contextlib.AbstractContextManager[Any]:
    """A session rests without a note of when its next schedule is due."""
    return mock.patch.object(daemon.engine.sweep_steps.schedules, "next_at", lambda _: None)


MUTATIONS: Final[Mapping[str, Patch]] = MappingProxyType(
    {
        "an occurrence is recorded and not stored": _recorded_and_not_stored,
        "a later try asks for its schedule again": _asks_again,
        "nobody knows when a schedule is due": _due_unknown,
    }
)
