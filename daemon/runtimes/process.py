"""Runtime `process`: an agent as a plain subprocess of the host, for a first run and for tests. NO isolation whatever.

A container is a session of processes led by a small shell that outlives the daemon. The shell starts the runner only
when its record is on disk, outlives SIGTERM, writes the runner's exit code, and then ends all that is left, as a
container does whose first process ends. So an agent survives a daemon's restart and is found again by its record.
Never takes a pid for a process: start time and boot belong to it (process_table.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
import structlog
from anyio import to_thread

from daemon.core.clock import Clock
from daemon.core.errors import (
    ContainerGoneError,
    EngineChangedError,
    NotConfirmedError,
    RuntimeUnavailableError,
    SpawnError,
)
from daemon.runtimes import output_log, process_table
from daemon.runtimes.answering import answering
from daemon.runtimes.process_records import Record, RecordStore
from daemon.runtimes.protocol import ContainerSpec, Exit, Running
from schema.layout import (
    CONTAINER_AGENT,
    CONTAINER_GATE,
    CONTAINER_HOME,
    CONTAINER_IN,
    CONTAINER_OUT,
    ENV_AGENT,
    ENV_GATE,
    ENV_IN,
    ENV_OUT,
)
from schema.os_faults import host_error

T = TypeVar("T")

# The only variables of the daemon's environment that an agent gets: no CLAWBUS_*, no secrets.
_INHERITED: Final = ("PATH", "LANG", "TZ")
_DEFAULT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TARGETS: Final = (
    (CONTAINER_IN, ENV_IN),
    (CONTAINER_OUT, ENV_OUT),
    (CONTAINER_AGENT, ENV_AGENT),
    (CONTAINER_GATE, ENV_GATE),
)
_RETRY_S: Final = 1.0
_STARTING_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.005
_NOT_RELEASED: Final = 125

# $1 exit file, $2 working folder, then the runner. `read` fails at end of file: the daemon died before the record was
# on disk, so nothing starts. A trapped signal ends `wait` early, so it is asked again; 127 then means that the answer
# before was the child's. `kill -KILL 0` ends the whole group, this shell included. Its variables have names that no agent's
# may have: a shell hands on, with its own value, what it assigns to a variable that it was given.
_WRAPPER: Final = """
clawbus_exit_file=$1; cd "$2" || exit 126; shift 2
clawbus_code=
trap 'clawbus_got=1' TERM
read -r clawbus_go <&3 || exit 125
exec 3<&-
"$@" &
clawbus_child=$!
while :; do
  clawbus_got=
  wait "$clawbus_child"
  clawbus_now=$?
  if [ "$clawbus_now" -eq 127 ] && [ -n "$clawbus_code" ]; then break; fi
  clawbus_code=$clawbus_now
  [ -n "$clawbus_got" ] || break
