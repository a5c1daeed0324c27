"""Every file operation of a real daemon and a real runner, failed with every errno that says "this host cannot now".

The calls are recorded over a short life (a message to a warm session, to a new one, to a program, a look, the end of a
container); then each kind of call is made to fail, once and for a while, beneath Python and SQLite. Whatever it is:
nobody is quarantined, no try is charged, no message fails, nothing says INTERNAL, and everything heals by itself.

    .venv/bin/python -m tests.faults.errnos                 the whole walk
    .venv/bin/python -m tests.faults.errnos --only 'daemon open outbound.db' --errno EMFILE
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError
from daemon.core.message_verbs import AnswerQuestion
from daemon.core.schedule_verbs import PutSchedule, RunSchedule
from daemon.core.session_verbs import KillSession, StopSession
from tests.support import egress_story
from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon
from tests.support.errnos.control import DAEMON, ERRNOS, RUNNER, Control, Site, compiled

PATIENCE_S: Final = 30.0
SPELL_S: Final = 0.4
SPELL: Final = 10**9
# What a client may be told meanwhile. Everything else is a finding.
REFUSALS: Final = frozenset(
    {"STORAGE", "HOST_TROUBLE", "FILE_BUSY", "READ_RACE", "READ_DEADLINE", "RUNTIME_UNAVAILABLE", "REGISTRY_GONE"}
)
# What no trouble of the host's own may ever lead to.
FORBIDDEN: Final = frozenset(
    {
        "egress_connection_raised", "telemetry_raised", "session_quarantined", "message_dead_lettered", "message_retry_scheduled", "message_failed", "container_stuck",
        "collect_raised", "sweep_raised", "send_raised", "later_raised", "control_request_failed", "spawn_raised",
        "exit_raised", "runner_crashed", "provider_crashed", "turn_failed", "runner_refused", "runner_superseded",
        "adoption_raised", "channel_failed", "library_log", "retention_raised", "wait_raised", "listing_raised",
        "end_extra_raised", "registry_raised", "dispatch_raised", "end_raised",
    }
)  # fmt: skip


@dataclass(slots=True)
class Trial:
    """One fault and what came of it."""

    site: Site
    number: str
    piece: str
    spell: bool
    fired: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        how = "for a while" if self.spell else "once"
        return f"{self.site}, {self.number} {how}, during {self.piece!r}"


class Walk:
    """A daemon whose calls, and whose runners' calls, can be made to fail. A context manager."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._numbers = iter(range(1, 10**9))
        self.pieces: dict[str, Callable[[], None]] = {
            "warm": lambda: self._round_trip("echo", "warm"),
            "new": self._new_session,
            "program": lambda: self._round_trip("prog", "warm"),
            "look": self._look,
            "features": self._features,
            "end": self._end,
        }
        self._asked: list[tuple[str, str, str]] = []
        self._read_until: dict[Path, int] = {}
        self._told: set[str] = set()
        self._session = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clawbus-errnos-")))
            self.daemon = RealDaemon(sweep_keys="claim_stuck_s = 60.0", tables="")
            stack.callback(self.daemon.close)
            self.control = Control(self.folder, self.daemon.data)
            stack.callback(self.control.close)
            library = compiled(self.folder)
            agents = ""
            for table in (ECHO, obedient()):
                runner = self.control.environment(library, RUNNER)
                # As its own, because a library in `env` is loaded by the program alone.
                own = json.dumps([sys.executable, "-I", "-X", "utf8", "-m", "container_runner"])
                agents += f"{table.rstrip()}\nrunner = {own}\nenv = {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in runner.items())} }}\n"
            server = stack.enter_context(egress_story.model())
            key = self.folder / "model.key"
            key.write_text("a-key")
            agents += egress_story.tables(server, key, sys.executable)
            egress_story.give_program(self.daemon)
            text = self.daemon.config.read_text().partition("\n")[2]
            self.daemon.configure(text + agents)
            self.daemon.start(environment=self.control.environment(library, DAEMON))
            for piece in self.pieces.values():
                piece()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.control.disarm()
        self._stack.close()

    # --- the pieces of a life

    def _insist(self, ask: Callable[[], Any]) -> Any:
        """What a client does: ask until it is answered."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                found = ask()
            except (DaemonDownError, DaemonSilentError, ConnectionError) as error:
                found, last = None, repr(error)
            except RemoteError as error:
                if error.remote_code not in REFUSALS:
                    self._told.add(f"a client was told {error.remote_code}: {error}")
                found, last = None, f"{error.remote_code}: {error}"
            else:
                last = "nothing"
            if found is not None:
                return found
            if time.monotonic() > until:
                raise TimeoutError(f"not within {PATIENCE_S:g} s; last: {last}")
            time.sleep(0.02)

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        with self.daemon.client() as client:
            return call(client)

    def _round_trip(self, agent: str, session: str, text: str | None = None, **more: object) -> None:
        message_id = self._send(agent, session, text or ("hello" if agent == "echo" else "say done"), **more)
        self._await(agent, session, message_id)

    def _send(self, agent: str, session: str, text: str, **more: object) -> str:
        message_id = f"m{next(self._numbers)}"
        self._asked.append((agent, session, message_id))
        body = {
            "agent": agent, "session": session, "id": message_id, "content": {"text": text},
            "address": {"channel_type": "local", "platform_id": "cli"}, **more,
        }  # fmt: skip
        self._insist(lambda: self._ask(lambda client: client.accept(body)))
        return message_id

    def _await(self, agent: str, session: str, message_id: str) -> None:
        self._insist(lambda: self._ask(lambda client: client.wait_reply(agent, session, message_id, 2.0)))

    def _features(self) -> None:
        """Files both ways, an answer through the gate, an occurrence of a schedule, and a question with its answer."""
        file = {"name": "given.txt", "data": base64.b64encode(b"given").decode()}
        self._round_trip("prog", "files", "file made.txt made", files=[file])
        self._round_trip("asks", "gate", "/one")
        put = PutSchedule("echo", "times", id="hourly", text="now", every_ms=3_600_000)
        self._insist(lambda: self._ask(lambda client: client.execute(put)))
        run = self._insist(lambda: self._ask(lambda client: client.execute(RunSchedule("echo", "times", id="hourly"))))
        self._await("echo", "times", run["message_id"])
        message_id = self._send("prog", "asks", 'ask {"text": "Shall I?", "options": ["yes", "no"]}')
        sql = f"SELECT id FROM questions WHERE message_id = '{message_id}' AND outcome IS NULL"
        question = self._insist(lambda: (self.daemon.rows("prog", "asks", sql) or [None])[0])
        answer = AnswerQuestion("prog", "asks", id=question["id"], answer="1")
        self._insist(lambda: self._answered(answer))
        self._await("prog", "asks", message_id)

    def _answered(self, answer: AnswerQuestion) -> bool:
        try:
            self._ask(lambda client: client.execute(answer))
        except RemoteError as error:
            if error.remote_code != "QUESTION_CLOSED":  # an earlier try, whose response was lost
                raise
        return True

    def _new_session(self) -> None:
        self._session += 1
        self._round_trip("echo", f"n{self._session}")

    def _look(self) -> None:
        self._insist(lambda: self._ask(lambda client: client.status()))
        self._insist(lambda: self._ask(lambda client: client.session("echo", "warm")))

    def _end(self) -> None:
        """The newest session's container is ended, and its exit settled."""
        session = f"n{self._session}"
        self._insist(lambda: self._ask(lambda client: client.execute(StopSession("echo", session))))
        self._insist(lambda: self._ask(lambda client: self._is_gone(client, session)))

    @staticmethod
    def _is_gone(client: Any, session: str) -> bool | None:
        running = client.status()["live"]["running"]
        return True if all(one["session"] != session for one in running) else None

    # --- trials

    def sites(self) -> dict[tuple[Site, str], int]:
        """Every kind of call with a piece of life in which it is seen, and how often it happens there.

        A call on a file is tried in the first such piece; one without a file (a fork, a pipe) in each.
        """
        found: dict[tuple[Site, str], int] = {}
        seen: set[Site] = set()
        self.control.record(True)
        for name, piece in self.pieces.items():
            piece()
            time.sleep(1.2)  # a sweep, too
            for site, count in self.control.recorded().items():
                if not _is_the_interpreters(site) and (site not in seen or site.name == "-"):
                    seen.add(site)
                    found[site, name] = count
        self.control.record(False)
        return found

    def run(self, site: Site, number: str, piece: str, *, spell: bool, skip: int = 0) -> Trial:
        """Fail it, live the piece, and look at what came of it."""
        trial = Trial(site, number, piece, spell)
        began = time.monotonic()
        if piece == "end":
            self._new_session()
        self._told.clear()
        self._new_lines()
        self.control.arm(site, number, skip=skip, count=SPELL if spell else 1)
        timer = threading.Timer(SPELL_S, self.control.disarm) if spell else None
        if timer is not None:
            timer.start()
        try:
            self.pieces[piece]()
        except TimeoutError as error:
            trial.problems.append(f"it did not heal: {error}")
        finally:
            if timer is not None:
                timer.join()
            trial.fired = self.control.disarm()
        if piece == "new":
            self._quiet_end()
        trial.problems += sorted(self._told)
        trial.problems += [f"it was logged: {line}" for line in self._new_lines()]
        trial.seconds = time.monotonic() - began
        return trial

    def until_degraded(self, what: str | None) -> None:
        """Wait until the daemon says that this does not work, or (None) that everything does."""

        def look() -> bool | None:
            found = {one["what"] for one in self._ask(lambda client: client.live())["degraded"]}
            return (what in found if what is not None else not found) or None

        self._insist(look)

    def _quiet_end(self) -> None:
        with contextlib.suppress(RemoteError, DaemonDownError, DaemonSilentError):
            self._ask(lambda client: client.execute(KillSession("echo", f"n{self._session}")))

    def _new_lines(self) -> list[str]:
        """The forbidden events since the last look, of the daemon and of every runner."""
        found: list[str] = []
        paths = [
            self.daemon.data / "logs" / "clawbus.log", *self.daemon.data.glob("sessions/*/*/logs/container.log"),
            self.daemon.root / "run.log",
        ]  # fmt: skip
        for path in paths:
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read_until.get(path, 0))
                data = file.read()
            self._read_until[path] = self._read_until.get(path, 0) + len(data)
            found += _forbidden(data)
        return list(dict.fromkeys(found))

    def verdict(self) -> list[str]:
        """When all is done: nobody held, nothing failed, no try charged, every message answered once, doctor content."""
        problems: list[str] = []
        for agent, session, message_id in self._asked:
            row = next(
                (one for one in self.daemon.rows(agent, session, "SELECT id, status, tries FROM messages_in")
                 if one["id"] == message_id), None,
            )  # fmt: skip
            if row is None or (row["status"], row["tries"]) != ("completed", 0):
                problems.append(f"{agent}/{session} {message_id}: {row}")
        answers: dict[str, int] = {}
        for entry in self.daemon.entries():
            if "question" not in entry["content"]:
                answers[entry["in_reply_to"]] = answers.get(entry["in_reply_to"], 0) + 1
        problems += [
            f"{one[2]} has {answers.get(one[2], 0)} answers" for one in self._asked if answers.get(one[2]) != 1
        ]
        # A failure is over when a whole round of sweeps has passed without another one.
        with contextlib.suppress(TimeoutError):  # doctor says then what did not heal
            self.until_degraded(None)
        said = self.daemon.cli("doctor")
        if not said.ok:
            problems.append(f"doctor: {said.envelope}")
        return problems


