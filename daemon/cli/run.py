"""`clawbus run`: the daemon in the foreground; `clawbus run ID`: the whole life of one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.command import Invocation, add
from daemon.cli.envelope import Outcome, Problem
from daemon.cli.held_signals import release

if TYPE_CHECKING:
    from daemon.app.signals import SignalInbox

_ONE = typer.Argument(metavar="[ID]", help="Show this run (a message's id, or MESSAGE@INCARNATION); start nothing.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "run", run)


def run(
    invocation: Invocation,
    identity: Annotated[str | None, _ONE] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="A/S", help="With ID: the session, when several have it.")
    ] = None,
) -> Outcome:
    """Run the daemon in the foreground until it is told to stop (Ctrl-C, SIGTERM); with ID, show one run instead.

    Use it under systemd or in a terminal. Events go to standard error and to <data>/logs/clawbus.log. Stopping it
    stops no agent: the next start takes over what runs. With the id of a message, or of one of its runs
    (MESSAGE@INCARNATION), nothing is started: it shows that run's whole life, the truth about it, and its container's
    last words. That works from the files, the daemon up or down.

    \b
    Example:
      clawbus run --config /etc/clawbus/clawbus.toml
      clawbus run 01JD0000000000000000000000
    """
    if identity is not None:
        release()
        from daemon.cli.one_run import one_run  # noqa: PLC0415

        return one_run(invocation, identity, session)
    if session is not None:
        raise typer.BadParameter("--session goes with the ID of a run; without one this starts the daemon.")
    # Before anything else is imported or opened: a signal from now on neither ends the start nor is lost.
    from daemon.app.signals import SignalInbox  # noqa: PLC0415

    signals = SignalInbox()
    with signals.installed():
        release()
        code = _serve(invocation, signals)
    if code:
        problem = Problem("DAEMON_FAILED", f"the daemon ended with exit code {code}.", "`clawbus logs -n 50` says why.")
        return Outcome({"exit_code": code}, problem=problem, exit_code=code)
    # Under systemd nobody reads standard output as a pipe: an envelope only for who asked.
    return Outcome({"exit_code": 0}, silent=invocation.options.json is None)


def _serve(invocation: Invocation, signals: SignalInbox) -> int:
    from daemon.cli.guard import check_foreign_packages  # noqa: PLC0415 - reads every installed distribution's metadata

    check_foreign_packages()
    config = invocation.strict_config
    from daemon.app import main as app  # noqa: PLC0415 - the whole daemon
    from daemon.config.models import load_config  # noqa: PLC0415

    return app.run(config, lambda: load_config(invocation.config_file, data_dir=invocation.options.data), signals)