done
printf '%s\\n' "$clawbus_code" > "$clawbus_exit_file"
kill -KILL 0
"""


class ProcessRuntime:
    """ContainerRuntime over subprocesses. `folder` keeps the records; `command` is the runner, others only in tests."""

    def __init__(self, install_id: str, folder: Path, *, clock: Clock, command: Sequence[str] | None = None) -> None:
        self.name = "process"
        self._pinned: str | None = None
        self._install_id = install_id
        self._records = RecordStore(folder)
        self._clock = clock
        # -I: neither the working folder (the agent's own) nor PYTHON* variables decide what is imported.
        # utf8: the environment below is UTF-8, whatever locale the agent is given.
        self._command = tuple(command or (sys.executable, "-I", "-X", "utf8", "-m", "container_runner"))
        self._children: dict[int, int | None] = {}  # pid -> wait status, once reaped
        self._spawning = threading.Lock()
        self._reaping = threading.Lock()
        self._limiter = anyio.CapacityLimiter(8)
        self._log = structlog.get_logger(runtime=self.name)

    @property
    def address(self) -> str:
        """The engine's name for people."""
        return "this machine"

    async def identity(self) -> str:
        """Return the machine's id (machine-id(5)); empty where it has none."""
        return await self._in_thread(process_table.machine_id)

    def pin(self, identity: str | None) -> None:
        """See the protocol."""
        self._pinned = identity

    async def may_live(self, incarnation: str) -> bool:
        """Return whether any process carries the incarnation's mark."""
        return await self._in_thread(partial(process_table.is_incarnation_alive, incarnation))

    async def check(self, image: str | None = None, *, own_runner: bool = False) -> None:
        """Raise RuntimeUnavailableError where agents cannot run: not Linux, no pidfds, no shell, no folder."""
        del image, own_runner  # there are none
        # Warn here, not when the runtime is built: it may be built only to ask what still runs under it.
        self._log.warning("process_runtime_no_isolation", hint="agents run as the daemon's own user")
        await self._in_thread(self._check)

    async def spawn(self, spec: ContainerSpec) -> Running:
        """Start the runner in a new process session. Raise SpawnError when this session's container still lives."""
        return await self._in_thread(partial(self._spawn, spec))

    async def stop(self, container_id: str) -> None:
        """Send SIGTERM to the runner alone. If it is still starting, wait for it for some seconds."""
        with anyio.move_on_after(_STARTING_S):
            while not await self._in_thread(partial(self._stop, container_id)):  # noqa: ASYNC110 - no event says so
                await anyio.sleep(_LOOK_AGAIN_S)

    async def kill(self, container_id: str) -> None:
        """Send SIGKILL to every process of the container."""
        await self._in_thread(partial(self._kill, container_id))

    async def wait(self, container_id: str, started_at: int | None = None) -> Exit:
        """Return when no process of the container lives. Codes of signals are 128 + number, as a shell has them.

        A container of processes has one life: nothing can start it again.
        """
        del started_at
        record = await self._record_for_wait(container_id)
        if record is None:
            return Exit(code=None)
        with answering("process"):
            if process_table.leader_stat(record.leader) is not None:
                await process_table.ended(record.pid, record.start_ticks)
        # The first process is gone, and with it the container: what is left of it is ended, and waited for.
        while members := await self._in_thread(partial(process_table.living_members, record.leader)):
            with answering("process"):
                for member in members:
                    process_table.send_signal(member, signal.SIGKILL)
                for member in members:
                    await process_table.ended(member.pid, member.start_ticks)
        return Exit(code=await self._in_thread(partial(self._exit_code, record)))

    async def forbid_restart(self, container_id: str) -> None:
        """Do nothing: nothing restarts a process container."""
        del container_id

    async def changed(self) -> None:
        """Wait forever: processes have no events."""
        await anyio.sleep_forever()

    async def list_running(self) -> list[Running]:
        """Return every container of this install with a living process."""
        return await self._in_thread(self._list_running)

    async def find_or_cancel_spawn(self, incarnation: str) -> Running | None:
        """Find the container by its record. A shell without a record ends by itself and runs nothing."""
        return await self._in_thread(partial(self._find_or_cancel_spawn, incarnation))

    async def logs(self, container_id: str, *, max_bytes: int = 65_536) -> str:
        """Return the end of its stdout and stderr. Raise ContainerGoneError for an unknown container."""
        record = await self._in_thread(partial(self._read, container_id))
        if record is None:
            raise ContainerGoneError(f"no container {container_id} in the process runtime.")
        path = Path(record.log_path)
        return await self._in_thread(partial(output_log.tail, path, start=record.log_start, max_bytes=max_bytes))

    async def remove(self, container_id: str) -> None:
        """Forget a dead container; NotConfirmedError while it lives."""
        await self._in_thread(partial(self._remove, container_id))

    async def aclose(self) -> None:
        """Reap the children that have exited, so that no zombies remain. Kill nothing."""
        await self._in_thread(self._reap)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        # Short work on the local disk and in /proc: never abandoned, so that a cancelled spawn is whole or not at all.
        with answering("process"):
            return await to_thread.run_sync(call, limiter=self._limiter)

    async def _record_for_wait(self, container_id: str) -> Record | None:
        while True:
            try:
                return await self._in_thread(partial(self._read, container_id))
            except RuntimeUnavailableError:
                await anyio.sleep(_RETRY_S)

    def _check(self) -> None:
        if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open") or not Path("/bin/sh").exists():
            raise RuntimeUnavailableError(
                "the process runtime needs Linux 5.4 with /proc and /bin/sh.", hint='Set [runtime] kind = "docker".'
            )
        self._records.ensure()

    def _believe(self) -> None:
        """Check that the records are of this machine: on another one they say nothing."""
        if self._pinned and (found := process_table.machine_id()) != self._pinned:
            raise EngineChangedError(
                f"this machine is {found or 'without an id'}, and the agents of this installation run on {self._pinned}."
            )

    def _read(self, container_id: str) -> Record | None:
        """Return the record, unless it is another installation's: a copied folder has those of the original."""
        record = self._records.read(container_id)
        return record if record is not None and record.install_id == self._install_id else None

    def _spawn(self, spec: ContainerSpec) -> Running:
        self._believe()
        self._check()
        for mount in spec.mounts:
            if not mount.source.is_dir():
                raise SpawnError(f"{mount.source} (for {mount.target}) is not a folder.")
        with self._spawning:
            self._refuse_second(spec)
            try:
                return self._start(spec).running()
            except OSError as error:
                raise host_error(error, f"the agent {spec.agent} could not be started") from error

    def _refuse_second(self, spec: ContainerSpec) -> None:
        for record in self._records.all():
            if record.name == spec.name:
                if process_table.living_members(record.leader):
                    raise SpawnError(f"{spec.name} still lives as incarnation {record.incarnation}.")
                self._records.remove(record.container_id)

    def _start(self, spec: ContainerSpec) -> Record:
        with contextlib.ExitStack() as descriptors:
            gate, release = os.pipe2(os.O_CLOEXEC)
            descriptors.callback(os.close, gate)
            gate_open = descriptors.enter_context(os.fdopen(release, "wb", buffering=0))
            output = output_log.open_for_append(spec.stderr_log)
            descriptors.callback(os.close, output)
            log_start = os.fstat(output).st_size
            pid = self._launch(spec, gate, output)
            self._children[pid] = None
            stat = process_table.read_stat(pid)
            if stat is None:  # not before it was reaped, and only we do that
                raise SpawnError(f"the agent {spec.agent} ended before it began.")
            record = Record(
                container_id=spec.incarnation,
                install_id=spec.install_id,
                name=spec.name,
                agent=spec.agent,
                session=spec.session,
                incarnation=spec.incarnation,
                fingerprint=spec.fingerprint,
                started_at=self._clock.now_ms(),
                pid=pid,
                start_ticks=stat.start_ticks,
                boot_id=process_table.boot_id(),
                log_path=str(spec.stderr_log),
                log_start=log_start,
            )
            self._records.write(record)
            gate_open.write(b"go\n")
            return record

    def _launch(self, spec: ContainerSpec, gate: int, output: int) -> int:
        sources = {mount.target: mount.source for mount in spec.mounts}
        wrapper = ("/bin/sh", "-c", _WRAPPER, "clawbus-agent", self._records.exit_path(spec.incarnation))
        # High numbers first: the targets 0 to 3 must not overwrite a descriptor that is still to be copied.
        with _duplicate(gate) as gate_copy, _duplicate(output) as output_copy:
            return os.posix_spawn(
                wrapper[0],
                (*wrapper, sources[CONTAINER_AGENT], *map(str.encode, spec.runner or self._command)),
                _environment(spec, sources),
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output_copy, 1),
                    (os.POSIX_SPAWN_DUP2, output_copy, 2),
                    (os.POSIX_SPAWN_DUP2, gate_copy, 3),
                ),
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ),
            )

    def _stop(self, container_id: str) -> bool:
        """Return whether the runner was signalled, or can never be."""
        record = self._read(container_id)
        if record is None:
            return True
        shell = process_table.leader_stat(record.leader)
        if shell is None or not shell.alive:
            return True
        runner = process_table.child_program(shell)
        if runner is not None:
            process_table.send_signal(runner, signal.SIGTERM)
        return runner is not None

    def _kill(self, container_id: str) -> None:
        record = self._read(container_id)
        members = process_table.living_members(record.leader) if record is not None else []
        if record is None or not members:
            return
        self._records.mark_killed(container_id)
        if process_table.leader_stat(record.leader) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, signal.SIGKILL)  # at once, so that the group can fork nothing away
        for member in members:
            process_table.send_signal(member, signal.SIGKILL)

    def _list_running(self) -> list[Running]:
        self._reap()
        self._believe()
        return [
            record.running()
            for record in self._records.all()
            if record.install_id == self._install_id and _lives(record)
        ]

    def _find_or_cancel_spawn(self, incarnation: str) -> Running | None:
        self._reap()
        self._believe()
        record = self._read(incarnation)
        if record is None:  # without a record its gate stays shut, so the program never begins
            self._records.discard_draft(incarnation)
            return None
        return record.running()

    def _remove(self, container_id: str) -> None:
        record = self._read(container_id)
        if record is not None and process_table.living_members(record.leader):
            raise NotConfirmedError(f"container {container_id} still lives.", hint="Stop or kill it first.")
        self._reap()
        self._records.remove(container_id)
        if record is not None:
            self._children.pop(record.pid, None)

    def _exit_code(self, record: Record) -> int | None:
        self._reap()
        code = self._records.exit_code(record.container_id)
        if code is not None:
            return code
        status = self._children.get(record.pid)
        if status is None:
            return None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _reap(self) -> None:
        with self._reaping:
            for pid in [pid for pid, status in self._children.items() if status is None]:
                with contextlib.suppress(ChildProcessError):
                    reaped, status = os.waitpid(pid, os.WNOHANG)
                    if reaped:
                        self._children[pid] = status


def _lives(record: Record) -> bool:
    stat = process_table.leader_stat(record.leader)
    return (stat is not None and stat.alive) or bool(process_table.living_members(record.leader))


def _environment(spec: ContainerSpec, sources: dict[str, Path]) -> dict[bytes, bytes]:
    """Return the agent's variables in UTF-8, as in a container. What is inherited, and paths, are in the daemon's locale."""
    inherited = {name: os.environb[name] for name in map(str.encode, _INHERITED) if name in os.environb}
    folders = {variable: sources[target] for target, variable in _TARGETS if target in sources}
    home, mark = {"HOME": sources[CONTAINER_HOME]}, {process_table.ENV_MARK: spec.incarnation}
    named = {**home, **spec.environment, **folders, **mark}
    return {b"PATH": _DEFAULT_PATH, **inherited, **{name.encode(): _bytes(value) for name, value in named.items()}}


def _bytes(value: str | Path) -> bytes:
    return os.fsencode(value) if isinstance(value, Path) else value.encode()


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Generator[int]:
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        yield copy
    finally:
        os.close(copy)
