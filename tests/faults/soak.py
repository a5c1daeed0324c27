"""Faults on real processes and containers for as long as one likes: `python -m tests.faults.soak processes --minutes 10`.

Prints one JSON object: what was struck, what was sent, and what became of it. Exit code 1 when anything was lost,
doubled or found broken. It ends whatever it started, also when it fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from tests.faults.chaos import ANY, CONFIG, SOAK_BLOWS, SOAK_DOCKER_BLOWS, Chaos, Goal, Report
from tests.faults.load import HOOK, MAILBOX, Load, Receiver, receiver
from tests.faults.talk import AGENT, TABLE, Person
from tests.faults.victims import DockerVictims, ProcessVictims
from tests.support.agent_image import agent_image
from tests.support.daemon import RealDaemon
from tests.support.private_dockerd import PrivateDockerd
from tests.support.webhooks import free_port

DOCKERD_VARIABLE: Final = "CLAWBUS_FAULTS_DOCKERD"


def process_chaos(
    *,
    seed: int,
    seconds: float,
    sessions: int = 14,
    per_second: float = 30.0,
    over: threading.Event | None = None,
    goal: Goal = ANY,
    more_blows: Sequence[tuple[str, int]] = (),
) -> Report:
    """Strike the process runtime for `seconds`, and until the goal is met."""
    with receiver(seed) as posted, contextlib.ExitStack() as stack:
        daemon = RealDaemon()
        stack.callback(daemon.close)
        daemon.configure(CONFIG.format(kind="process", image="unused", port=free_port(), url=posted.url) + TABLE)
        load = _load(daemon, posted, seed, sessions, per_second)
        chaos = Chaos(daemon, ProcessVictims(daemon), load, posted, seed, more_blows=more_blows)
        try:
            chaos.run(seconds, over, goal)
            chaos.settle()
        except AssertionError as error:
            chaos.report.problems.append(str(error))
        return chaos.report


def docker_chaos(
    *, seed: int, seconds: float, image: str, dockerd: PrivateDockerd | None, sessions: int = 4,
    per_second: float = 8.0, pause_s: float = 1.0,
    over: threading.Event | None = None,
    goal: Goal = ANY, more_blows: Sequence[tuple[str, int]] = (),
) -> Report:  # fmt: skip
    """The same with containers: of the machine's dockerd, or of a private one that is struck, too."""
    with receiver(seed) as posted, contextlib.ExitStack() as stack:
        daemon = RealDaemon()
        stack.callback(daemon.close)
        environ = dict(os.environ) if dockerd is None else dockerd.environ
        daemon.environment = {name: value for name, value in environ.items() if name == "DOCKER_HOST"}
        daemon.configure(CONFIG.format(kind="docker", image=image, port=free_port(), url=posted.url) + TABLE)
        load = _load(daemon, posted, seed, sessions, per_second)
        chaos = Chaos(
            daemon, DockerVictims(daemon, environ), load, posted, seed, pause_s=pause_s, dockerd=dockerd,
            more_blows=more_blows,
        )  # fmt: skip
        try:
            chaos.run(seconds, over, goal)
            chaos.settle()
        except AssertionError as error:
            chaos.report.problems.append(str(error))
        return chaos.report


def _load(daemon: RealDaemon, posted: Receiver, seed: int, sessions: int, per_second: float) -> Load:
    """Send to all three agents in turn; a person answers what one of them asks."""
    names = [(("echo", "shell", AGENT)[number % 3], f"s{number}") for number in range(sessions)]
    person = Person(daemon.socket, posted.bodies, MAILBOX["platform_id"], HOOK, seed)
    return Load(daemon.socket, names, per_second=per_second, person=person)


def as_json(report: Report) -> dict[str, Any]:
    """A report for a table."""
    return {
        "seed": report.seed,
        "seconds": round(report.seconds, 1),
        "sigkills": report.killed,
        "kills": dict(report.kills),
        "freezes": dict(report.freezes),
        "dockerd_restarts": report.dockerd_restarts,
        "accepted": report.account.accepted,
        "answered": report.account.answered,
        "questions": report.account.questions,
        "dead_lettered": report.account.dead,
        "reasons": dict(report.account.reasons),
        "tries": report.account.tries,
        "repeated_in_doubt": report.account.repeated,
        "lost": len(report.account.lost),
        "double_receipts": len(report.account.doubled),
        "problems": report.failures()[:20],
    }


def containers(options: argparse.Namespace, over: threading.Event) -> dict[str, Any]:
    """The part with Docker, or why there is none."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=120).returncode != 0:
        return {"skipped": "Docker does not answer", "problems": []}
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(agent_image(options.base))
        dockerd = None
        if os.environ.get(DOCKERD_VARIABLE) == "1":
            dockerd = stack.enter_context(PrivateDockerd())
            dockerd.copy_image(image)
        return as_json(
            docker_chaos(
                seed=options.seed,
                seconds=options.minutes * 60,
                image=image,
                dockerd=dockerd,
                sessions=6,
                pause_s=0.6,
                over=over,
                # Other hands use the machine's own engine, not a private one.
                more_blows=SOAK_DOCKER_BLOWS if dockerd is None else SOAK_BLOWS,
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("part", choices=("processes", "containers"))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--base", default="base-debian:bookworm", help="the image to build the agents' on")
    options = parser.parse_args()
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    if options.part == "containers":
        found = containers(options, over)
    else:
        found = as_json(
            process_chaos(seed=options.seed, seconds=options.minutes * 60, over=over, more_blows=SOAK_BLOWS)
        )
    print(json.dumps(found, indent=2))
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
