"""Derives diagnoses from facts: the problem, its evidence and the command that repairs it. Pure; it repairs nothing.

Each aspect of a subject (the host, a session, a run) has its rules in order; the first that matches is its diagnosis.
A diagnosis with a `cause` is a consequence: repair the cause, and it goes away by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from daemon.core.diagnosis import Diagnosis
from daemon.core.facts import HostFacts, RunFacts, SessionFacts
from daemon.core.host_rules import HOST
from daemon.core.run_rules import RUN
from daemon.core.session_rules import BLOCKING, PASSABLE, SESSION


def diagnose_host(host: HostFacts) -> list[Diagnosis]:
    """Return what is wrong with the host: at most one diagnosis of each aspect."""
    return _present(_first(rule(host) for rule in aspect) for aspect in HOST)


def diagnose_session(host: HostFacts, session: SessionFacts) -> list[Diagnosis]:
    """Return what is wrong with a session, apart from its single runs: at most one diagnosis of each aspect."""
    return _present(_first(rule(host, session) for rule in aspect) for aspect in SESSION)


def most_pressing(host: HostFacts, session: SessionFacts, *, blocking: bool = False) -> Diagnosis | None:
    """Return the finding that explains a session's state best, or None. `blocking`: only what keeps its next message waiting."""
    rules = BLOCKING if blocking else (*BLOCKING, *PASSABLE)
    return _first(rule(host, session) for rule in rules)


def diagnose_run(host: HostFacts, session: SessionFacts, run: RunFacts) -> Diagnosis | None:
    """Return what is wrong with one run, or None."""
    return _first(rule(host, session, run) for rule in RUN)


def _first(found: Iterable[Diagnosis | None]) -> Diagnosis | None:
    return next((one for one in found if one is not None), None)


def _present(found: Iterable[Diagnosis | None]) -> list[Diagnosis]:
    return [one for one in found if one is not None]
