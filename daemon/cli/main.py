"""The `clawbus` command. Builds the tree of commands, runs one, and turns what went wrong into an exit code.

0 ok, 1 not ok, 2 wrong usage, 74 done but the report could not be written, 130 interrupted. No traceback ever reaches a user who did not ask for one (--debug).
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import typer

from daemon.cli.envelope import INTERRUPTED, USAGE, NextAction, Outcome, Problem
from daemon.cli.finish import finish
from daemon.cli.global_options import (
    ConfigFlag,
    DataFlag,
    DebugFlag,
    Globals,
    JsonFlag,
    OutputOption,
    PagerFlag,
    wants_json,
)
from daemon.cli.groups import LazyCommands, RootGroup
from daemon.cli.invocation import Invocation
from daemon.cli.output import Output, OutputLostError, lost, prepare
from daemon.cli.usage_text import usage_text

# A chat's number, or a word after a single dash; `-x` and `--typo` are options that do not exist.
_LIKE_A_NAME: Final = re.compile(r"-(\d|[^-]{2})")
_HELP = """The message bus between this host and the agent containers it runs.

A message goes in with `send`, wakes the agent's container, and its answer lands in a mailbox. Start with `init` and `serve`.
Every command takes --json (one envelope: ok, command, result, error, fix, next_actions) and exits with 0 only when ok.

\b
Example:
  clawbus init
  clawbus serve &
  clawbus send 'hello' --agent echo --session demo --wait 30
"""


def build_app() -> typer.Typer:
    """Build the whole tree of commands."""
    app = typer.Typer(
        cls=RootGroup,
        help=_HELP,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback(invoke_without_command=True)
    def root(
        ctx: typer.Context,
        json: JsonFlag = None,
        output: OutputOption = None,
        config: ConfigFlag = None,
        data: DataFlag = None,
        debug: DebugFlag = False,
        no_pager: PagerFlag = False,
        show_version: Annotated[bool, typer.Option("--version", "-V", "-v", help="Which clawbus this is.")] = False,
    ) -> None:
        ctx.obj = Globals.given(json, output, config, data, debug=debug, no_pager=no_pager)
        if ctx.invoked_subcommand is None:
            _without_command(ctx, show_version=show_version)

    return app


def _without_command(ctx: typer.Context, *, show_version: bool) -> None:
    """Show the version if that was asked for, else the help."""
    from daemon.cli import show_help, version  # noqa: PLC0415

    options: Globals = ctx.obj.with_form()
    if show_version:
        invocation = Invocation("version", options, ctx)
        raise typer.Exit(finish(invocation, version.version(invocation)))
    if options.form == "json":
        ctx.fail("Missing command.")
    invocation = Invocation("help", options, ctx)
    raise typer.Exit(finish(invocation, show_help.help_(invocation)))


@functools.cache
def command_tree() -> Callable[..., Any]:
    """Return what parses a command line, made from the tree once."""
    root: Any = typer.main.get_command(build_app())
    if "_CLAWBUS_COMPLETE" in os.environ:
        from daemon.cli import completion  # noqa: PLC0415

        completion.prepare()
        root.commands = LazyCommands(completion.offer_names)
    return root


def manual(version: str) -> str:
    """Return the manual page of all commands, in roff."""
    from daemon.cli.man_page import man_page  # noqa: PLC0415
    from daemon.cli.show_help import every_help  # noqa: PLC0415

    tree: Any = command_tree()
    return man_page(version, every_help(tree.make_context("clawbus", [], resilient_parsing=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        _end_in_order()
    _keep_owners_rights()
    prepare()
    try:
        code = _run(given)
        Output().flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except OutputLostError as error:
        return lost(error)
    return code if isinstance(code, int) else 0


def _end_in_order() -> None:
    """Let SIGTERM end a command as Ctrl-C does: it removes what it has half made. A daemon has handlers of its own."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _keep_owners_rights() -> None:
    """Take the owner's bits out of the umask: with them, clawbus could not use the files and folders that it makes."""
    os.umask(os.umask(0o077) & ~stat.S_IRWXU)


def _run(given: Sequence[str]) -> object:
    try:
        return command_tree()(args=list(given), prog_name="clawbus", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error, given)
    except OSError as error:  # of typer's own help text: a command's errors never come here
        raise OutputLostError(error) from error


def _usage(error: typer.TyperException, given: Sequence[str]) -> int:
    context = getattr(error, "ctx", None)
    path = str(getattr(context, "command_path", "clawbus"))
    fix = f"`{path} --help` shows how it is used."
    behind = _behind_dashes(path, given) if hasattr(error, "possibilities") else None  # an unknown option
    steps = [NextAction(f"{path} --help", "its options")]
    if behind is not None:
        fix = f"A name that begins with `-` goes after `--`, behind all options: `{behind}`."
        steps.insert(0, NextAction(behind, "with the name taken for a name"))
    problem = Problem("USAGE", usage_text(error), fix)
    invocation = Invocation(path.removeprefix("clawbus").strip(), Globals("json" if wants_json(given) else "text"))
    return finish(
        invocation,
        Outcome(problem=problem, exit_code=USAGE, next_actions=tuple(steps)),
    )


def _behind_dashes(path: str, given: Sequence[str]) -> str | None:
    """Return the command with its names behind `--`, or None if no word looks like a name that begins with `-`.

    An option of the command keeps its place before it.
    """
    words = [word for word in given if word not in ("--json", "--no-json", "--pretty")]
    own = path.split()[1:]
    if "--" in words or words[: len(own)] != own or not any(_LIKE_A_NAME.match(word) for word in words):
        return None
    rest = words[len(own) :]
    if any(word.startswith("-") and not _LIKE_A_NAME.match(word) for word in rest):
        return f"{path} [OPTIONS] -- NAME ..."
    return f"{path} -- {shlex.join(rest)}"
