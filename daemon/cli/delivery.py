"""`clawbus delivery list|retry|drop`: answers on their way, and what an operator does about one that keeps failing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.cli.names import pair
from daemon.cli.operator import (
    AgentFilter,
    ReasonOption,
    SessionScope,
    SinceFilter,
    carry_out,
    known_agent,
    not_examined,
    since_of,
    user,
)
from daemon.core.clock import SystemClock
from daemon.core.command_words import one_word
from daemon.core.message_verbs import DropAnswer, RetryAnswer
from daemon.core.printable import counted
from schema.rows import DeliveryState

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.inspect.answer_reading import AnswersWanted

_ALL: Final = 10**9  # every one
AnswerState = Literal["queued", "scheduled", "intended", "retrying"]

Answers = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids that `delivery list` shows.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Answers under way: list those in retry and why, retry one now, or give it up.\n\n\b\nExample:\n"
        "  clawbus delivery list",
        rich_markup_mode=None,
    )
    add(group, "list", list_, path="delivery")
    add(group, "retry", retry, path="delivery")
    add(group, "drop", drop, path="delivery")
    add_group(app, group, "delivery")


def list_(
    invocation: Invocation,
    session: SessionScope = None,
    agent: AgentFilter = None,
    state: Annotated[AnswerState | None, typer.Option("--state", help="Only those in this state.")] = None,
    since: SinceFilter = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")] = 100,
) -> Outcome:
    """List the answers without a receipt: state, attempts, last error, next attempt, and how many wait behind.

    Use it when `doctor` names an answer that keeps failing. --since is when the answer came. It reads the files, whether the
    daemon runs or not.

    \b
    Example:
      clawbus delivery list --session echo/demo
      clawbus delivery list --state retrying --since 2h
    """
    wanted = _wanted(state=state, since=since_of(since, SystemClock().now_ms()))
    report = _report(invocation, session, limit, wanted, agent=known_agent(invocation, agent))
    failing = [one for one in report["answers"] if one["state"] == DeliveryState.RETRYING]
    steps: tuple[NextAction, ...] = ()
    if failing:
        typed = _typed(failing[0])
        steps = (
            NextAction(f"clawbus delivery retry {typed}", "retry it now, after its receiver is repaired"),
            NextAction(f"clawbus delivery drop {typed}", "give it up"),
        )
    return Outcome(report, lambda console: _show(console, report), steps)


def retry(
    invocation: Invocation,
    answers: Answers = None,
    session: SessionScope = None,
    reason: ReasonOption = None,
    every: Annotated[bool, typer.Option("--all", help="Every failing one, of --session or of all sessions.")] = False,
) -> Outcome:
    """Try failing answers now, whatever their back-off.

    Use it after repairing the receiver. An answer keeps its id, so the receiver gets the same idempotency key.

    \b
    Example:
      clawbus delivery retry --all --reason 'the receiver is up again'
    """
    if every == bool(answers):
        raise typer.BadParameter("Give ids, or --all.")
    return _repair(invocation, "retry", answers or [], session, reason)


def drop(
    invocation: Invocation,
    answers: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids that `delivery list` shows.")],
    session: SessionScope = None,
    reason: ReasonOption = None,
) -> Outcome:
    """Give answers up: they are not sent any more, and what waits behind them goes on. Their agent is notified.

    Use it for an answer that its receiver will never take.

    \b
    Example:
      clawbus delivery drop 01JD0000000000000000000000 --reason 'the receiver cannot take it'
    """
    return _repair(invocation, "drop", answers, session, reason)


def _wanted(**values: Any) -> AnswersWanted:
    from daemon.inspect.answer_reading import AnswersWanted  # noqa: PLC0415

    return AnswersWanted(**values)


def _report(
    invocation: Invocation, session: str | None, limit: int, wanted: AnswersWanted, agent: str | None = None
) -> dict[str, Any]:
    from daemon.inspect.answer_reading import open_answers_report  # noqa: PLC0415

    scope = pair(session, None) if session is not None else None
    return open_answers_report(
        invocation.place.data_dir, SystemClock(), wanted, session=scope, limit=limit, agent=agent
    )


def _repair(
    invocation: Invocation, action: str, answers: Sequence[str], session: str | None, reason: str | None
) -> Outcome:
    """Carry out the action on each answer; without ids on every failing one."""
    verb = RetryAnswer if action == "retry" else DropAnswer
    missed: tuple[str, str] | None = None
    if answers:
        scope = pair(session, None) if session is not None else None
        chosen = [(scope, one) for one in answers]
    else:
        report = _report(invocation, session, _ALL, _wanted(state=DeliveryState.RETRYING.value))
        missed = not_examined(report, "Answers")
        chosen = [((one["agent"], one["session"]), one["id"]) for one in report["answers"]]
    done, refused, problem = carry_out(
        invocation,
        lambda key, answer: verb(*key, by=user(), reason=reason, id=answer),
        chosen,
        lambda answer: _find(invocation, answer),
    )
    steps = (NextAction("clawbus delivery list", "what is still on its way"),)
    result = {"done": done, "refused": refused}
    if problem is None and missed is not None:
        problem = Problem("ANSWERS_NOT_EXAMINED", *missed)
    return Outcome(result, lambda console: _show_repairs(console, action, done, refused), steps, problem)


def _find(invocation: Invocation, answer: str) -> tuple[str, str]:
    """Return the only session that has this answer. Raise UnknownMessageError, AmbiguousIdError."""
    from daemon.inspect.finding import the_only  # noqa: PLC0415

    report = _report(invocation, None, _ALL, _wanted(identity=answer))
    hint = "`clawbus delivery list` lists them, `clawbus dead list` what was given up."
    unread = report["not_examined"] + len(report["errors"])
    found = [(one["agent"], one["session"]) for one in report["answers"]]
    return the_only(found, "an answer on its way", answer, unread=unread, hint=hint)


def _typed(answer: Mapping[str, Any]) -> str:
    import shlex  # noqa: PLC0415

    return f"{shlex.quote(answer['id'])} --session {one_word(answer['agent'], answer['session'])}"


def _show(console: Console, report: Mapping[str, Any]) -> None:
    from daemon.cli.present import say, short_ids, table, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    ids = short_ids(console, [one["id"] for one in report["answers"]])
    rows = [
        (f"{one['agent']}/{one['session']}", short, one["to"], one["state"], str(one["attempts"]),
         when(one["next_attempt_at"], now) if one["next_attempt_at"] else "-", str(one["holds_back"]), one["error"] or "-")
        for one, short in zip(report["answers"], ids, strict=True)
    ]  # fmt: skip
    columns = ("session", "id", "to", "state", "attempts", "next", "behind", "last error")
    console.print(table(f"{counted(report['total'], 'answer on its way', 'answers on their way')}", columns, rows))
    if report["total"] > len(rows):
        say(console, f"and {report['total'] - len(rows)} more: --limit, or --session")
    if report["not_examined"]:
        say(
            console,
            f"{counted(report['not_examined'], 'session was', 'sessions were')} not examined (no time): --session",
        )
    say(console, *(f"{one['agent']}/{one['session']} could not be read: {one['error']}" for one in report["errors"]))


def _show_repairs(
    console: Console, action: str, done: Sequence[Mapping[str, Any]], refused: Sequence[Mapping[str, Any]]
) -> None:
    from daemon.cli.present import say  # noqa: PLC0415

    past = "is tried now" if action == "retry" else "given up"
    for one in done:
        say(console, f"{one['id']} of {one['agent']}/{one['session']}: {past} (it was {one['was']})")
    for one in refused:
        say(console, f"{one['id']}: not done: {one['error']['message']}")
