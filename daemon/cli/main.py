"""The `clawbus` command. Builds the tree of commands, runs one, and turns what went wrong into an exit code.

0 ok, 1 not ok, 2 wrong usage, 130 interrupted. No traceback ever reaches a user who did not ask for one (--debug).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from daemon.cli import (
    backup,
    chat,
    config_check,
    dead,
    doctor,
    image,
    init,
    inngest,
    logs,
    mailbox,
    message,
    run,
    runs,
    send,
    session,
    sessions,
    status,
    sweep,
    top,
    version,
    watch,
)
from daemon.cli.command import (
    ConfigFlag,
    DataFlag,
    DebugFlag,
    Globals,
    Invocation,
    JsonFlag,
    OutputLostError,
    finish,
    wants_json,
)
from daemon.cli.envelope import INTERRUPTED, USAGE, NextAction, Outcome, Problem

_HELP = """The message bus between this host and the agent containers it runs.

A message goes in with `send`, wakes the agent's container, and its answer lands in a mailbox. Start with `init` and `run`.
Every command takes --json (one envelope: ok, command, result, error, fix, next_actions) and exits with 0 only when ok.

\b
Example:
  clawbus init && clawbus run &
  clawbus send 'hello' --agent echo --session demo --wait 30
"""


def build_app() -> typer.Typer:
    """The whole tree of commands."""
    app = typer.Typer(
        help=_HELP,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback()
    def root(
        ctx: typer.Context,
        json: JsonFlag = None,
        config: ConfigFlag = None,
        data: DataFlag = None,
        debug: DebugFlag = False,
    ) -> None:
        ctx.obj = Globals(json, config, data, debug)

    for module in (
        init,
        run,
        backup,
        runs,
        send,
        chat,
        mailbox,
        status,
        top,
        sessions,
        session,
        message,
        sweep,
        dead,
        doctor,
        image,
        logs,
        watch,
        config_check,
        inngest,
        version,
    ):
        module.register(app)
    return app


@functools.cache
def command_tree() -> Callable[..., Any]:
    """What parses a command line, made from the tree once."""
    return typer.main.get_command(build_app())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _fill_closed()
    try:
        code = _run(given)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # the reader went away (`clawbus logs | head`)
        _give_up_output()
        return 1
    except (OSError, OutputLostError) as error:
        _give_up_output()
        lost = str(error) if isinstance(error, OutputLostError) else f"standard output cannot be written ({error})."
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error: {lost}\n")
            sys.stderr.flush()
        return 1
    return code if isinstance(code, int) else 0


def _run(given: Sequence[str]) -> object:
    try:
        return command_tree()(args=list(given), prog_name="clawbus", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error, given)


def _fill_closed() -> None:
    """Python has no stream for a descriptor that was closed (`>&-`). The next file that is opened must not take its number.

    Standard output is then a place that refuses every write, so that nobody takes a lost answer for a given one.
    """
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _give_up_output() -> None:
    """Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: typer.TyperException, given: Sequence[str]) -> int:
    context = getattr(error, "ctx", None)
    path = str(getattr(context, "command_path", "clawbus"))
    problem = Problem("USAGE", error.format_message(), f"`{path} --help` shows how it is used.")
    invocation = Invocation(path.removeprefix("clawbus").strip(), Globals(json=wants_json(given)))
    return finish(
        invocation,
        Outcome(problem=problem, exit_code=USAGE, next_actions=(NextAction(f"{path} --help", "its options"),)),
    )
