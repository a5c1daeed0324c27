"""Start a real runner with its crash points armed: `python -I launch.py PLAN_FOLDER`."""

import runpy
import sys
from pathlib import Path

from container_runner.heartbeat import Heartbeat
from container_runner.providers.command import CommandProvider
from container_runner.providers.echo import EchoProvider
from tests.support.crash_points.points import Points


def arm(folder: str) -> None:
    """Patch this interpreter."""
    points = Points(Path(folder), "runner")
    points.transactions()
    for owner, name in ((EchoProvider, "run"), (CommandProvider, "run"), (Heartbeat, "touch")):
        points.wrap(owner, name, f"{owner.__name__}.{name}")


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.argv = ["container_runner"]
    runpy.run_module("container_runner", run_name="__main__")
