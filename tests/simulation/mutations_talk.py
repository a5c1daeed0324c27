"""Protections of what is said in mid-turn and of answers, for `tests.simulation.mutations`."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final
from unittest import mock

import container_runner.saying
import container_runner.tools.calls
import daemon.engine.replies
import daemon.store.questions
from container_runner.shared.outbox import Outbox
from daemon.engine.ingress import Ingress


def _new_id_each_time() -> contextlib.AbstractContextManager[Any]:
    """What a turn says has another id in each try."""
    numbers = itertools.count()

    def fresh(kind: str, *_: Any) -> str:
        return f"{kind}-{next(numbers):016d}"

    return mock.patch.object(container_runner.saying, "row_id", fresh)


def _new_id_of_tools() -> contextlib.AbstractContextManager[Any]:
    """What a turn says by a tool has another id in each try."""
    numbers = itertools.count()

    def fresh(kind: str, *_: Any) -> str:
        return f"{kind}-{next(numbers):016d}"

    return mock.patch.object(container_runner.tools.calls, "row_id", fresh)


def _said_is_not_stored() -> contextlib.AbstractContextManager[Any]:
    """Now and then, what a turn says is not stored, and it is told that it is."""
    real, calls = Outbox.add, itertools.count()

    def add(self: Outbox, row_id: str, reply: Any) -> bool:
        return real(self, row_id, reply) if next(calls) % 4 else True

    return mock.patch.object(Outbox, "add", add)


def _answer_and_message() -> contextlib.AbstractContextManager[Any]:
    """A plain answer is recorded, and stored as a message as well."""
    real = Ingress._answer_plainly

    async def answer(self: Ingress, *arguments: Any) -> None:
        await real(self, *arguments)

    return mock.patch.object(Ingress, "_answer_plainly", answer)


def _message_becomes_answer() -> contextlib.AbstractContextManager[Any]:
    """A message that its channel hands in again may answer what was asked meanwhile."""
    return mock.patch.object(daemon.engine.replies, "messages", types.SimpleNamespace(find=lambda *_: None))


def _anybody_answers() -> contextlib.AbstractContextManager[Any]:
    """Anybody's plain text answers what is open at the place."""
    return mock.patch.object(daemon.engine.replies, "may_answer_plainly", lambda *_: True)


def _anywhere() -> contextlib.AbstractContextManager[Any]:
    """A plain text answers what is open at any place."""
    real = daemon.store.questions.open_ones
    return mock.patch.object(daemon.store.questions, "open_at", lambda db, *_: real(db))


def _first_of_several() -> contextlib.AbstractContextManager[Any]:
    """A plain text answers the most urgent of the questions that are open at the place."""
    real = daemon.store.questions.open_at
    return mock.patch.object(daemon.store.questions, "open_at", lambda *arguments: real(*arguments)[:1])


def _agent_is_not_told() -> contextlib.AbstractContextManager[Any]:
    """A question that no turn waits for ends, and its agent is not told."""
    return mock.patch.object(daemon.store.questions, "_notify_agent", lambda *_: None)


def _another_choice() -> contextlib.AbstractContextManager[Any]:
    """An answer is recorded as the first option."""
    real = daemon.store.questions.decide

    def decide(db: Any, asked: Any, decision: Any, *more: Any) -> Any:
        return real(db, asked, replace(decision, choice="yes") if decision.choice else decision, *more)

    return mock.patch.object(daemon.store.questions, "decide", decide)


MUTATIONS: Final[Mapping[str, Callable[[], contextlib.AbstractContextManager[Any]]]] = MappingProxyType(
    {
        "what is said has a new id in each try": _new_id_each_time,
        "what tools say has a new id in each try": _new_id_of_tools,
        "what is said is not stored": _said_is_not_stored,
        "an answer is a message too": _answer_and_message,
        "a message becomes an answer later": _message_becomes_answer,
        "anybody answers in plain words": _anybody_answers,
        "a plain answer counts at every place": _anywhere,
        "a plain answer takes the first of several": _first_of_several,
        "an agent is not told of its answer": _agent_is_not_told,
        "an answer is recorded as another": _another_choice,
    }
)
