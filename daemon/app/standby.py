"""The daemon of the slot that does not serve: ready, watching, and with no file of the bus open.

It reads deploy/state.json and answers on a separate socket. When its slot becomes the serving one it takes the data
folder; when the new slot's daemon does not run or hangs in a deploy, it goes back. It decides that, because it outlives
the deploy's tool and the new daemon.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from daemon.api import server as control_server
from daemon.api.client import ControlClient
from daemon.app.signals import RELOAD, SignalInbox
from daemon.config.models import Config
from daemon.core.clock import Clock
from daemon.core.deploy_errors import SlotStateError
from daemon.core.slot_steps import Seen, may_go_back, standby_step
from daemon.core.slots import SlotState, other
from daemon.deploy.probe import Probe, own_command
from daemon.deploy.releases import Releases
from daemon.deploy.standby_client import StandbyClient, get_over, standby_socket
from daemon.deploy.state_file import FOLDER, read_state
from daemon.store.folder_lock import live_holder
from daemon.store.workers import last_slot
from daemon.systemd.notify import Notifier
from daemon.workers.source import Origin
from schema.errors import StorageError
from schema.ids import new_id
from schema.instants import to_text

_LOOK_S: Final = 0.1
_READY_LOOK_S: Final = 0.5
_READY_ANSWER_S: Final = 2.0
_MAX_PROBE_S: Final = 3600.0


@dataclass(slots=True)
class Watching:
    """How long the lock has been free and its holder not ready. Times are monotonic seconds."""

    free_since: float | None = None
    unready_since: float | None = None
    asked_at: float = 0.0
    ended_holder: bool = False


@dataclass(slots=True)
class Standby:
    """One standby. `run` returns the caller's next step: serve, roll_back, stop, or relink (run the slot's new release)."""

    config: Config
    slot: str
    source: Origin
    signals: SignalInbox
    clock: Clock
    notifier: Notifier = field(default_factory=lambda: Notifier(os.environ))
    reason: str = ""
    _process: str = ""
    _blind: str = ""  # why the state could not be read at the last look
    _asked: str = ""  # the operator's rollback that is to be carried out, as its reason
    _watching: Watching = field(default_factory=Watching)
    _alone_since: float | None = None  # since when the other slot's standby has not answered
    _command: int | None = None  # the process of a command on the files that this standby waits for
    _probing: Probe | None = None
    _one_probe: anyio.Lock = field(init=False)
    _step: str = "stop"
    _stopped: bool = False

    async def run(self) -> str:
        """Wait for the next step. Raise SocketPathError or SlotStateError when it cannot watch."""
        self._process, self._one_probe = new_id(self.clock.now_ms()), anyio.Lock()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._signals, tasks.cancel_scope, name="signals")
            step = await self._look()
            if step is None:
                path = standby_socket(self.config.data_dir, self.slot)
                await tasks.start(partial(control_server.run, self._app(), path), name="standby socket")
                say("standby_ready", slot=self.slot, release=(self.source.release or "")[:12])
                self.notifier.ready(f"standby in slot {self.slot}")
                step = await self._wait()
            self._step = step
            self._stop_probe()
            tasks.cancel_scope.cancel()
        return "stop" if self._stopped else self._step

    async def _signals(self, scope: anyio.CancelScope) -> None:
        while await self.signals.next() == RELOAD:
            pass
        self._stopped = True
        self._stop_probe()
        scope.cancel()

    async def _wait(self) -> str:
        while True:
            self.notifier.watchdog()
            await anyio.sleep(_LOOK_S)
            step = await self._look()
            if step is not None:
                return step

    async def _look(self) -> str | None:
        try:
            return await anyio.to_thread.run_sync(self._look_now)
        except (SlotStateError, StorageError) as error:
            if not self._process:
                raise
            if str(error) != self._blind:
                say("standby_blind", error=str(error))
            self._blind = str(error)
            return None

    def _look_now(self) -> str | None:
        state = read_state(self.config.data_dir)
        if self._is_relinked():
            return "relink"
        own = self.config.deploy
        step = standby_step(state, self.slot, self._see(state), own.cutover_s, own.unready_s)
        holder = live_holder(self.config.data_dir)
        if self._asked and holder is None and may_go_back(state, self.slot):
            self.reason = self._asked
            return "roll_back"
        if step == "end_holder" and holder is not None:
            self._end_holder(holder.pid)
            return None
        if step in ("serve", "roll_back") and holder is None:
            return None if self._is_others(state) else step
        return None

    def _is_others(self, state: SlotState) -> bool:
        """Return whether the other slot served last and is about to go on, where the record of slots is gone."""
        now, others = time.monotonic(), other(self.slot)
        if state.serving is not None or last_slot(self.config.data_dir) != others:
            self._alone_since = None
            return False
        if StandbyClient(self.config.data_dir, others).look() is not None or self._alone_since is None:
            self._alone_since = now
        return now - self._alone_since <= self.config.deploy.cutover_s

    def _is_relinked(self) -> bool:
        own = self.source.manifest
        if own is None:
            return False
        releases = Releases(self.config.deploy.root)
        name = releases.slots().get(self.slot)
        return name not in (None, own.short) and name in releases.names() and releases.launcher(name).exists()

    def _see(self, state: SlotState) -> Seen:
        """Return for how long the lock has been free, and its holder not ready. Only what may matter is asked."""
        now, watching = time.monotonic(), self._watching
        deploy = state.active
        if state.serving != self.slot and (deploy is None or not deploy.is_cut_over):
            self._watching = Watching()
            return Seen()
        holder = live_holder(self.config.data_dir)
        if holder is not None and not holder.is_daemon:
            self._await_command(holder.pid)
            return Seen()
        if holder is None:
            watching.free_since = watching.free_since or now
            watching.unready_since = None
            free = now - watching.free_since
            self.reason = self.reason if watching.ended_holder else f"no daemon of the new release ran for {free:.0f} s"
            return Seen(lock_free_s=float("inf") if watching.ended_holder else free)
        watching.free_since = None
        if now - watching.asked_at >= _READY_LOOK_S:
            watching.asked_at = now
            ready = _is_ready(self.config.control_socket)
            watching.unready_since = None if ready else (watching.unready_since or now)
        return Seen(not_ready_s=now - watching.unready_since if watching.unready_since is not None else 0.0)

    def _await_command(self, pid: int) -> None:
        """Wait for an operator's command on the files (a backup, say): it is never ended."""
        self._watching = Watching()
        if pid != self._command:
            say("standby_waits_for_command", pid=pid, slot=self.slot)
        self._command = pid

    def _end_holder(self, pid: int) -> None:
        """Kill a daemon that holds the data folder and must not or cannot serve. Agents are not touched."""
        say("standby_ends_holder", pid=pid, slot=self.slot)
        since = self._watching.unready_since
        self.reason = f"the new daemon was not ready for {time.monotonic() - since if since is not None else 0:.0f} s"
        self._watching = Watching(ended_holder=True)
        with suppress(OSError):
            descriptor = os.pidfd_open(pid)  # the process is fixed before it is asked again who holds the lock
            try:
                holder = live_holder(self.config.data_dir)
                if holder is not None and holder.pid == pid and pid != os.getpid():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)

    # --- what others ask

    def _app(self) -> Starlette:
        async def healthz(_: Request) -> JSONResponse:
            return JSONResponse(self.report())

        async def probe(request: Request) -> JSONResponse:
            limit = min(_MAX_PROBE_S, max(1.0, float(request.query_params.get("limit_s", "60"))))
            return JSONResponse(await self._probe_alone(self._probe(limit)))

        async def rollback(request: Request) -> JSONResponse:
            by = request.query_params.get("by", "")
            return JSONResponse(await anyio.to_thread.run_sync(self.ask_rollback, by))

        routes = [Route("/probe", probe, methods=["POST"]), Route("/rollback", rollback, methods=["POST"])]
        return Starlette(routes=[Route("/healthz", healthz), *routes])

    def ask_rollback(self, by: str) -> dict[str, Any]:
        """Go back with the next look, where the deploy's new daemon is gone and may not come again; {ok, reason}."""
        try:
            state = read_state(self.config.data_dir)
        except SlotStateError as error:
            return {"ok": False, "reason": str(error)}
        if not may_go_back(state, self.slot):
            return {"ok": False, "reason": "no deploy that may go back is in its bake"}
        if live_holder(self.config.data_dir) is not None:
            return {"ok": False, "reason": "a process holds the data folder"}
        self._asked = f"asked for by {by}"
        return {"ok": True, "reason": ""}

    def report(self) -> dict[str, Any]:
        """Return what the standby is."""
        return {
            **self.source.as_json(),
            "slot": self.slot,
            "role": "standby",
            "process": self._process,
            "pid": os.getpid(),
        }

    async def _probe_alone(self, probe: Probe) -> dict[str, Any]:
        """Probe, after the end of an earlier probe whose deploy was aborted: both use one folder."""
        self._stop_probe()
        self._probing = probe
        async with self._one_probe:
            return await anyio.to_thread.run_sync(probe.run)

    def _stop_probe(self) -> None:
        if self._probing is not None:
            self._probing.stop()

    def _probe(self, limit_s: float) -> Probe:
        folder = self.config.data_dir / FOLDER / f"probe-{self.slot}"
        return Probe(self.config, folder, own_command(), ControlClient, limit_s)


def _is_ready(socket_path: Path) -> bool:
    found = get_over(socket_path, "/readyz", _READY_ANSWER_S)
    checks: dict[str, Any] = found.get("result", {}) if found is not None else {}
    return bool(checks.get("started"))


def say(event: str, **fields: object) -> None:
    """Write one line of JSON to standard error: the log file is the serving daemon's alone."""
    line = {"timestamp": to_text(int(time.time() * 1000)), "level": "info", "event": event, **fields}
    with suppress(OSError):
        print(json.dumps(line), file=sys.stderr, flush=True)  # noqa: T201
