"""A process that sweeps an Inngest database and is killed in the middle: `python inngest_victim.py DB STEP`."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from daemon.inngest.plan import Scope
from daemon.inngest.sweep import Request, sweep
from tests.support.inngest_db import HEALTH, NOW, TRIAGE


def main() -> None:
    path, deadly, *excluded = sys.argv[1:]

    def tell(step: str) -> None:
        if step == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    scope = Scope(functions=(TRIAGE, HEALTH), exclude=tuple(excluded))
    sweep(Request(Path(path), scope, "ada", apply=True), NOW, tell)


if __name__ == "__main__":
    main()
