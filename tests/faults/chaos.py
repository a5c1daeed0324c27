"""Random deaths and freezes of real daemons and real agents under constant load, from one seed; and what came of it.

`Chaos.run(seconds)` strikes, `settle` lets the bus heal and ends it, `report` counts. What is random is who is struck,
how and when; the order in which real processes meet is the machine's, so a seed repeats the blows and not the run.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.load import Account, Load, Receiver, account
from tests.faults.victims import HANDS, Victims
from tests.support.daemon import RealDaemon
from tests.support.invariants import data_folder_violations
from tests.support.private_dockerd import PrivateDockerd

# Short times: what takes minutes in service happens here between two blows.
CONFIG: Final = """
[runtime]
kind = "{kind}"
max_containers = 64
stop_grace_s = 2.0
kill_confirm_s = 20.0
idle_stop_s = 3.0
spawn_backoff_s = 0.05
spawn_backoff_max_s = 0.5

[docker]
image = "{image}"

[sweep]
interval_s = 0.5
backoff_base_s = 0.02
max_tries = 8
ceiling_s = 5.0
claim_stuck_s = 2.0

[delivery]
retry_base_s = 0.05
retry_max_s = 0.5

[logs]
level = "info"

[channels.webhook]
listen = "127.0.0.1:{port}"

[channels.webhook.hooks.work]
agent = "echo"
session = "*"
secret = "inbound-secret"
reply_url = "{url}"
reply_secret = "outbound-secret"

[agents.echo]
provider = "echo"

[agents.shell]
provider = "command"
command = ["/bin/sh", "-c", "read -r turn; sleep 0.2; echo done"]
timeout_s = 2.0
"""
# What a soak adds: a daemon without descriptors, somebody who looks; with Docker, other hands.
SOAK_BLOWS: Final = (("descriptors", 3), ("lookers", 2))
SOAK_DOCKER_BLOWS: Final = (("hands", 12), *SOAK_BLOWS)
_LOOKS: Final = (("doctor",), ("status",), ("session", "list"), ("run", "list"), ("dead", "list"))
_PATIENCE_S: Final = 300.0  # how much longer a slow machine may take to meet a goal
# How long it may take to come to rest. A runner that was frozen before it claimed anything is ended a minute after the
# message that it leaves untouched (UNCLAIMED); then comes the next container, on a machine that may be slow.
_REST_S: Final = 180.0
# What is struck, and how often in relation to the others.
BLOWS: Final = (("runners", 36), ("containers", 20), ("programs", 24), ("daemon", 8), ("everything", 5), ("freeze", 4), ("daemon_freeze", 3))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Goal:
    """What a run must have seen before it counts: messages accepted, signals that struck, and whom."""

    accepted: int = 0
    killed: int = 0
    victims: frozenset[str] = frozenset()


ANY: Final = Goal()


@dataclass(slots=True)
class Report:
    """Signals that reached a living process, by what it was; and the account of the messages."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter[str])
    freezes: Counter[str] = field(default_factory=Counter[str])
    account: Account = field(default_factory=Account)
    problems: list[str] = field(default_factory=list[str])
    dockerd_restarts: int = 0
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        return sum(self.kills.values())

    def failures(self) -> list[str]:
        """Everything that must not be."""
        return [
            *(f"lost: {one}" for one in self.account.lost),
            *(f"doubled: {one}" for one in self.account.doubled),
            *self.problems,
        ]


