"""The callback probe: sends messages through a daemon and agents of this release, in a data folder of its own.

It uses two ways, the local channel and a signed webhook. The first round is undisturbed. In the last one the probe kills
the daemon once the messages are stored, and the agents once their answers are written; then it starts the daemon again.
Each answer must be delivered exactly once. In between, the probe times round trips to an agent that already runs. It
touches no file of the real data folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from daemon.config.models import Config
from daemon.deploy.probe_ways import AGENT, Caller, Local, Way, Webhook
from schema.connect import open_reader
from schema.errors import ClawbusError

_TIMED: Final = 3  # round trips to a running agent
_POLL_S: Final = 0.05
_LOST_S: Final = 8.0  # an answer that has not arrived this long after its message's completion is lost
_END_S: Final = 15.0
_MODULE: Final = ("-I", "-B", "-m", "daemon.cli")


class ProbeFailedError(Exception):
    """The probe failed; the message says at which step."""


def configuration(config: Config, folder: Path, extra: Sequence[str] = ()) -> str:
    """Return the text of the probe's clawbus.toml: this host's runtime and image, and one `echo` agent.

    `extra` has more lines for its end.
    """
    docker = config.docker
    lines = [
        f"data_dir = {json.dumps(str(folder / 'data'))}",
        "[runtime]", f'kind = "{config.runtime.kind}"', "max_containers = 2", "stop_grace_s = 2.0",
        "[docker]", f"host = {json.dumps(docker.host)}", f"image = {json.dumps(docker.image)}", 'network = "none"',
        "[podman]", f"host = {json.dumps(config.podman.host)}",
        "[sweep]", "interval_s = 1.0", "backoff_base_s = 0.2",
        "[deploy]", f"root = {json.dumps(config.deploy.root)}",
        f"[agents.{AGENT}]", 'provider = "echo"', *extra, "",
    ]  # fmt: skip
    return "\n".join(lines)


@dataclass(slots=True)
class Probe:
    """One probe. `command` starts the release's clawbus, `connect` returns a client for a control socket."""

    config: Config
    folder: Path
    command: list[str]
    connect: Callable[[Path], Caller]
    limit_s: float
    process: subprocess.Popen[bytes] | None = None
    deadline: float = 0.0
    ways: tuple[Way, ...] = ()
    stopped: bool = False

    def stop(self) -> None:
        """Have `run` end soon: nobody waits for its result any more. May be called in another thread, also before `run`."""
        self.stopped = True

    def run(self) -> dict[str, Any]:
        """Run the probe, and return {ok, reason, plain, warm, interrupted}. Blocks. Ends every process that it started."""
        self.deadline = time.monotonic() + self.limit_s
        result: dict[str, Any] = {"ok": False, "reason": "", "plain": None, "warm": None, "interrupted": None}
        hook = Webhook()
        self.ways = (Local(self._client), hook)
        try:
            self._clear()
            self.folder.mkdir(mode=0o700, parents=True)
            text = configuration(self.config, self.folder, hook.configuration())
            (self.folder / "clawbus.toml").write_text(text, encoding="utf-8")
            self._start()
            result["plain"] = self._plain()
            result["warm"] = self._warm()
            result["interrupted"] = self._interrupted()
            _refuse_forged(hook)
            result["ok"] = True
        except ProbeFailedError as error:
            result["reason"] = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a release does wrong is the probe's finding
            result["reason"] = f"{type(error).__name__}: {error}"
        finally:
            self._end()
            hook.close()
        return result

    def _plain(self) -> dict[str, Any]:
        """Send by each way and wait for the answers."""
        return {way.name: self._round_trip(way) for way in self.ways}

    def _warm(self) -> dict[str, Any]:
        """Time round trips to the agents, which run by now. Return {way: median in milliseconds}."""
        return {way.name: int(median(self._round_trip(way)["took_ms"] for _ in range(_TIMED))) for way in self.ways}

    def _round_trip(self, way: Way) -> dict[str, Any]:
        began = time.monotonic()
        message, nonce = self._send(way)
        self._delivered_once(way, message, nonce)
        return {"message": message, "took_ms": int((time.monotonic() - began) * 1000)}

    def _interrupted(self) -> dict[str, Any]:
        """Kill the daemon once the messages are durable, and the agents once their answers are. Then start the daemon again."""
        began = time.monotonic()
        sent = self._send_and_kill()
        for way, message, _ in sent:
            self._wait(f"the agent's answer ({way.name})", partial(self._answered, way, message))
        done = self._clawbus("session", "kill", "--all")
        if done.returncode != 0:
            raise ProbeFailedError(f"the agents could not be ended: {done.stderr.decode(errors='replace')[-300:]}")
        self._start()
        for way, message, nonce in sent:
            self._delivered_once(way, message, nonce)
        return {"messages": [message for _, message, _ in sent], "took_ms": int((time.monotonic() - began) * 1000)}

    def _send_and_kill(self) -> list[tuple[Way, str, str]]:
        """Send by each way, and kill the daemon between two of its transactions. Return (way, message, nonce) of each.

        A daemon that dies inside a transaction leaves a journal, and its agents wait until the next daemon has rolled it
        back. In that case start the daemon, wait for the answers, and try again.
        """
        while True:
            sent = [(way, *self._send(way)) for way in self.ways]
            self._kill_daemon()
            if not any(self._journal(way).exists() for way in self.ways):
                return sent
            self._start()
            for way, message, nonce in sent:
                self._delivered_once(way, message, nonce)

    def _send(self, way: Way) -> tuple[str, str]:
        nonce = secrets.token_hex(8)
        found: list[str] = []

        def taken() -> bool:
            message = way.send(nonce)
            found.extend([message] if message is not None else [])
            return bool(found)

        self._wait(f"the acceptance of a message ({way.name})", taken)
        return found[0], nonce

    def _delivered_once(self, way: Way, message: str, nonce: str) -> None:
        """Wait for the answer at its receiver and for the message's completion. Raise ProbeFailedError unless there is one answer."""
        completed: list[float] = []

        def arrived() -> bool:
            status = self._status(way, message)
            if status == "failed":
                raise ProbeFailedError(f"the agent did not answer, and the message was given up ({way.name})")
            if status == "completed" and not completed:
                completed.append(time.monotonic())
            if way.answers(message):
                return True
            if completed and time.monotonic() - completed[0] > _LOST_S:
                raise ProbeFailedError(f"the message is completed and its answer did not arrive ({way.name})")
            return False

        self._wait(f"the delivery of the answer ({way.name})", arrived)
        self._wait(f"the message's completion ({way.name})", lambda: self._status(way, message) == "completed")
        found = way.answers(message)
        if len(found) != 1 or nonce not in found[0]:
            raise ProbeFailedError(f"{len(found)} answers were delivered instead of one ({way.name})")

    def _journal(self, way: Way) -> Path:
        return self.folder / "data" / "sessions" / AGENT / way.session / "in" / "inbound.db-journal"

    def _answered(self, way: Way, message: str) -> bool:
        sql = "SELECT count(*) FROM messages_out WHERE in_reply_to = ?"
        return self._read(way, "out/outbound.db", sql, message) not in (None, 0)

    def _status(self, way: Way, message: str) -> str | None:
        found = self._read(way, "in/inbound.db", "SELECT status FROM messages_in WHERE id = ?", message)
        return str(found) if found is not None else None

    def _read(self, way: Way, name: str, sql: str, message: str) -> object:
        path = self.folder / "data" / "sessions" / AGENT / way.session / name
        try:
            with open_reader(path) as db:  # trusted: only the probe's `echo` agent writes here
                row = db.one(sql, (message,))
        except ClawbusError:
            return None
        return row[0] if row is not None else None

    # --- the probe's daemon

    def _client(self) -> Caller:
        return self.connect(self.folder / "data" / "control.sock")

    def _arguments(self, *words: str) -> list[str]:
        return [*self.command, "--config", str(self.folder / "clawbus.toml"), *words]

    def _start(self) -> None:
        with (self.folder / "probe.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._arguments("serve"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment()
            )
        self._wait("the probe's daemon", self._is_ready)

    def _is_ready(self) -> bool:
        client = self._client()
        try:
            client.read_mailbox(AGENT, 0, 1)
        except Exception:  # noqa: BLE001 - not yet
            return False
        finally:
            client.close()
        return True

    def _refuse_ended(self) -> None:
        """Raise ProbeFailedError if the probe's daemon has ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            text = (self.folder / "probe.log").read_text(encoding="utf-8", errors="replace")
            raise ProbeFailedError(f"the probe's daemon ended with {self.process.returncode}: {text[-300:].strip()}")

    def _clawbus(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        left = max(1.0, self.deadline - time.monotonic()) if self.deadline else _END_S
        return subprocess.run(
            self._arguments(*words), stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), timeout=left,
            check=False,
        )  # fmt: skip

    def _kill_daemon(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=_END_S)
            self.process = None

    def _wait(self, what: str, holds: Callable[[], object]) -> None:
        while not holds():
            if self.stopped:
                raise ProbeFailedError("it was stopped")
            self._refuse_ended()
            if time.monotonic() > self.deadline:
                raise ProbeFailedError(f"{what} did not come within {self.limit_s:g} s")
            time.sleep(_POLL_S)

    def _end(self) -> None:
        self._kill_daemon()
        self.deadline = time.monotonic() + _END_S
        self._clear()

    def _clear(self) -> None:
        """End the daemon and agents of the folder, and remove it. A standby that is killed during a probe leaves them."""
        end_daemons(self.folder / "clawbus.toml")
        if (self.folder / "data" / "clawbus.version").exists():
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                self._clawbus("session", "kill", "--all")
        shutil.rmtree(self.folder, ignore_errors=True)


def end_daemons(config: Path) -> None:
    """Kill every daemon that runs with this configuration file, and wait for its end. Only a probe uses a probe's file."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not _serves(entry, config):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(int(entry.name))  # check again below: the pid may have a new process by now
            try:
                if _serves(entry, config):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    select.select([descriptor], [], [], _END_S)
            finally:
                os.close(descriptor)


