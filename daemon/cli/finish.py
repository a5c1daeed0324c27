"""Turns what a command did or raised into its outcome, prints that as text or as an envelope, and returns the exit code."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import typer

from daemon.cli.envelope import NextAction, Outcome, Problem, envelope, problem_of
from daemon.cli.global_options import Globals
from daemon.cli.invocation import Invocation
from daemon.cli.output import Output, OutputLostError, lost, progress
from daemon.cli.pager import pager_for, show
from daemon.cli.same_place import in_place
from daemon.core.command_words import start_command
from daemon.core.errors import FileAccessError, NoAccessError, NotListeningError
from schema.errors import ClawbusError

_START: Final = start_command(None)
LOOK: Final = (NextAction("clawbus logs -n 50", "what it does instead"),)
SILENT_FIX: Final = (
    "Do not start a second one. A daemon that is starting, or that lost its control socket, answers within seconds."
    " Check that control.socket is the one it was started with; otherwise restart it."
)


def outcome_of(invocation: Invocation, work: Callable[[], Outcome]) -> Outcome:
    """Run a command's work. Return its outcome, or the problem that ended it with the steps that help.

    Raise only what typer handles itself, and OutputLostError.
    """
    try:
        return work()
    except ClawbusError as error:
        problem = problem_of(error)
        if isinstance(error, NotListeningError) and (silent := invocation.silent_daemon()) is not None:
            return Outcome(problem=replace(problem, message=silent, fix=SILENT_FIX), next_actions=LOOK)
        if isinstance(error, NotListeningError) and invocation.start != _START:
            fix = f"Start it with `{invocation.start}`; `clawbus logs -n 50` says why it ended."
            return Outcome(problem=replace(problem, fix=fix), next_actions=LOOK)
        if isinstance(error, NoAccessError):  # to start another daemon or to read its log would be refused, too
            return Outcome(problem=problem)
        return Outcome(problem=problem, next_actions=_after(problem.code))
    except (typer.Exit, typer.Abort, typer.TyperException, OutputLostError):
        raise
    except Exception as error:  # noqa: BLE001 - the last place that can report what went wrong
        if invocation.options.debug:
            progress(*traceback.format_exc().rstrip().split("\n"))
        if isinstance(error, OSError):
            return Outcome(problem=problem_of(FileAccessError.of(error)))
        return Outcome(
            problem=Problem(
                "INTERNAL", f"{type(error).__name__}: {error}", "Run it again with --debug and report that."
            )
        )


def finish(invocation: Invocation, outcome: Outcome) -> int:
    """Print the outcome in the form that was asked for. Return the exit code."""
    if outcome.silent:
        return outcome.code
    outcome = _as_started(invocation, outcome)
    outcome = replace(outcome, next_actions=tuple(_same_place(one, invocation.options) for one in outcome.next_actions))
    unseen: OutputLostError | None = None
    try:
        if invocation.json:
            invocation.emit(envelope(invocation.command, outcome))
        else:
            _print_text(invocation, outcome)
    except OutputLostError as error:
        unseen = error
    if not invocation.json:
        _show_end(outcome)
    if unseen is None:
        return outcome.code
    # The envelope may name a message that was accepted: write it to standard error, which may still be open.
    return lost(unseen, envelope(invocation.command, outcome), outcome.code)


def _print_text(invocation: Invocation, outcome: Outcome) -> None:
    """Print the result for people, in a pager where it is longer than the terminal. Raise OutputLostError."""
    pager = None if invocation.options.no_pager else pager_for(invocation.command, os.environ)
    if outcome.text is not None:
        text = f"{outcome.text}\n"
    elif outcome.people is None:
        return
    elif pager is None:
        outcome.people(invocation.console())
        Output().flush()
        return
    else:
        console = invocation.console()
        with console.capture() as captured:
            outcome.people(console)
        text = captured.get()
    if pager is None:
        Output().write(text)
        Output().flush()
    else:
        show(text, pager, os.environ)


def _after(code: str) -> tuple[NextAction, ...]:
    if code == "DAEMON_DOWN":
        return (NextAction(_START, "start the daemon"), NextAction("clawbus logs -n 50", "why it ended"))
    if code == "UNKNOWN_MESSAGE":
        return (NextAction("clawbus message list", "list the messages"),)
    if code == "UNKNOWN_SESSION":
        return (NextAction("clawbus session list", "list the sessions"),)
    if code == "UNKNOWN_AGENT":
        return (NextAction("clawbus agent list", "list the agents"),)
    return ()


def _as_started(invocation: Invocation, outcome: Outcome) -> Outcome:
    """Return the outcome with the command that starts this folder's daemon in place of `clawbus serve`."""
    problem, steps = outcome.problem, outcome.next_actions
    in_fix = problem is not None and f"`{_START}`" in problem.fix and "systemctl" not in problem.fix
    if not (in_fix or any(one.command == _START for one in steps)):
        return outcome
    start = invocation.start
    if problem is not None and in_fix:
        problem = replace(problem, fix=problem.fix.replace(f"`{_START}`", f"`{start}`"))
    steps = tuple(replace(one, command=start) if one.command == _START else one for one in steps)
    return replace(outcome, problem=problem, next_actions=steps)


def _same_place(action: NextAction, options: Globals) -> NextAction:
    return NextAction(in_place(action.command, options), action.description)


def _show_end(outcome: Outcome) -> None:
    if outcome.problem is not None:
        progress(f"error: {outcome.problem.message}")
        if not outcome.steps_shown:
            progress(f"fix: {outcome.problem.fix}")
    if not outcome.steps_shown:
        progress(*(f"next: {action.command}  ({action.description})" for action in outcome.next_actions))
