"""Defines a diagnosis, and formats durations for it. Pure; shared by the rules for host, session and run."""

from __future__ import annotations

from schema.frozen import frozen


@frozen
class Choice:
    """One of several repairs between which a person must choose: the case, and its command."""

    when: str
    command: str


@frozen
class Diagnosis:
    """One problem. `code` is stable; `evidence` are sentences; `command` repairs it or its cause.

    If no single command is always right, `command` only shows the state, and `choices` are the repairs.

    `agent`, `session`, `message_id` and `incarnation` name what it is about, as far as they apply.
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
    died_of: str | None = None  # the newest dead letter's code, if the finding is about dead letters
    number: int = 1  # how many things the finding is about

    @property
    def sentence(self) -> str:
        """The diagnosis on one line: the summary, the first two pieces of evidence, and the command."""
        return f"{self._said}: `{self.command}`"

    @property
    def sentence_with_repairs(self) -> str:
        """The same for those who look at what `command` shows: the repairs to choose from in its place, if there are any."""
        repairs = "; ".join(f"{one.when}: `{one.command}`" for one in self.choices)
        return f"{self._said}. {repairs[:1].upper()}{repairs[1:]}" if repairs else self.sentence

    @property
    def _said(self) -> str:
        return ". ".join(text.rstrip(".") for text in (self.summary, *self.evidence[:2]))


def span(milliseconds: int) -> str:
    """Format a duration for people: `85 s`, `12 min`, `3 h`, `2 d`."""
    for size, unit, above in ((86_400_000, "d", 2), (3_600_000, "h", 2), (60_000, "min", 2)):
        if milliseconds >= size * above:
            return f"{milliseconds // size} {unit}"
    return f"{max(0, milliseconds) / 1000:.3g} s" if milliseconds < 10_000 else f"{milliseconds // 1000} s"
