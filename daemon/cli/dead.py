"""`clawbus dead list|show|requeue|drop`: lists dead letters, explains one, and requeues or drops them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

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
from daemon.core.message_verbs import DropDead, RequeueDead
from daemon.core.printable import counted
from schema.errors import ClawbusError
from schema.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from daemon.api.client import ControlClient

T = TypeVar("T")

_ALL: Final = 1000

Letters = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids that `dead list` shows.")]
All = Annotated[bool, typer.Option("--all", help="Every open one of --session, or with --code: the oldest 1,000.")]
Code = Annotated[str | None, typer.Option("--code", metavar="CODE", help="With --all: only those that died of this.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Dead letters: answers that could not be delivered and messages that were given up.\n\n\b\nExample:\n"
        "  clawbus dead list",
        rich_markup_mode=None,
    )
    add(group, "list", list_, path="dead")
    add(group, "show", show, path="dead")
    add(group, "requeue", requeue, path="dead")
    add(group, "drop", drop, path="dead")
    add_group(app, group, "dead")


def list_(
    invocation: Invocation,
    session: SessionScope = None,
    agent: AgentFilter = None,
    since: SinceFilter = None,
    code: Annotated[str | None, typer.Option("--code", metavar="CODE", help="Only those with this code.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")] = 100,
) -> Outcome:
    """List the open dead letters, newest first: out (an answer) and in (a message), with code and reason.

    Use it when `status` counts dead letters. --since is when they were given up. It works from the files when the daemon is
    down or hangs.

    \b
    Example:
      clawbus dead list --session echo/demo
      clawbus dead list --since 8h --code DELIVERY_PERMANENT
    """
    scope = pair(session, None) if session is not None else None
    wanted = known_agent(invocation, agent)
    begun = since_of(since, SystemClock().now_ms())
    own = wanted is not None or begun is not None  # which the daemon cannot be asked for
    if own:
        query = {"session": scope, "limit": limit, "code": code, "agent": wanted, "since": begun}
        report, source = _from_files(invocation, **query), "files"
    else:
        report, source = _letters(invocation, session=scope, limit=limit, code=code)
    steps: tuple[NextAction, ...] = ()
    if report["letters"]:
        first = report["letters"][0]
        steps = (NextAction(f"clawbus dead show {_typed(first)}", "all about the newest one"),)
    return Outcome(
        {"source": source, **report},
        lambda console: _show_list(console, report, "" if own else source),
        steps,
    )


def show(
    invocation: Invocation,
    letter: Annotated[str, typer.Argument(metavar="ID", help="An id that `dead list` shows.")],
    session: SessionScope = None,
) -> Outcome:
    """Show all about one dead letter: the row, its attempts and errors, its history, and what to do next.

    Use it before a repair, or to see how one was dealt with. It works from the files when the daemon is down or hangs.

    \b
    Example:
      clawbus dead show 01JD0000000000000000000000
    """
    named = pair(session, None) if session is not None else _find(invocation, letter)
    report, source = _read(
        invocation,
        lambda client: client.dead_letter(*named, letter),
        lambda: _letter_from_files(invocation, named, letter),
    )
    steps: tuple[NextAction, ...] = ()
    if report["open"]:
        steps = (
            NextAction(f"clawbus dead requeue {_typed(report)}", "send it on its way again"),
            NextAction(f"clawbus dead drop {_typed(report)}", "take it off the list"),
        )
        if report["kind"] == "in":
            steps = (
                NextAction(f"clawbus run show {_typed(report)}", "its life, and what its container wrote last"),
                *steps,
            )
    return Outcome({"source": source, **report}, lambda console: _show_one(console, report), steps)


def requeue(
    invocation: Invocation,
    letters: Letters = None,
    session: SessionScope = None,
    reason: ReasonOption = None,
    every: All = False,
    code: Code = None,
) -> Outcome:
    """Send dead letters again.

    An answer is delivered again under its own id, so a receiver that knows the id takes it once. A message goes to the
    agent again as a new message ID+rN; the failed one stays failed. Use it after fixing what `dead show` names.

    \b
    Example:
      clawbus dead requeue 01JD0000000000000000000000 --reason 'receiver is up again'
      clawbus dead requeue --all --code DELIVERY_PERMANENT --reason 'the hook is there again'
    """
    return _repair(invocation, "requeue", _chosen(invocation, letters or [], session, code, every=every), reason)


def drop(
    invocation: Invocation,
    letters: Letters = None,
    session: SessionScope = None,
    reason: ReasonOption = None,
    every: All = False,
    code: Code = None,
) -> Outcome:
    """Take dead letters off the list. Their rows and their history stay, with your name and the reason.

    Use it when nothing is to be done any more. A dropped letter cannot be requeued.

    \b
    Example:
      clawbus dead drop 01JD0000000000000000000000 --reason 'told them by phone'
    """
    return _repair(invocation, "drop", _chosen(invocation, letters or [], session, code, every=every), reason)


@frozen
class _Chosen:
    """The dead letters to work on, in order, each as (session if known, id).

    With --all: `left` is how many more match, `not_examined` and `errors` name the sessions that could not be searched.
    """

    letters: Sequence[tuple[tuple[str, str] | None, str]]
    left: int = 0
    not_examined: int = 0
    errors: Sequence[Mapping[str, Any]] = ()

    @property
    def problem(self) -> Problem | None:
        """The problem that some matching letters may be missing, because sessions were not searched; else None."""
        missed = not_examined({"not_examined": self.not_examined, "errors": self.errors}, "Dead letters")
        return Problem("DEAD_LETTERS_NOT_EXAMINED", *missed) if missed is not None else None


def _chosen(
    invocation: Invocation, letters: Sequence[str], session: str | None, code: str | None, *, every: bool
) -> _Chosen:
    """Return the letters to work on, oldest first. Raise a usage error when the arguments are too few or contradictory."""
    scope = pair(session, None) if session is not None else None
    if not every:
        if not letters or code is not None:
            raise typer.BadParameter("name the letters; --code goes with --all.")
        named = list(dict.fromkeys(letters))
        if len(named) > 1:
            named = _by_arrival(invocation, named, scope)
        return _Chosen([(scope, letter) for letter in named])
    if letters or (scope is None and code is None):
        raise typer.BadParameter("--all takes no ids, and needs --session or --code.")
    found = _oldest(invocation, scope, code)
    return _Chosen(
        [((one["agent"], one["session"]), one["id"]) for one in found["letters"]],
        max(0, found["total"] - len(found["letters"])),
        found["not_examined"],
        found["errors"],
    )


def _oldest(invocation: Invocation, scope: tuple[str, str] | None, code: str | None) -> dict[str, Any]:
    """Return the report of the oldest open dead letters, at most 1,000."""
    return _letters(invocation, session=scope, limit=_ALL, code=code, oldest_first=True)[0]


def _by_arrival(invocation: Invocation, letters: list[str], scope: tuple[str, str] | None) -> list[str]:
    """Sort the ids by arrival: they may be copied from a list that shows the newest first."""
    found = _oldest(invocation, scope, None)["letters"]
    place = {one["id"]: number for number, one in enumerate(found)}
    return sorted(letters, key=lambda letter: place.get(letter, len(place)))


def _repair(invocation: Invocation, action: str, chosen: _Chosen, reason: str | None) -> Outcome:
    """Carry out the action on each letter."""
    verb = RequeueDead if action == "requeue" else DropDead
    done, refused, problem = carry_out(
        invocation,
        lambda key, letter: verb(*key, by=user(), reason=reason, id=letter),
        chosen.letters,
        lambda letter: _find(invocation, letter),
    )
    result = {
        "done": done, "refused": refused, "left": chosen.left, "not_examined": chosen.not_examined,
        "errors": list(chosen.errors),
    }  # fmt: skip
    steps = (NextAction("clawbus dead list", "what is still open"),)
    show_them = partial(_show_repairs, action=action, result=result)
    return Outcome(result, show_them, steps, problem or chosen.problem)


def _find(invocation: Invocation, letter: str) -> tuple[str, str]:
    report, _ = _letters(invocation, letter_id=letter)
    from daemon.inspect.finding import the_only  # noqa: PLC0415

    hint = (
        "`clawbus dead list` lists dead letters, `clawbus delivery list` answers in retry; `clawbus message show`"
        " shows any message."
    )
    unread = report["not_examined"] + len(report["errors"])
    found = [(one["agent"], one["session"]) for one in report["letters"]]
    return the_only(found or _closed(invocation, letter), "an open dead letter", letter, unread=unread, hint=hint)


def _closed(invocation: Invocation, letter: str) -> list[tuple[str, str]]:
    """Return the sessions that have a dead letter of this id that was dealt with: the command says by whom, and how."""
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415
    from daemon.inspect.finding import sessions_with  # noqa: PLC0415
    from daemon.store.dead_letters import CLOSED_TABLE  # noqa: PLC0415

    data_dir = invocation.place.data_dir
    return sessions_with(data_dir, read_central(data_dir).known(), letter, table=CLOSED_TABLE)[0]


def _read(invocation: Invocation, ask: Callable[[ControlClient], T], look: Callable[[], T]) -> tuple[T, str]:
    """Return a report and its source: from the daemon, or from the files when it is down or hangs."""
    from daemon.cli.daemon_status import daemon_or_files  # noqa: PLC0415

    return daemon_or_files(invocation, ask, look)


def _letters(invocation: Invocation, **query: Any) -> tuple[dict[str, Any], str]:
    """Return the open dead letters, and who was asked for them. What a daemon has no time for is read from the files."""
    report, source = _read(
        invocation, lambda client: client.dead_letters(**query), lambda: _from_files(invocation, **query)
    )
    if source == "daemon" and report["not_examined"]:
        with suppress(ClawbusError):  # the files cannot be read here: the daemon's report says what is missing
            return _from_files(invocation, **query), source
    return report, source


def _from_files(invocation: Invocation, **query: Any) -> dict[str, Any]:
    from daemon.inspect.bounds import PATIENT_BUDGET_S  # noqa: PLC0415 - only without a daemon
    from daemon.inspect.dead_reading import dead_letters_report  # noqa: PLC0415

    return dead_letters_report(invocation.place.data_dir, SystemClock(), budget_s=PATIENT_BUDGET_S, **query)


def _letter_from_files(invocation: Invocation, named: tuple[str, str], letter: str) -> dict[str, Any]:
    from daemon.inspect.dead_reading import dead_letter_report  # noqa: PLC0415 - only without a daemon

    return dead_letter_report(invocation.place.data_dir, *named, letter)


def _typed(letter: Mapping[str, Any]) -> str:
    """Return the arguments that name one letter."""
    import shlex  # noqa: PLC0415

    return f"{shlex.quote(letter['id'])} --session {one_word(letter['agent'], letter['session'])}"


def _show_list(console: Console, report: Mapping[str, Any], source: str) -> None:
    from daemon.cli.present import say, short_ids, table, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    ids = short_ids(console, [one["id"] for one in report["letters"]])
    rows = [
        (f"{one['agent']}/{one['session']}", one["kind"], short, when(one["at"], now), one["where"], one["code"],
         one["reason"])
        for one, short in zip(report["letters"], ids, strict=True)
    ]  # fmt: skip
    columns = ("session", "kind", "id", "when", "to or from", "code", "reason")
    console.print(table(counted(report["total"], "dead letter"), columns, rows))
    if report["total"] > len(rows):
        say(console, f"and {report['total'] - len(rows)} more: --limit, or --session")
    if report["not_examined"]:
        say(
            console,
            f"{counted(report['not_examined'], 'session was', 'sessions were')} not examined (no time): --session",
        )
    say(console, *(f"{one['agent']}/{one['session']} could not be read: {one['error']}" for one in report["errors"]))
    if source == "files":
        say(console, "(the daemon does not answer: read from the files)")


def _show_one(console: Console, report: Mapping[str, Any]) -> None:
    from daemon.cli.present import brief, pairs, say, table, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    row: Mapping[str, Any] = report["row"] or {}
    closed: Mapping[str, Any] | None = report["closed"]
    facts: dict[str, object] = {
        "id": report["id"],
        "session": f"{report['agent']}/{report['session']}",
        "kind": "answer (out)" if report["kind"] == "out" else "message (in)",
        "state": report["state"],
        "since": when(report["at"], now),
        "to" if report["kind"] == "out" else "from": report["where"],
        "attempts": report["attempts"],
        "code": report["code"],
        "reason": report["reason"],
        "text": row.get("text", "(the row is gone)"),
    }
    if closed is not None:
        facts["closed"] = f"{closed['outcome']} by {closed['by']} {when(closed['at'], now)}: {closed['reason'] or '-'}"
    if report["next_step"]:
        facts["next step"] = report["next_step"]
    pairs(console, facts)
    history = [(when(one["at"], now), one["event"], brief(one["detail"])) for one in report["history"]]
    console.print(table("History", ("when", "what", "detail"), history))
    if report.get("said"):
        said = (f"  {when(one['at'], now)} | {one['text']}" for one in report["said"])
        say(console, "", "What the agent said last (progress and standard error):", *said)
    say(console, *(f"could not be read: {error}" for error in report["errors"]))


def _show_repairs(console: Console, *, action: str, result: Mapping[str, Any]) -> None:
    from daemon.cli.present import say  # noqa: PLC0415

    past = "requeued" if action == "requeue" else "dropped"
    for one in result["done"]:
        as_ = f" as {one['requeued_as']}" if one.get("requeued_as") not in (None, one["id"]) else ""
        say(console, f"{one['id']} of {one['agent']}/{one['session']}: {past}{as_}")
    for one in result["refused"]:
        say(console, f"{one['id']}: not {past}: {one['error']['message']}")
    if result["left"]:
        say(console, f"{result['left']} more are open: repeat the command to continue")
