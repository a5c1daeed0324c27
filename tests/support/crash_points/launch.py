"""Start a real runner with its crash points armed: `python -I launch.py PLAN_FOLDER`."""

import runpy
import sys
from pathlib import Path


def arm(folder: str) -> None:
    from points import Points

    from container_runner.heartbeat import Heartbeat
    from container_runner.providers.command import CommandProvider
    from container_runner.providers.echo import EchoProvider

    points = Points(Path(folder), "runner")
    points.transactions()
    for owner, name in ((EchoProvider, "run"), (CommandProvider, "run"), (Heartbeat, "touch")):
        points.wrap(owner, name, f"{owner.__name__}.{name}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    arm(sys.argv[1])
    sys.argv = ["container_runner"]
    runpy.run_module("container_runner", run_name="__main__")
