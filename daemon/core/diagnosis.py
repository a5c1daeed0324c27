"""Defines a diagnosis, and formats durations and numbers for it. Pure; shared by the rules for host, session and run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to end a finding where a person must decide: the case, and the command for it."""

    when: str
    command: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that is wrong. `code` is stable; `evidence` are sentences; `command` repairs it or its cause.

    Where no single command can be right, `command` shows what there is, and `choices` end it.

    `agent`, `session`, `message_id` and `incarnation` say whom it is about, as far as that goes.
    """

    code: str
    summary: str
    evidence: tuple[str, ...]
    command: str
    agent: str | None = None
    session: str | None = None
    message_id: str | None = None
    incarnation: str | None = None
    cause: str | None = None
    choices: tuple[Choice, ...] = ()
    died_of: str | None = None  # the code of the newest dead letter, where it is about those
    number: int = 1  # of the things that it is about

    @property
    def sentence(self) -> str:
        """Return it on one line: the summary, the first two pieces of evidence, and the command."""
        said = ". ".join(text.rstrip(".") for text in (self.summary, *self.evidence[:2]))
        return f"{said}: `{self.command}`"


def span(milliseconds: int) -> str:
    """Format a duration for people: `85 s`, `12 min`, `3 h`, `2 d`."""
    for size, unit, above in ((86_400_000, "d", 2), (3_600_000, "h", 2), (60_000, "min", 2)):
        if milliseconds >= size * above:
            return f"{milliseconds // size} {unit}"
    return f"{max(0, milliseconds) / 1000:.3g} s" if milliseconds < 10_000 else f"{milliseconds // 1000} s"