def _serves(process: Path, config: Path) -> bool:
    """Return whether a process of /proc is a daemon that runs with this configuration file."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"serve" in words and os.fsencode(config) in words


def _refuse_forged(hook: Webhook) -> None:
    if hook.forged:
        raise ProbeFailedError(f"{hook.forged} answers to the webhook had a wrong signature")


def own_command() -> list[str]:
    """Return the command that starts the clawbus that this process runs."""
    return [sys.executable, *_MODULE]


def command_of(prefix: Path) -> list[str]:
    """Return the command that starts the clawbus installed at `prefix`."""
    return [str(prefix / "bin" / "python"), *_MODULE]


def slow_round_trip(found: Mapping[str, Any], slow_s: float) -> str | None:
    """Return the reason to fail if a probe's round trip to a running agent took longer than `slow_s` seconds, else None."""
    warm: Mapping[str, int] = found.get("warm") or {}  # an older release does not time it
    slow = {name: took for name, took in warm.items() if took > slow_s * 1000}
    if not slow:
        return None
    return f"a round trip to a running agent takes {max(slow.values())} ms ({', '.join(slow)})"


def _environment() -> dict[str, str]:
    """Return the environment without the variables of this process's service and configuration."""
    ours = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "INVOCATION_ID")
    return {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("CLAWBUS_")}