def _is_the_interpreters(site: Site) -> bool:
    """A runner's interpreter that cannot load its own modules never was a runner: the host starts another one.

    And only the agent's program, which has the runner's environment, spawns in its way.
    """
    return site.role == RUNNER and (site.name.startswith("/") or site.operation == "spawn")


def _forbidden(data: bytes) -> Iterator[str]:
    ignored = False  # what the interpreter says of an object that was never whole: an event loop without descriptors
    for raw in data.decode("utf-8", "replace").splitlines():
        ignored = raw.startswith("Exception ignored in") or (ignored and not raw.startswith("{"))
        if ignored:
            continue
        try:
            event = json.loads(raw)
        except ValueError:
            if "Traceback" in raw or "Error" in raw:
                yield raw[:300]
            continue
        if isinstance(event, dict) and (event.get("event") in FORBIDDEN or event.get("code") == "INTERNAL"):
            yield " ".join(f"{key}={value}" for key, value in event.items() if key not in ("timestamp", "hint"))[:1500]


def plan(
    sites: dict[tuple[Site, str], int], numbers: Iterable[str], only: str | None = None
) -> list[tuple[Site, str, str, bool, int]]:
    """Each site x each errno x once (its first and its last call) and for a while."""
    found: list[tuple[Site, str, str, bool, int]] = []
    for (site, piece), count in sorted(sites.items()):
        if only is not None and only not in str(site):
            continue
        for number in numbers:
            found += [(site, number, piece, False, 0), (site, number, piece, True, 0)]
            if count > 1:
                found.append((site, number, piece, False, count - 1))
    return found


