"""One short life of a daemon, driven through whatever it dies of: two messages in, two answers out, a stop and a kill.

`live(plan)` runs it over real processes with crash points armed and tells what came of it. It only ever retries what a
client would retry: the same call, with the same message id, once a daemon answers again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeVar

import httpx

from daemon.core.errors import DaemonDownError, DaemonSilentError
from daemon.core.session_verbs import KillSession, StopSession
from schema.connect import open_owner, open_reader
from schema.errors import ClawbusError
from schema.layout import INBOUND_DB
from schema.migrate import Role
from tests.support.agents import ECHO
from tests.support.daemon import RealDaemon
from tests.support.invariants import data_folder_violations
from tests.support.webhooks import free_port, post, receiving

T = TypeVar("T")

SITE: Final = Path(__file__).parents[1] / "support" / "crash_points"
HOOK: Final = """
[channels.webhook]
listen = "127.0.0.1:{port}"

[channels.webhook.hooks.work]
agent = "echo"
session = "*"
secret = "{secret}"
reply_url = "{url}"
reply_secret = "outbound-secret"
"""
SECRET: Final = "inbound-secret"
_PATIENCE_S: Final = 40.0
# A daemon that died between two durable steps says so to its client in one of these ways; all mean "ask again".
_DIED: Final = (DaemonDownError, DaemonSilentError, httpx.TransportError, ConnectionError)


@dataclass(frozen=True, slots=True)
class Crash:
    """Who dies where, and whether the other side dies with it."""

    party: str
    point: str
    both: bool = False

    def __str__(self) -> str:
        return f"{self.party}{'+other' if self.both else ''} {self.point}"


@dataclass(slots=True)
class Life:
    """What came of one run. `points` are the points passed, by party; `posts` the effective posts by idempotency key."""

    crash: Crash | None
    fired: bool = False
    points: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    posts: Counter[str] = field(default_factory=Counter[str])
    replies: int = 0
    tries: dict[str, int] = field(default_factory=dict[str, int])
    statuses: dict[str, str] = field(default_factory=dict[str, str])
    problems: list[str] = field(default_factory=list[str])
    in_doubt: bool = False  # an intent without a receipt was found after a death of the daemon

    def check(self) -> list[str]:
        """What is wrong with it, given where it crashed."""
        found = list(self.problems)
        if set(self.statuses.values()) != {"completed"} or len(self.statuses) != 2:
            found.append(f"not completed: {self.statuses}")
        if self.replies != 1:
            found.append(f"the mailbox has {self.replies} answers")
        if len(self.posts) != 1:
            found.append(f"the receiver has {len(self.posts)} answers")
        if max(self.posts.values(), default=0) > (2 if self.in_doubt else 1):
            found.append(f"a post was repeated that was not in doubt: {dict(self.posts)}")
        if any(tries > (1 if self.crash else 0) for tries in self.tries.values()):
            found.append(f"one crash cost {self.tries} tries")
        return [f"{self.crash or 'no crash'}: {problem}" for problem in found]


def _intended(data: Path) -> bool:
    """Whether the files declare a send in doubt: an intent whose receipt is missing. Looks at a copy, as a death left it."""
    for folder in data.glob("sessions/*/*/in"):
        with tempfile.TemporaryDirectory() as place:
            copy = Path(shutil.copytree(folder, Path(place) / "in"))
            if not (copy / INBOUND_DB).exists():
                continue
            with open_owner(copy / INBOUND_DB, Role.INBOUND, create=False) as db:
                if db.one("SELECT 1 FROM delivery_attempts WHERE state = 'intended'") is not None:
                    return True
    return False


class Driver:
    """A client that does not give up."""

    def __init__(self, daemon: RealDaemon, plan: Path) -> None:
        self.daemon = daemon
        self._plan = plan
        self._until = time.monotonic() + _PATIENCE_S
        self.in_doubt = False
        self._armed = {"CRASH_PLAN": str(plan), "PYTHONPATH": str(SITE)}

    def insist(self, what: str, ask: Callable[[], T]) -> T:
        """Ask until something true comes back; start the daemon again when it has died, and only when by SIGKILL."""
        while True:
            self.ensure()
            with contextlib.suppress(*_DIED):
                found = ask()
                if found:
                    return found
            if time.monotonic() > self._until:
                raise TimeoutError(f"{what}: not within {_PATIENCE_S:g} s\n{self.daemon.log_tail()}")
            time.sleep(0.02)

    def ensure(self) -> None:
        """A daemon that is ready, the next one if this one was killed."""
        while True:
            process = self.daemon.process
            if process is not None:
                if process.poll() is None:
                    return
                if process.returncode != -signal.SIGKILL:
                    raise RuntimeError(f"the daemon ended with {process.returncode}\n{self.daemon.log_tail()}")
                self.in_doubt = self.in_doubt or _intended(self.daemon.data)
            try:
                self.daemon.start(environment=self._armed)
            except AssertionError:
                # It may be killed while it starts; anything else is a failure.
                if self.daemon.process is None or self.daemon.process.poll() != -signal.SIGKILL:
                    raise

    def stop(self) -> None:
        """SIGTERM until one of them ends as it should."""
        while True:
            self.ensure()
            if self.daemon.stop() == 0:
                return


class Trial:
    """One run over a fresh data folder; as a context manager it ends everything it started."""

    def __init__(self, crash: Crash | None) -> None:
        self.life = Life(crash)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.receiver = stack.enter_context(receiving())
            port = free_port()
            self._url = f"http://127.0.0.1:{port}/hooks/work/w"
            self.daemon = RealDaemon(ECHO + HOOK.format(port=port, secret=SECRET, url=self.receiver.url))
            stack.callback(self.daemon.close)
            self._plan = self.daemon.root / "plan"
            self._plan.mkdir()
            self._write_plan()
            self.driver = Driver(self.daemon, self._plan)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _write_plan(self) -> None:
        crash = self.life.crash
        if crash is not None:
            told = {"party": crash.party, "point": crash.point, "both": crash.both, "data": str(self.daemon.data)}
            (self._plan / "plan.json").write_text(json.dumps(told))

    def accept_until_death(self) -> None:
        """The first message, to a daemon that is to die of it."""
        with contextlib.suppress(*_DIED):
            self._accept()
        assert self.daemon.process is not None
        assert self.daemon.process.wait(timeout=60) == -signal.SIGKILL

    def _accept(self) -> str:
        return self.daemon.post("hello", agent="echo", session="s", id="m1")

    def run(self) -> None:
        """The whole scenario."""
        daemon, insist = self.daemon, self.driver.insist
        self.driver.ensure()
        insist("accepted", self._accept)
        insist("accepted", lambda: post(self._url, SECRET, "hello", message_id="order-1").status_code == 202)
        insist("answered", lambda: _is_answered(daemon))
        insist("settled", lambda: not data_folder_violations(daemon.data, at_rest=True))
        insist("stopped", lambda: _ended(daemon, "s", "stop"))
        insist("killed", lambda: _ended(daemon, "w", "kill"))
        self.driver.stop()

    def look(self) -> None:
        """With everything ended, from the files; and whether anything runs that nobody has listed."""
        life, daemon = self.life, self.daemon
        life.problems += _strays(daemon)
        daemon.end_agents()
        life.in_doubt = self.driver.in_doubt
        life.posts = Counter(one.headers["idempotency-key"] for one in self.receiver.posts if one.taken)
        for session in ("s", "w"):
            for row in daemon.rows("echo", session, "SELECT id, status, tries FROM messages_in"):
                life.statuses[row["id"]] = row["status"]
                life.tries[row["id"]] = row["tries"]
        with open_reader(daemon.data / "mailbox.db") as db:
            life.replies = len(db.all("SELECT * FROM mailbox"))
        life.problems += data_folder_violations(daemon.data, at_rest=True)
        life.fired = (self._plan / "fired.json").exists()
        for party in ("daemon", "runner"):
            path = self._plan / f"{party}.points"
            life.points[party] = path.read_text().splitlines() if path.exists() else []


def live(crash: Crash | None) -> Life:
    """The whole scenario over a fresh data folder; what went wrong is among its problems."""
    with Trial(crash) as trial:
        try:
            trial.run()
            trial.look()
        except (AssertionError, TimeoutError, RuntimeError, ClawbusError) as error:
            trial.life.problems.append(f"{type(error).__name__}: {error}")
        return trial.life


def _is_answered(daemon: RealDaemon) -> bool:
    with daemon.client() as client:
        if client.wait_reply("echo", "s", "m1", 1.0) is None:
            return False
    return all(
        [one["status"] for one in daemon.show("echo", session)["messages"]] == ["completed"] for session in ("s", "w")
    )


def _ended(daemon: RealDaemon, session: str, how: str) -> bool:
    with daemon.client() as client:
        client.execute({"stop": StopSession, "kill": KillSession}[how]("echo", session))
    return daemon.running("echo", session) is None


def _strays(daemon: RealDaemon) -> list[str]:
    """Processes of the data folder that live although both sessions were ended: no record named them. They are killed."""
    mark, found = str(daemon.data).encode(), list[str]()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes():
                found.append(f"process {entry.name} lives, and is no container that the daemon knows")
                os.kill(int(entry.name), signal.SIGKILL)
    return found
