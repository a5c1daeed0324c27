"""`clawbus serve`: the daemon in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from daemon.cli.command import Invocation, add
from daemon.cli.envelope import Outcome, Problem
from daemon.cli.held_signals import release

if TYPE_CHECKING:
    from daemon.app.signals import SignalInbox


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "serve", serve)


def serve(invocation: Invocation) -> Outcome:
    """Run the daemon in the foreground until Ctrl-C or SIGTERM.

    Use it under systemd or in a terminal. Events go to standard error and to <data>/logs/clawbus.log. Stopping it
    stops no agent: the next start takes over what runs.

    \b
    Example:
      clawbus serve --config /etc/clawbus/clawbus.toml
    """
    # Before anything else is imported or opened: a signal from now on neither ends the start nor is lost.
    from daemon.app.signals import SignalInbox  # noqa: PLC0415

    signals = SignalInbox()
    with signals.installed():
        release()
        code = _serve(invocation, signals)
    if code:
        problem = Problem("DAEMON_FAILED", f"the daemon ended with exit code {code}.", "`clawbus logs -n 50` says why.")
        return Outcome({"exit_code": code}, problem=problem, exit_code=code)
    return Outcome({"exit_code": 0}, silent=not invocation.json)


def _serve(invocation: Invocation, signals: SignalInbox) -> int:
    from daemon.cli.guard import check_foreign_packages  # noqa: PLC0415 - reads every installed distribution's metadata

    check_foreign_packages()
    config = invocation.strict_config
    from daemon.app import main as app  # noqa: PLC0415 - the whole daemon
    from daemon.config.models import load_config  # noqa: PLC0415

    return app.run(config, lambda: load_config(invocation.config_file, data_dir=invocation.options.data), signals)
