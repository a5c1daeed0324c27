"""Findings as an operator works on them: one for each cause, with what goes away with it folded under it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace

from daemon.core.diagnosis import Choice, Diagnosis
from daemon.core.printable import counted
from schema.frozen import frozen

_TOLD = 5  # sessions of one cause that are named


@frozen
class Finding:
    """One cause. `head` names its repair; `same` are the diagnoses that it represents, `consequences` those that it ends."""

    head: Diagnosis
    same: tuple[Diagnosis, ...] = ()
    consequences: tuple[Diagnosis, ...] = ()


def findings_of(diagnoses: Sequence[Diagnosis]) -> list[Finding]:
    """Return the findings, in the order of the diagnoses. Every diagnosis is in exactly one of them.

    A consequence goes to its cause: in its own session, else of the host, else the first of that code. One whose cause is not among
    the diagnoses stands for itself. Dead letters of several sessions that died of the same are one finding.
    """
    roots = {id(one): _root(one, diagnoses) for one in diagnoses}
    found: list[Finding] = []
    for same in _together(one for one in diagnoses if roots[id(one)] is one):
        ended = tuple(one for one in diagnoses if any(roots[id(one)] is head for head in same) and one not in same)
        head = same[0] if len(same) == 1 else _merged(same)
        found.append(Finding(head, tuple(same), ended))
    return found


def _root(one: Diagnosis, among: Sequence[Diagnosis]) -> Diagnosis:
    """Return the diagnosis whose repair ends this one, through any number of causes; this one itself if it has no cause."""
    passed: list[Diagnosis] = []
    while one not in passed:
        passed.append(one)
        causes = [other for other in among if other.code == one.cause and other is not one]
        if not causes:
            return one
        here = (one.agent, one.session)
        one = min(causes, key=lambda other: ((other.agent, other.session) != here, other.agent is not None))
    return passed[0]  # two that blame each other: neither is lost


def _together(heads: Iterable[Diagnosis]) -> list[list[Diagnosis]]:
    groups: dict[object, list[Diagnosis]] = {}
    for one in heads:
        groups.setdefault((one.code, one.died_of) if one.died_of is not None else id(one), []).append(one)
    return list(groups.values())


def _merged(same: Sequence[Diagnosis]) -> Diagnosis:
    """Return one diagnosis for dead letters of one code in several sessions; its commands are for all letters of that code."""
    first, number = same[0], sum(one.number for one in same)
    code = first.died_of
    quoted = shlex.quote(str(code))
    evidence = [f"{one.agent}/{one.session}: {one.evidence[-1]}" for one in same[:_TOLD]]
    if len(same) > _TOLD:
        evidence.append(f"and {len(same) - _TOLD} more sessions: `clawbus dead list --code {quoted}`")
    every = f"--all --code {quoted}"
    return replace(
        first,
        summary=f"{counted(number, 'dead letter', 'dead letters')} of {len(same)} sessions, the newest of each with {code}.",
        evidence=tuple(evidence),
        command=f"clawbus dead list --code {quoted}",
        agent=None,
        session=None,
        number=number,
        choices=(
            Choice("once its cause is repaired", f"clawbus dead requeue {every} --reason 'its cause is repaired'"),
            Choice("to give them up", f"clawbus dead drop {every} --reason 'not needed any more'"),
        ),
    )
