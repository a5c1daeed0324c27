"""Rules that find problems of routes and of strangers' requests. Pure. The command of each finding ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from daemon.core.diagnosis import Diagnosis

_MAX: Final = 20


def diagnose_routes(
    faults: Iterable[tuple[str, str]], shadowed: Iterable[tuple[str, str]], stored: frozenset[str]
) -> Iterator[Diagnosis]:
    """Yield a finding for each broken or unreachable route that a command can end.

    `faults` are (route, fault), `shadowed` are (route, the route that decides before it), `stored` are the routes that were
    added by command. A fault in the configuration's own routes keeps a daemon from starting; `config check` names it.
    """
    broken = {name: fault for name, fault in faults if name in stored}
    for name, fault in broken.items():
        yield Diagnosis(
            "ROUTE_BROKEN", f"The route {name} cannot work.", (_sentence(fault),), f"clawbus route remove {name}"
        )
    for name, by in shadowed:
        removable = name if name in stored else by if by in stored else None
        if removable is None or {name, by} & broken.keys():
            continue
        yield Diagnosis(
            "ROUTE_UNREACHABLE", f"No event reaches the route {name}.",
            (f"The route {by} of the same agent decides about all of them first.",),
            f"clawbus route remove {removable}",
        )  # fmt: skip


def diagnose_pairings(waiting: Iterable[tuple[str, str, str]], agents: frozenset[str]) -> Iterator[Diagnosis]:
    """Yield a finding for each waiting request, (code, sender, agent), whose agent is no longer configured."""
    for code, sender, agent in waiting:
        if agent not in agents:
            yield Diagnosis(
                "PAIRING_WITHOUT_AGENT", f"{sender} asked to talk to an agent that is no longer configured.",
                (f"There is no agent {agent}.",), f"clawbus pairing refuse {code}",
            )  # fmt: skip


def bounded(found: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Return at most _MAX findings of each code; the last one says how many were left out."""
    by_code: dict[str, list[Diagnosis]] = {}
    for one in found:
        by_code.setdefault(one.code, []).append(one)
    return [one for same in by_code.values() for one in _cut(same)]


def _cut(same: list[Diagnosis]) -> list[Diagnosis]:
    if len(same) <= _MAX:
        return same
    last = same[_MAX - 1]
    more = f"And {len(same) - _MAX} more: `clawbus route list`, `clawbus pairing list`."
    return [*same[: _MAX - 1], replace(last, evidence=(*last.evidence, more))]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
