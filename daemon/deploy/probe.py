"""The callback probe: a message goes through a whole daemon and agent of this release, in a separate folder, and back.

Twice: once plainly, and once with the daemon and then the agent killed after the agent's answer is written and before
the daemon has read it. Each answer must be delivered exactly once. Nothing of it touches the real data folder's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from daemon.config.models import Config
from schema.connect import open_reader
from schema.errors import ClawbusError

AGENT: Final = "probe"
SESSION: Final = "probe"
_POLL_S: Final = 0.05
_END_S: Final = 15.0


class Caller(Protocol):
    """What is needed of a client of the probe's daemon."""

    def accept(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one message."""
        ...

    def read_mailbox(self, name: str, after: int, limit: int, wait_s: float = 0.0) -> list[Any]:
        """Return the mailbox's entries."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class ProbeFailedError(Exception):
    """The probe did not pass; the message says at which step."""


def configuration(config: Config, folder: Path) -> str:
    """Return the probe's clawbus.toml: this host's runtime and image, one agent that repeats what it is sent."""
    docker = config.docker
    lines = [
        f"data_dir = {json.dumps(str(folder / 'data'))}",
        "[runtime]", f'kind = "{config.runtime.kind}"', "max_containers = 1", "stop_grace_s = 2.0",
        "[docker]", f"host = {json.dumps(docker.host)}", f"image = {json.dumps(docker.image)}", 'network = "none"',
        "[podman]", f"host = {json.dumps(config.podman.host)}",
        "[sweep]", "interval_s = 1.0", "backoff_base_s = 0.2",
        "[deploy]", f"root = {json.dumps(config.deploy.root)}",
        f"[agents.{AGENT}]", 'provider = "echo"', "",
    ]  # fmt: skip
    return "\n".join(lines)


@dataclass(slots=True)
class Probe:
    """One probe. `command` starts this release's clawbus, `connect` makes a client of a daemon on a socket."""

    config: Config
    folder: Path
    command: list[str]
    connect: Callable[[Path], Caller]
    limit_s: float
    process: subprocess.Popen[bytes] | None = None
    deadline: float = 0.0

    def run(self) -> dict[str, Any]:
        """Return {ok, reason, plain, interrupted}. Blocks; ends everything that it started."""
        self.deadline = time.monotonic() + self.limit_s
        result: dict[str, Any] = {"ok": False, "reason": "", "plain": None, "interrupted": None}
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o700, parents=True)
            (self.folder / "clawbus.toml").write_text(configuration(self.config, self.folder), encoding="utf-8")
            result["plain"] = self._plain()
            result["interrupted"] = self._interrupted()
            result["ok"] = True
        except ProbeFailedError as error:
            result["reason"] = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a release does wrong is the probe's finding
            result["reason"] = f"{type(error).__name__}: {error}"
        finally:
            self._end()
        return result

    def _plain(self) -> dict[str, Any]:
        self._start()
        began = time.monotonic()
        message, nonce = self._send()
        self._delivered_once(message, nonce)
        return {"message": message, "took_ms": int((time.monotonic() - began) * 1000)}

    def _interrupted(self) -> dict[str, Any]:
        """Kill the daemon when the message is durable, and the agent when its answer is; then start the daemon again."""
        began = time.monotonic()
        message, nonce = self._send()
        self._kill_daemon()
        self._wait("the agent's answer", lambda: self._answered(message))
        done = self._clawbus("session", "kill", "--all")
        if done.returncode != 0:
            raise ProbeFailedError(f"the agent could not be ended: {done.stderr.decode(errors='replace')[-300:]}")
        self._start()
        self._delivered_once(message, nonce)
        return {"message": message, "took_ms": int((time.monotonic() - began) * 1000)}

    def _send(self) -> tuple[str, str]:
        nonce = secrets.token_hex(8)
        client = self._client()
        try:
            address = {"channel_type": "local", "platform_id": AGENT}
            message = {"agent": AGENT, "session": SESSION, "content": {"text": nonce}, "address": address}
            return str(client.accept(message)["message_id"]), nonce
        finally:
            client.close()

    def _delivered_once(self, message: str, nonce: str) -> None:
        """Wait for the answer in the mailbox, the ack and the receipt; there must be exactly one."""
        self._wait("the answer in the mailbox", lambda: self._entries(message))
        self._wait("the message's completion", lambda: self._status(message) == "completed")
        found = self._entries(message)
        if len(found) != 1 or nonce not in found[0]:
            raise ProbeFailedError(f"{len(found)} answers were delivered instead of one")

    def _entries(self, message: str) -> list[str]:
        client = self._client()
        try:
            return [one.content for one in client.read_mailbox(AGENT, 0, 100) if one.in_reply_to == message]
        except Exception:  # noqa: BLE001 - it is starting, or ended: the deadline tells
            return []
        finally:
            client.close()

    def _answered(self, message: str) -> bool:
        sql = "SELECT count(*) FROM messages_out WHERE in_reply_to = ?"
        return self._read("out/outbound.db", sql, message) not in (None, 0)

    def _status(self, message: str) -> str | None:
        found = self._read("in/inbound.db", "SELECT status FROM messages_in WHERE id = ?", message)
        return str(found) if found is not None else None

    def _read(self, name: str, sql: str, message: str) -> object:
        path = self.folder / "data" / "sessions" / AGENT / SESSION / name
        try:
            with open_reader(path) as db:  # the probe's own files, of a folder that no other agent sees
                row = db.one(sql, (message,))
        except ClawbusError:
            return None
        return row[0] if row is not None else None

    # --- its daemon

    def _client(self) -> Caller:
        return self.connect(self.folder / "data" / "control.sock")

    def _arguments(self, *words: str) -> list[str]:
        return [*self.command, "--config", str(self.folder / "clawbus.toml"), *words]

    def _start(self) -> None:
        with (self.folder / "probe.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._arguments("serve"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment()
            )
        self._wait("the new release's daemon", self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            text = (self.folder / "probe.log").read_text(encoding="utf-8", errors="replace")
            raise ProbeFailedError(f"its daemon ended with {self.process.returncode}: {text[-300:].strip()}")
        client = self._client()
        try:
            client.read_mailbox(AGENT, 0, 1)
        except Exception:  # noqa: BLE001 - not yet
            return False
        finally:
            client.close()
        return True

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

    def _wait(self, what: str, holds: Callable[[], object]) -> None:
        while not holds():
            if time.monotonic() > self.deadline:
                raise ProbeFailedError(f"{what} did not come within {self.limit_s:g} s")
            time.sleep(_POLL_S)

    def _end(self) -> None:
        self._kill_daemon()
        self.deadline = time.monotonic() + _END_S
        if (self.folder / "data" / "clawbus.version").exists():
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                self._clawbus("session", "kill", "--all")
        shutil.rmtree(self.folder, ignore_errors=True)


def own_command() -> list[str]:
    """Return the words that start this release's clawbus, the one that this process runs."""
    return [sys.executable, "-I", "-B", "-m", "daemon.cli"]


def _environment() -> dict[str, str]:
    """Return the environment without what belongs to this process's service and configuration."""
    ours = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "INVOCATION_ID")
    return {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("CLAWBUS_")}
