"""`clawbus run`: the daemon in the foreground."""

from __future__ import annotations

import typer

from daemon.cli.command import Invocation, add
from daemon.cli.envelope import Outcome, Problem


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "run", run)


def run(invocation: Invocation) -> Outcome:
    """Run the daemon in the foreground until it is told to stop (Ctrl-C, SIGTERM).

    Use it under systemd or in a terminal. Events go to standard error and to <data>/logs/clawbus.log. Stopping it
    stops no agent: the next start takes over what runs.

    \b
    Example:
      clawbus run --config /etc/clawbus/clawbus.toml
    """
    from daemon.cli.guard import check_foreign_packages  # noqa: PLC0415 - reads every installed distribution's metadata

    check_foreign_packages()
    config = invocation.config
    from daemon import app  # noqa: PLC0415 - the whole daemon
    from daemon.config import load_config  # noqa: PLC0415

    code = app.run(config, lambda: load_config(invocation.config_file, data_dir=invocation.options.data))
    if code:
        problem = Problem("DAEMON_FAILED", f"the daemon ended with exit code {code}.", "`clawbus logs -n 50` says why.")
        return Outcome({"exit_code": code}, problem=problem, exit_code=code)
    # Under systemd nobody reads standard output as a pipe: an envelope only for who asked.
    return Outcome({"exit_code": 0}, silent=invocation.options.json is None)
