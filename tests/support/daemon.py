"""A real daemon for tests: `clawbus serve` as a subprocess over a temporary folder, and the real command line.

It ends everything that it started, by pid and by install label, whatever the test did. It never waits a fixed time:
`eventually` polls with a deadline, and what waits for the daemon waits through its socket.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from daemon.api.client import ControlClient
from daemon.core.errors import DaemonDownError, DaemonSilentError
from daemon.store.mailbox import MailboxEntry
from schema.ids import session_path

CLAWBUS: Final = str(Path(sys.executable).with_name("clawbus"))
READY_S: Final = 60.0
ANSWER_S: Final = 60.0
_LOG_TAIL: Final = 60

# Short times, so that what takes minutes in service takes a moment here.
QUICK: Final = """
[runtime]
kind = "{runtime}"
stop_grace_s = 3.0
spawn_backoff_s = 0.2
spawn_backoff_max_s = 1.0
{runtime_keys}
[sweep]
interval_s = 1.0
backoff_base_s = 0.2
{sweep_keys}
[delivery]
retry_base_s = 0.1
retry_max_s = 0.5
[logs]
level = "debug"
"""

T = TypeVar("T")


def eventually(what: str, holds: Callable[[], T | None], seconds: float = 60.0) -> T:
    """Poll until it is true of something, and return that; fails after the deadline with the last value."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not so after {seconds:g} s; the last look was {found!r}"
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Said:
    """What a command ended with: its exit code and its envelope."""

    code: int
    envelope: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.envelope["ok"]

    @property
    def result(self) -> dict[str, Any]:
        """Of a command that must have succeeded."""
        assert self.ok, self.envelope
        assert self.code == 0
        return self.envelope["result"]

    @property
    def error(self) -> str:
        """The code of a refusal, which must come with words, a fix and an exit code."""
        assert not self.ok, self.envelope
        assert self.code != 0
        assert self.envelope["error"]["message"]
        assert self.envelope["fix"]
        return self.envelope["error"]["code"]


