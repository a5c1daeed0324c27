"""Protections of retention that `tests.simulation.mutations` takes out: each must be noticed by the witness or the checks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final
from unittest import mock

import container_runner.retention
import container_runner.store
import daemon.store.pruning

_TOP: Final = "   AND o.seq < (SELECT max(seq) FROM main.messages_out)\n"


def _unsent_answers_go() -> contextlib.AbstractContextManager[Any]:
    """The runner asks for no receipt."""
    return mock.patch.object(container_runner.retention, "may_go", lambda *_: True)


def _acks_go_early() -> contextlib.AbstractContextManager[Any]:
    """A finished ack goes, whatever the host holds of its message."""
    return mock.patch.object(
        container_runner.retention, "is_final", lambda row, _: row["status"] in ("completed", "failed")
    )


@contextlib.contextmanager
def _seqs_come_again() -> Any:
    """The highest row goes too, and nobody remembers its seq."""
    sql = container_runner.retention._ANSWERS
    assert _TOP in sql

    def highest(db: Any) -> int:
        row = db.one(
            "SELECT max(coalesce((SELECT max(seq) FROM messages_out), 0), (SELECT max(seq) FROM inbound.messages_in))"
        )
        seq = int(row[0])
        return seq + 1 if seq % 2 == 0 else seq + 2

    with (
        mock.patch.object(container_runner.retention, "_ANSWERS", sql.replace(_TOP, "")),
        mock.patch.object(container_runner.store, "next_seq", highest),
    ):
        yield


def _dead_letters_go() -> contextlib.AbstractContextManager[Any]:
    """A failed message goes before an operator has dealt with it."""
    return mock.patch.object(daemon.store.pruning, "_open_or_requeued", lambda *_: set())


def _closings_go_alone() -> contextlib.AbstractContextManager[Any]:
    """What says that a failed message was dealt with goes before the message does."""
    real = daemon.store.pruning._delete

    def delete(db: Any, table: str, key: str, ids: Any) -> None:
        if table == "dead_letters_closed":
            real(db, table, key, ids)

    return mock.patch.object(daemon.store.pruning, "_delete", delete)


MUTATIONS: Final[Mapping[str, Callable[[], contextlib.AbstractContextManager[Any]]]] = MappingProxyType(
    {
        "an answer is pruned without a receipt": _unsent_answers_go,
        "an ack is pruned before its message is over": _acks_go_early,
        "pruned seqs come again": _seqs_come_again,
        "open dead letters are pruned": _dead_letters_go,
        "a closing is pruned without its letter": _closings_go_alone,
    }
)
