"""`clawbus version`."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import typer

from daemon.cli.command import add
from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation
from schema.migrate import VERSION


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "version", version)


def version(_: Invocation) -> Outcome:
    """Print which clawbus this is, on which Python, with which schema.

    Use it in a bug report, or to see whether an upgrade took.

    \b
    Example:
      clawbus version
    """
    try:
        own = metadata.version("clawbus")
    except metadata.PackageNotFoundError:
        own = "unknown (not installed)"
    result = {"version": own, "schema": VERSION, "python": platform.python_version(), "prefix": sys.prefix}
    return Outcome(result, text=f"clawbus {own} (schema {VERSION}, Python {platform.python_version()})")