class RealDaemon:
    """One data folder and the daemon on it. `keys` are lines for the tables of the quick configuration."""

    def __init__(
        self, tables: str = "", *, runtime: str = "process", runtime_keys: str = "", sweep_keys: str = ""
    ) -> None:
        # Short: a unix socket's path has at most 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="cb"))
        self.data = self.root / "d"
        self.config = self.root / "clawbus.toml"
        self.socket = self.data / "control.sock"
        self.environment: dict[str, str] = {}
        self.command = CLAWBUS  # a release's, for a test of releases
        # What the check after the test may ask of the files (tests/support/invariants.py).
        self.was_ready = False
        self.at_rest = False
        self.hostile = False
        self.process: subprocess.Popen[bytes] | None = None
        self._output = self.root / "run.log"
        self._started: list[subprocess.Popen[bytes]] = []
        self.configure(QUICK.format(runtime=runtime, runtime_keys=runtime_keys, sweep_keys=sweep_keys) + "\n" + tables)

    # --- configuration and commands

    def configure(self, text: str) -> None:
        """Write the configuration file: `data_dir`, and this."""
        self.config.write_text(f"data_dir = {json.dumps(str(self.data))}\n{text}", encoding="utf-8")

    def _environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("CLAWBUS_") and name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM")
        }
        return {**kept, **self.environment, **(extra or {})}

    def cli(self, *arguments: str, timeout_s: float = 120.0, text: str | None = None) -> Said:
        """Run one command with --json; its exit code and envelope. Nothing else may be on its standard output."""
        done = subprocess.run(
            [self.command, "--config", str(self.config), *arguments, "--json"],
            capture_output=True, text=True, input=text, timeout=timeout_s, env=self._environ(), check=False,
        )  # fmt: skip
        lines = done.stdout.splitlines()
        assert len(lines) == 1, f"one envelope is wanted, there is: {done.stdout!r} {done.stderr[-2000:]!r}"
        assert "Traceback" not in done.stderr, done.stderr
        envelope = json.loads(lines[0])
        assert envelope["ok"] == (done.returncode == 0), (done.returncode, envelope)
        return Said(done.returncode, envelope)

    def people(self, *arguments: str) -> str:
        """What a command prints for people."""
        done = subprocess.run(
            [self.command, "--config", str(self.config), *arguments, "--pretty"],
            capture_output=True, text=True, timeout=120, env={**self._environ(), "COLUMNS": "200"}, check=True,
        )  # fmt: skip
        return done.stdout

    def begin_cli(self, *arguments: str) -> subprocess.Popen[str]:
        """The same, in the background; `end_cli` waits for it."""
        return subprocess.Popen(
            [self.command, "--config", str(self.config), *arguments, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environ(),
        )  # fmt: skip

    def begin_stream(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command that goes on, in the background; its lines are the caller's to read, and its end to bring about."""
        return subprocess.Popen(
            [self.command, "--config", str(self.config), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environ(),
        )  # fmt: skip

    @staticmethod
    def end_cli(process: "subprocess.Popen[str]", timeout_s: float = 120.0) -> Said:
        out, _ = process.communicate(timeout=timeout_s)
        return Said(process.returncode, json.loads(out))

    # --- the process

    def start(self, *, environment: Mapping[str, str] | None = None) -> None:
        """Start it and return once it says that it is ready."""
        assert self.process is None or self.process.poll() is not None, "one at a time"
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                [self.command, "--config", str(self.config), "serve"],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=self._environ(environment),
                start_new_session=True,
            )  # fmt: skip
        self._started.append(self.process)
        self.wait_ready()
        self.was_ready = True

    def wait_ready(self) -> None:
        process = self.process
        assert process is not None

        def ready() -> bool:
            assert process.poll() is None, f"the daemon ended with {process.returncode}:\n{self.log_tail()}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                # Started, not ready: a daemon without Docker is that, too.
                return self._get("/readyz")["result"]["started"]
            return False

        eventually("ready", ready, READY_S)

    def refused(self, *, environment: Mapping[str, str] | None = None) -> Said:
        """Start a daemon that must refuse to: what it answered."""
        done = subprocess.run(
            [self.command, "--config", str(self.config), "serve", "--json"],
            capture_output=True, text=True, timeout=READY_S, env=self._environ(environment), check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Said(done.returncode, json.loads(done.stdout.splitlines()[-1]))

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)

    def kill(self) -> None:
        """SIGKILL, and nothing else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=60)

    def reload(self) -> None:
        """SIGHUP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    # --- the socket

    def listens(self) -> bool:
        """Whether somebody answers on the socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _get(self, path: str) -> Any:
        """What the daemon answers, as JSON. Not with httpx, which leaks its socket when the daemon dies meanwhile."""
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(5.0)
            plain.connect(str(self.socket))
            connection = http.client.HTTPConnection("clawbus")
            connection.sock = plain
            connection.request("GET", path)
            with connection.getresponse() as response:
                return json.loads(response.read())

    def metrics(self) -> str:
        """What a scrape of the daemon gets."""
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(10.0)
            plain.connect(str(self.socket))
            connection = http.client.HTTPConnection("clawbus")
            connection.sock = plain
            connection.request("GET", "/metrics")
            with connection.getresponse() as response:
                return response.read().decode()

    def client(self) -> ControlClient:
        return ControlClient(self.socket)

    def post(self, text: str, *, agent: str, session: str, mailbox: str = "cli", **fields: Any) -> str:
        """Send one message over the socket; its id. It is durable when this returns."""
        with self.client() as client:
            accepted = client.accept(
                {
                    "agent": agent,
                    "session": session,
                    "content": {"text": text},
                    "address": {"channel_type": "local", "platform_id": mailbox},
                    **fields,
                }
            )
        return accepted["message_id"]

    def answer(self, message_id: str, *, agent: str, session: str, wait_s: float = ANSWER_S) -> dict[str, Any]:
        """The content of the answer to a message; fails when none comes."""
        entry: MailboxEntry | None = None
        deadline = time.monotonic() + wait_s
        while entry is None and time.monotonic() < deadline:
            eventually("listening", self.listens, wait_s)
            with contextlib.suppress(DaemonDownError, DaemonSilentError), self.client() as client:
                entry = client.wait_reply(agent, session, message_id, min(5.0, wait_s))
        assert entry is not None, f"no answer to {message_id} of {agent}/{session} within {wait_s:g} s"
        return json.loads(entry.content)

    def ask(self, text: str, *, agent: str, session: str, wait_s: float = ANSWER_S, **fields: Any) -> dict[str, Any]:
        """`post` and `answer`."""
        message_id = self.post(text, agent=agent, session=session, **fields)
        return self.answer(message_id, agent=agent, session=session, wait_s=wait_s)

    def entries(self, mailbox: str = "cli", after: int = 0) -> list[dict[str, Any]]:
        """The mailbox: content, in_reply_to and cursor of each entry."""
        found: list[MailboxEntry] = []
        with self.client() as client:
            while page := client.read_mailbox(mailbox, found[-1].cursor if found else after, 1000):
                found += page
        return [
            {"content": json.loads(one.content), "in_reply_to": one.in_reply_to, "cursor": one.cursor} for one in found
        ]

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            return client.status()

    def show(self, agent: str, session: str) -> dict[str, Any]:
        with self.client() as client:
            return client.session(agent, session)

    def message(self, agent: str, session: str, message_id: str) -> dict[str, Any]:
        """The row as `session show` has it."""
        return next(one for one in self.show(agent, session)["messages"] if one["id"] == message_id)

    def running(self, agent: str, session: str) -> dict[str, Any] | None:
        """The session's container as `status` lists it, once it runs."""
        return next(
            (
                one
                for one in self.status()["live"]["running"]
                if (one["agent"], one["session"]) == (agent, session) and one["container_id"] is not None
            ),
            None,
        )

    def container(self, agent: str, session: str) -> dict[str, Any]:
        """`running`, waited for."""
        return eventually(f"a container of {agent}/{session}", lambda: self.running(agent, session))

    def life(self, agent: str, session: str, message_id: str) -> list[str]:
        """The names of a message's events in time order, as the command line has them."""
        found = self.cli("session", "show", agent, session, "--message", message_id).result
        assert found["errors"] == []
        return [event["event"] for event in found["life"]]

    # --- files and processes

    def folder(self, agent: str, session: str) -> Path:
        return session_path(self.data / "sessions", agent, session)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The daemon's log events of one name, from its log file."""
        path = self.data / "logs" / "clawbus.log"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [event for line in lines if (event := json.loads(line)).get("event") == name]

    def rows(self, agent: str, session: str, sql: str) -> list[dict[str, Any]]:
        """Rows of the session's inbound.db, read-only. Only while no daemon of this process has it open."""
        return _read(self.folder(agent, session) / "in" / "inbound.db", sql)

    def records(self) -> list[dict[str, Any]]:
        """What the process runtime has on disk about its containers."""
        found = sorted((self.data / "run" / "process").glob("*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    def leader(self, agent: str, session: str) -> int:
        """The pid that leads the session's process group."""
        return next(one["pid"] for one in self.records() if (one["agent"], one["session"]) == (agent, session))

    def install_id(self) -> str | None:
        path = self.data / "central.db"
        if not path.exists():
            return None
        rows = _read(path, "SELECT install_id FROM install")
        return rows[0]["install_id"] if rows else None

    def log_tail(self) -> str:
        """The last lines of what the daemon wrote, and of what its agents wrote."""
        parts: list[str] = []
        for path in (self._output, *sorted(self.data.glob("sessions/*/*/logs/container.log"))):
            if path.exists():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:]
                parts.append(f"--- {path}\n" + "\n".join(lines))
        return "\n".join(parts)

    # --- the end

    def end_quietly(self) -> None:
        """SIGTERM, so that nothing is in mid-commit afterwards; agents go on."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.stop()

    def end_daemons(self) -> None:
        """SIGKILL to every daemon of this harness that still runs, a stopped one too."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=60)

    def end_agents(self) -> None:
        """Every process group and every container that the folder's install has left."""
        for record in self.records():
            if _started_at(record["pid"]) == record["start_ticks"]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(record["pid"], signal.SIGKILL)
        install = self.install_id()
        if install is not None and shutil.which("docker"):
            remove_containers(f"clawbus.install={install}")

    def close(self) -> None:
        """End all of it and remove the folder. Safe to call twice."""
        self.end_daemons()
        self.end_agents()
        shutil.rmtree(self.root, ignore_errors=True)


def remove_containers(label: str) -> None:
    """Remove the containers with this label, running or not."""
    listed = subprocess.run(
        ["docker", "ps", "-aq", "--no-trunc", "--filter", f"label={label}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    for container in listed.stdout.split():
        subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=False, timeout=120)


def _read(path: Path, sql: str) -> list[dict[str, Any]]:
    # Not mode=ro: a daemon that was killed in a commit leaves a journal, which the next reader must roll back.
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=5)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql)]
    finally:
        connection.close()


def _started_at(pid: int) -> int | None:
    """When the process of this number started, in clock ticks since boot (proc(5)); a number alone could be another's."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