class Chaos:
    """One bus under blows. `victims` are its agents."""

    def __init__(
        self,
        daemon: RealDaemon,
        victims: Victims,
        load: Load,
        posted: Receiver,
        seed: int,
        *,
        pause_s: float = 0.2,
        dockerd: PrivateDockerd | None = None,
        more_blows: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.report = Report(seed)
        self._daemon = daemon
        self._victims = victims
        self._load = load
        self._posted = posted
        self._rng = random.Random(seed)
        self._pause_s = pause_s
        # A dockerd's return takes its time, and its containers with it: they are struck more often meanwhile.
        more = {"containers": 44, "dockerd": 12, "dockerd_stop": 6}
        self._blows = {**dict(BLOWS), **({} if dockerd is None else more), **dict(more_blows)}
        self._dockerd = dockerd
        self._doubts: list[tuple[float, float]] = []

    def run(self, seconds: float, over: threading.Event | None = None, goal: Goal = ANY) -> None:
        """Strike for `seconds` and until the goal is met, or until `over` says so.

        A slow machine takes longer to reach the goal. A goal that is not met within _PATIENCE_S is a problem.
        """
        over = over or threading.Event()
        began = time.monotonic()
        self.ensure()
        self._load.start()
        try:
            while not over.wait(self._rng.uniform(0.2, 1.8) * self._pause_s):
                elapsed = time.monotonic() - began
                if elapsed >= seconds and self._is_met(goal):
                    break
                if elapsed >= seconds + _PATIENCE_S:
                    self.report.problems.append(f"the goal {goal} is not met after {elapsed:.0f} s")
                    break
                kind = self._rng.choices([*self._blows], [*self._blows.values()])[0]
                getattr(self, f"_strike_{kind}")()
                self.ensure()
        finally:
            self._load.stop()
            self.report.seconds = time.monotonic() - began

    def settle(self, patience_s: float = _REST_S) -> None:
        """Let it heal; whatever is not at rest by then is a problem. Then end it, and count."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            self.ensure()
            if self._is_still() and not data_folder_violations(self._daemon.data, at_rest=True):
                break
            time.sleep(0.2)
        else:
            self.report.problems.append(f"it is not at rest {patience_s:g} s after the last blow:\n{self._explained()}")
        self._load.person.stop()
        self._daemon.end_quietly()
        self._daemon.end_agents()
        self.report.problems += data_folder_violations(self._daemon.data, at_rest=True)
        self.report.problems += self._load.trouble
        self.report.account = account(self._daemon.data, self._load, self._posted, self._doubts)

    def _explained(self) -> str:
        """What the bus itself says of what is stuck: its queues, what `doctor` finds, and the end of each log."""
        parts: list[str] = []
        for ask in (lambda: self._daemon.status()["queues"], lambda: self._daemon.cli("doctor"), self._daemon.log_tail):
            try:
                parts.append(str(ask()))
            except Exception as error:
                parts.append(f"no answer: {error!r}")
        return "\n".join(parts)

    def _is_met(self, goal: Goal) -> bool:
        return (
            len(self._load.accepted) >= goal.accepted
            and self.report.killed >= goal.killed
            and goal.victims <= set(self.report.kills)
        )

    def ensure(self) -> None:
        """A daemon that is ready; one that ended by anything but our SIGKILL is a problem."""
        process = self._daemon.process
        if process is not None and process.poll() is not None and process.returncode != -signal.SIGKILL:
            self.report.problems.append(f"the daemon ended with {process.returncode}:\n{self._daemon.log_tail()}")
        if process is None or process.poll() is not None:
            self._daemon.start()

    def _is_still(self) -> bool:
        with contextlib.suppress(Exception):  # a daemon that is busy healing may be silent for a moment
            queues = self._daemon.status()["queues"]
            return queues["pending"] == 0 and queues["undelivered"] == 0
        return False

    def _some(self) -> list[str]:
        living = self._victims.agents()
        return self._rng.sample(living, self._rng.randint(1, len(living))) if living else []

    def _strike_runners(self) -> None:
        for identity in self._some():
            self.report.kills["runner"] += self._victims.strike(identity, "runner")

    def _strike_containers(self) -> None:
        for identity in self._some():
            self.report.kills["container"] += self._victims.strike(identity, "container")

    def _strike_programs(self) -> None:
        for identity in self._victims.agents():
            self.report.kills["program"] += self._victims.strike(identity, "program")

    def _strike_freeze(self) -> None:
        """For good: the daemon must find out, and kill what does not move."""
        for identity in self._some()[:2]:
            self.report.freezes["runner"] += self._victims.strike(identity, "freeze")

    def _strike_hands(self) -> None:
        """One container of ours meets somebody else's `docker` command."""
        for identity in self._some()[:1]:
            how = self._rng.choice([*HANDS])
            self.report.kills[how] += self._victims.strike(identity, how)

    def _strike_descriptors(self) -> None:
        """Let the daemon open no file and no connection for a moment. That is nobody's fault but the host's."""
        assert self._daemon.process is not None
        pid = self._daemon.process.pid
        held = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        begun = time.monotonic()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (held, hard))
        time.sleep(self._rng.uniform(0.2, 2.0))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        self.report.freezes["descriptors"] += 1
        # What it had sent when it could not record the outcome is in doubt, and sent again.
        self._doubts.append((begun, time.monotonic()))

    def _strike_lookers(self) -> None:
        """Read everything that an operator reads. Looking must not harm."""
        self._daemon.cli(*self._rng.choice(_LOOKS))

    def _strike_daemon(self) -> None:
        begun = time.monotonic()
        self._daemon.kill()
        self.report.kills["daemon"] += 1
        self._doubts.append((begun, time.monotonic()))

    def _strike_everything(self) -> None:
        self._strike_daemon()
        for identity in self._victims.agents():
            self.report.kills["container"] += self._victims.strike(identity, "container")

    def _strike_dockerd(self) -> None:
        """SIGKILL, away for a while, and back: without live-restore its containers end with its return."""
        assert self._dockerd is not None
        self._dockerd.kill()
        self.report.kills["dockerd"] += 1
        self._bring_back()

    def _strike_dockerd_stop(self) -> None:
        assert self._dockerd is not None
        self._dockerd.stop()
        self._bring_back()

    def _bring_back(self) -> None:
        assert self._dockerd is not None
        time.sleep(self._rng.uniform(0.0, 3.0))
        self._dockerd.start()
        self.report.dockerd_restarts += 1

    def _strike_daemon_freeze(self) -> None:
        begun = time.monotonic()
        self._daemon.pause()
        time.sleep(self._rng.uniform(0.3, 2.5))
        self._daemon.resume()
        self.report.freezes["daemon"] += 1
        self._doubts.append((begun, time.monotonic()))
