"""Shared by the rules about a session: builds findings, and says how long a state may last unreported. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from daemon.core.command_words import two_words
from daemon.core.diagnosis import Choice, Diagnosis
from daemon.core.facts import HostFacts, SessionFacts

# A container may be young, or a wake on its way: report only what lasts longer than this.
GRACE_MS: Final = 15_000


SessionRule = Callable[[HostFacts, SessionFacts], Diagnosis | None]


def quoted(one: SessionFacts) -> str:
    """Return the session as the two arguments of a command, quoted for a shell."""
    return two_words(one.agent, one.session)


def finding(
    one: SessionFacts,
    code: str,
    summary: str,
    evidence: Iterable[str],
    command: str,
    *,
    incarnation: str | None = None,
    cause: str | None = None,
    choices: tuple[Choice, ...] = (),
) -> Diagnosis:
    """Return a finding about the session: its code, what is wrong, what shows it, and the command that repairs it."""
    return Diagnosis(
        code, summary, tuple(evidence), command, one.agent, one.session, incarnation=incarnation, cause=cause,
        choices=choices,
    )  # fmt: skip
