"""`clawbus source`: compares what is installed and what runs with one source, and names each difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.command import add
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.core.deploy_errors import SourceUnknownError
from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from daemon.deploy.drift import SourceReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "source", source)


def source(
    invocation: Invocation,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what can be repaired without restarting what serves.")
    ] = False,
) -> Outcome:
    """Compare installed files, manifests, images and the running daemon, and name each difference.

    Use it after an installation, and when something behaves like another version. A file that was changed after its
    installation is found. Exit code 0: there is one source, 1: a drift, 75: not everything could be checked.

    \b
    Example:
      clawbus source --repair
    """
    from daemon.deploy import drift  # noqa: PLC0415
    from daemon.deploy.releases import Releases  # noqa: PLC0415
    from daemon.workers.source import origin  # noqa: PLC0415

    releases = Releases(invocation.config.deploy.root)
    live = _live(invocation)
    found = drift.report(invocation.config, origin(), live)
    done: list[str] = []
    if repair:
        done = drift.repair(releases, found, drift.running_of(live))
        found = drift.report(invocation.config, origin(), live) if done else found
    result = {**found.as_json(), "repaired": done}

    def people(console: Console) -> None:
        _show(console, found, done)

    if not found.drifts and found.unchecked:
        why = "; ".join(one.rstrip(".") for one in found.unchecked)
        problem = Problem(
            SourceUnknownError.code, f"not everything could be checked: {why}.", SourceUnknownError.default_hint
        )
        return Outcome(result, people, (), problem, exit_code=75)
    if not found.drifts:
        return Outcome(result, people)
    problem = Problem("SOURCE_DRIFT", "; ".join(str(one) for one in found.drifts) + ".", _fix(found.drifts))
    steps = (NextAction("clawbus source --repair", "repair it"),) if any(one.repairable for one in found.drifts) else ()
    return Outcome(result, people, steps, problem)


def _show(console: Console, found: SourceReport, repaired: Iterable[str]) -> None:
    from daemon.cli.present import say, say_wrapped  # noqa: PLC0415

    say(console, f"release  {(found.release or 'none runs')[:12]}")
    for one in repaired:
        say_wrapped(console, "repaired  ", one)
    for one in found.drifts:
        say_wrapped(console, "drift  ", one)
    for one in (*found.unchecked, *found.absent):
        say_wrapped(console, "unknown  ", one)
    if not found.drifts:
        say(console, "no drift in what could be checked" if found.unchecked else "one source: no drift")


def _fix(drifts: tuple[Any, ...]) -> str:
    if any(one.repairable for one in drifts):
        return "Run `clawbus source --repair`; it restarts nothing."
    if any(one.what in ("files", "manifest", "source") for one in drifts):
        return "Make the release again from a fresh installation (`clawbus release make`), and start that one."
    if any(one.what == "image" for one in drifts):
        return "Build the image (`clawbus image build`), make a release with it, and start that one."
    astray = next((one.where for one in drifts if one.what == "slot"), None)
    if astray is not None:
        return f"Point the slot at a release of `clawbus release list`: `clawbus release link {astray} RELEASE`."
    return "Start the daemon from a release of deploy.root (docs/deploys.md)."


def _live(invocation: Invocation) -> dict[str, Any] | None:
    try:
        with invocation.client() as client:
            return client.live()
    except (DaemonDownError, DaemonSilentError, RemoteError):
        return None
