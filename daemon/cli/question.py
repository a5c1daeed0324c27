"""`clawbus question list|show|answer`: what agents ask people, and an operator's answer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.names import pair
from daemon.cli.operator import AgentFilter, ReasonOption, SessionScope, known_agent, user
from daemon.core.clock import SystemClock
from daemon.core.errors import ContentError, UnknownMessageError, UnknownQuestionError
from daemon.core.message_verbs import AnswerQuestion
from daemon.core.printable import counted
from schema.questions import CHANGES

if TYPE_CHECKING:
    from rich.console import Console

QuestionArgument = Annotated[str, typer.Argument(metavar="ID", help="A question's id.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="What agents ask people: list the open questions, answer one.\n\n\b\nExample:\n  clawbus question list",
        rich_markup_mode=None,
    )
    add(group, "list", list_, path="question")
    add(group, "show", show, path="question")
    add(group, "answer", answer, path="question")
    add_group(app, group, "question")


def list_(
    invocation: Invocation,
    session: SessionScope = None,
    agent: AgentFilter = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that have ended, newest first.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")] = 100,
) -> Outcome:
    """List the open questions of agents, the most urgent first, with the time that is left.

    Use it when `status` says that an agent waits for an answer. It reads the files, whether the daemon runs or not.

    \b
    Example:
      clawbus question list --session helper/main
    """
    from daemon.inspect.question_reading import questions_report  # noqa: PLC0415

    scope = pair(session, None) if session is not None else None
    report = questions_report(
        invocation.place.data_dir, SystemClock(), session=scope, agent=known_agent(invocation, agent), every=every,
        limit=limit,
    )  # fmt: skip
    waiting = next((one for one in report["questions"] if one["state"] == "open"), None)
    steps = (NextAction(f"clawbus question show {_typed(waiting)}", "all of it"),) if waiting is not None else ()
    return Outcome(report, lambda console: _show_list(console, report), steps)


def show(invocation: Invocation, question: QuestionArgument, session: SessionScope = None) -> Outcome:
    """Show one question: its text, its options, who is asked, and how it ended.

    Use it before you answer: `question answer` takes an option's number, id or label.

    \b
    Example:
      clawbus question show q-6jbnqwzr5vkbi5xd
    """
    from daemon.inspect.central_reading import folder_of  # noqa: PLC0415
    from daemon.inspect.question_reading import read_question  # noqa: PLC0415

    named = _session_of(invocation, question, session)
    found = read_question(folder_of(invocation.place.data_dir, named), question)
    if found is None:
        raise UnknownQuestionError(f"there is no question {question!r} in {'/'.join(named)}.")
    result = {"agent": named[0], "session": named[1], **found}
    steps: tuple[NextAction, ...] = ()
    if found["state"] == "open":
        steps = (
            NextAction(f"clawbus question answer {_typed(result)} TEXT", "answer it"),
            NextAction(f"clawbus question answer {_typed(result)} --decline", "say that there will be no answer"),
        )
    return Outcome(result, lambda console: _show_one(console, result), steps)


def answer(
    invocation: Invocation,
    question: QuestionArgument,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="An option's number, id or label; or any text, if it is taken. Else it is asked for."
        ),
    ] = None,
    decline: Annotated[
        bool, typer.Option("--decline", help="There will be no answer: the agent goes on without.")
    ] = False,
    session: SessionScope = None,
    reason: ReasonOption = None,
) -> Outcome:
    """Answer an agent's question. The first answer counts; a question that has ended is refused.

    Use it for a question that stays unanswered in its chat. Without TEXT it shows the question and reads a line from
    standard input. With the daemon down, the answer is stored for the agent's next try.

    \b
    Example:
      clawbus question answer q-6jbnqwzr5vkbi5xd yes
      clawbus question answer q-6jbnqwzr5vkbi5xd --decline
    """
    from daemon.cli.executor import execute  # noqa: PLC0415

    if decline and text is not None:
        raise typer.BadParameter("Give an answer, or --decline.")
    named = _session_of(invocation, question, session)
    if not decline and text is None:
        text = _asked_for(invocation, named, question)
    done = execute(invocation, AnswerQuestion(*named, by=user(), reason=reason, id=question, answer=text))
    result = {"agent": named[0], "session": named[1], **done}

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        said = f": {done['text']}" if done["text"] is not None else ""
        say(console, f"{question} of {'/'.join(named)} is {done['outcome']}{said}")
        if done["asks_for"] is not None and done["choice"] == "approve":
            say(console, "The agent is told so. Clawbus changes nothing: make the change yourself.")

    step = NextAction(f"clawbus question list --session {shlex.quote('/'.join(named))}", "what else it asks")
    return Outcome(result, people, (step,))


def _asked_for(invocation: Invocation, named: tuple[str, str], question: str) -> str:
    """Show the question on standard error and return the line that is written. Raise ContentError if there is none."""
    from daemon.cli.output import progress  # noqa: PLC0415
    from daemon.cli.standard_input import read_lines  # noqa: PLC0415
    from daemon.inspect.central_reading import folder_of  # noqa: PLC0415
    from daemon.inspect.question_reading import read_question  # noqa: PLC0415

    found = read_question(folder_of(invocation.place.data_dir, named), question)
    if found is not None:
        options = (f"  {number} {option['label']}" for number, option in enumerate(found["options"], 1))
        progress(found["text"], *options, "Answer:")
    line = next(read_lines(), "").strip()
    if not line:
        raise ContentError(
            "no answer was given; the question stays open.", hint="Write TEXT after the question's id, or --decline."
        )
    return line


def _session_of(invocation: Invocation, question: str, session: str | None) -> tuple[str, str]:
    """Return the named session, or the only one that has the question. Raise UnknownQuestionError, AmbiguousIdError."""
    if session is not None:
        return pair(session, None)
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415
    from daemon.inspect.finding import sessions_with, the_only  # noqa: PLC0415

    data_dir = invocation.place.data_dir
    found, unread = sessions_with(data_dir, read_central(data_dir).known(), question, table="questions")
    try:
        return the_only(found, "a question", question, unread=unread)
    except UnknownMessageError as error:
        hint = "A file could not be read now: name its session with --session." if unread else None
        raise UnknownQuestionError(str(error), hint=hint) from error


def _typed(question: Mapping[str, Any]) -> str:
    return f"{shlex.quote(question['id'])} --session {shlex.quote(question['agent'] + '/' + question['session'])}"


def _show_list(console: Console, report: Mapping[str, Any]) -> None:
    from daemon.cli.present import say, short_ids, table, when  # noqa: PLC0415

    now, asked = SystemClock().now_ms(), report["questions"]
    ids = short_ids(console, [one["id"] for one in asked])
    rows = [
        (f"{one['agent']}/{one['session']}", short, one["state"], when(one["deadline"], now), one["text"])
        for one, short in zip(asked, ids, strict=True)
    ]
    console.print(
        table(
            counted(report["total"], "open question", "open questions"),
            ("session", "id", "state", "deadline", "question"),
            rows,
        )
    )
    if report["not_examined"]:
        say(
            console,
            f"{counted(report['not_examined'], 'session was', 'sessions were')} not examined (no time): --session",
        )
    say(console, *(f"{one['agent']}/{one['session']} could not be read: {one['error']}" for one in report["errors"]))


def _show_one(console: Console, found: Mapping[str, Any]) -> None:
    from daemon.cli.present import pairs, say, say_block, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    say_block(console, found["text"])
    for number, option in enumerate(found["options"], 1):
        more = f": {option['description']}" if "description" in option else ""
        say(console, f"  {number} {option['label']}{more}")
    values = {
        "session": f"{found['agent']}/{found['session']}",
        "state": found["state"],
        "asked": when(found["asked_at"], now),
        "deadline": when(found["deadline"], now),
        "without an answer": found["default"] or "no",
        "asked in": found["where"],
        "about message": found["message_id"],
        "asks for": CHANGES.get(found["asks_for"], found["asks_for"]) if found["asks_for"] is not None else None,
        "answer": found["answer"] or found["choice"],
        "by": found["by"],
    }
    pairs(console, values)