def main() -> int:
    """The exit code: 0 when nothing was charged to anybody."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.errnos", description=__doc__)
    parser.add_argument("--only", help="part of a site's name: 'runner write', 'outbound.db'")
    parser.add_argument("--errno", action="append", help="one errno (again for more)")
    parser.add_argument("--sample", type=int, help="so many trials, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sites", action="store_true", help="only list them")
    parser.add_argument("--seconds", type=float, default=10**9)
    arguments = parser.parse_args()
    failed, done, fired = 0, 0, 0
    until = time.monotonic() + arguments.seconds
    with Walk() as walk:
        sites = walk.sites()
        trials = plan(sites, arguments.errno or ERRNOS, arguments.only)
        random.Random(arguments.seed).shuffle(trials)
        if arguments.sites:
            print(*(f"{site}  ({piece}, {count})" for (site, piece), count in sorted(sites.items())), sep="\n")
            return 0
        print(f"{len(sites)} sites, {len(trials)} trials", flush=True)
        for site, number, piece, spell, skip in trials[: arguments.sample]:
            if time.monotonic() > until:
                break
            trial = walk.run(site, number, piece, spell=spell, skip=skip)
            done, fired = done + 1, fired + bool(trial.fired)
            if trial.problems:
                failed += 1
                print(
                    f"FAILED ({trial.fired} fired, {trial.seconds:.1f} s) {trial}",
                    *trial.problems,
                    sep="\n    ",
                    flush=True,
                )
        problems = walk.verdict()
    print(*problems, sep="\n")
    print(f"errnos: {done} trials, {fired} fired, {failed} failed, {len(problems)} problems at the end")
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(main())
