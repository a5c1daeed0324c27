"""`clawbus serve`: the daemon in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.command import add
from daemon.cli.envelope import Outcome, Problem, problem_of
from daemon.cli.invocation import Invocation
from daemon.cli.process_start import collect, release_signals
from daemon.core.deploy_errors import (
    EXIT_CONFIG,
    EXIT_FENCED,
    DuplicateOwnershipError,
    FencedError,
    NotServingError,
    ReleaseInvalidError,
    ReleasesUnusedError,
    SourceOutsideError,
)
from daemon.core.slots import SLOTS

if TYPE_CHECKING:
    from daemon.app.signals import SignalInbox
    from daemon.config.models import Config


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "serve", serve)


def serve(
    invocation: Invocation,
    developer: Annotated[
        bool, typer.Option("--developer", help="Start from outside of a release although deploy.root is set.")
    ] = False,
    slot: Annotated[
        str | None,
        typer.Option(
            "--slot", metavar="SLOT", help="blue or green: serve when this slot is to, else wait as its standby."
        ),
    ] = None,
) -> Outcome:
    """Run the daemon in the foreground until Ctrl-C or SIGTERM.

    Use it under systemd or in a terminal. Events go to standard error and to <data>/logs/clawbus.log. Stopping it
    stops no agent: the next start takes over what runs.

    \b
    Example:
      clawbus serve --config /etc/clawbus/clawbus.toml
    """
    if slot not in (None, *SLOTS):
        raise typer.BadParameter(f"--slot {slot} is none of {', '.join(SLOTS)}.")
    # Before anything else is imported or opened: a signal from now on neither ends the start nor is lost.
    from daemon.app.signals import SignalInbox  # noqa: PLC0415

    signals = SignalInbox()
    with signals.installed():
        release_signals()
        try:
            code = _serve(invocation, signals, slot, developer=developer)
        except (SourceOutsideError, ReleaseInvalidError, DuplicateOwnershipError) as error:
            return Outcome(problem=problem_of(error), exit_code=EXIT_CONFIG)
        except (FencedError, NotServingError) as error:
            return Outcome(problem=problem_of(error), exit_code=EXIT_FENCED)
    if code:
        problem = Problem("DAEMON_FAILED", f"the daemon ended with exit code {code}.", "`clawbus logs -n 50` says why.")
        return Outcome({"exit_code": code}, problem=problem, exit_code=code)
    return Outcome({"exit_code": 0}, silent=not invocation.json)


def _serve(invocation: Invocation, signals: SignalInbox, slot: str | None, *, developer: bool) -> int:
    from daemon.cli.guard import check_foreign_packages  # noqa: PLC0415 - reads every installed distribution's metadata

    check_foreign_packages()
    config = invocation.strict_config
    from daemon.app import main as app  # noqa: PLC0415 - the whole daemon
    from daemon.config.loading import load_config  # noqa: PLC0415
    from daemon.config.ownership import ownership_of  # noqa: PLC0415
    from daemon.deploy.own_images import with_own_images  # noqa: PLC0415
    from daemon.workers.source import check_origin, origin  # noqa: PLC0415

    collect()
    found = origin(slot)
    check_origin(found, config.deploy.root, developer=developer)
    ownership_of(config)  # a standby must not become ready with a configuration that it could not serve

    def load() -> Config:
        loaded = load_config(invocation.config_file, data_dir=invocation.options.data)
        return with_own_images(loaded, found.manifest)

    if slot is not None:
        if not config.deploy.root:
            raise ReleasesUnusedError("--slot needs releases, and deploy.root is not set.")
        from daemon.app.slots import run_slot  # noqa: PLC0415

        return run_slot(with_own_images(config, found.manifest), load, signals, found, slot)
    return app.run(with_own_images(config, found.manifest), load, signals, found)
