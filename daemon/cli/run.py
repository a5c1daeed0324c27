"""`clawbus run list|show`: what agents worked on, and the whole life of one run."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from daemon.cli.command import add, add_group
from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.output import progress
from daemon.cli.runs import runs

_ONE: Final = typer.Argument(metavar="ID", help="A message's id, or one run's, MESSAGE@INCARNATION.")
_SERVE: Final = (
    "`clawbus run` does not start the daemon: that is `clawbus serve`. To show a run, name its id: `clawbus run show ID`"
    " (is a variable empty?)."
)


class RunGroup(TyperGroup):
    """The group, which still takes `run ID` for `run show ID`, and says what became of `run` alone."""

    def invoke(self, ctx: Any) -> Any:
        """Refuse a missing command with the name of the one that starts the daemon."""
        if not ctx._protected_args and not ctx.args:  # noqa: SLF001
            ctx.fail(_SERVE)
        return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Treat a word that is not a command as the id of a run."""
        word = args[0]
        if not word.strip():
            ctx.fail(_SERVE)
        if word not in self.commands and not word.startswith("-"):
            progress("note: `clawbus run ID` is `clawbus run show ID` now.")
            args = ["show", *args]
        return super().resolve_command(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        cls=RunGroup,
        help="What agents work on and worked on: list runs, or show the whole life of one.\n\n\b\nExample:\n"
        "  clawbus run list --status running",
        rich_markup_mode=None,
    )
    add(group, "list", runs, path="run")
    add(group, "show", show, path="run")
    add_group(app, group, "run")


def show(
    invocation: Invocation,
    identity: Annotated[str, _ONE],
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="A/S", help="The session, when several have the id.")
    ] = None,
) -> Outcome:
    """Show one run's whole life, its true status, and its container's last output.

    Use it to see what became of a message, by its id, or of one of its runs (MESSAGE@INCARNATION). It works from the
    files, the daemon up or down.

    \b
    Example:
      clawbus run show 01JD0000000000000000000000
    """
    from daemon.cli.one_run import one_run  # noqa: PLC0415

    return one_run(invocation, identity, session)
