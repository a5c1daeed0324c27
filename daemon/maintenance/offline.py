"""Carries out an operator's verbs on the files while no daemon runs.

Holds the data folder as a daemon would, so that none can start meanwhile, and asks the runtime which containers live:
they outlive a daemon. A runtime that does not answer is never taken for one without containers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import anyio

from daemon.config.models import Config
from daemon.config.policies import read_limits
from daemon.core.clock import Clock
from daemon.core.errors import (
    DataFolderError,
    RegistryGoneError,
    RuntimeUnavailableError,
    UnknownAgentError,
    UnknownSessionError,
)
from daemon.core.facts import Container
from daemon.core.message_verbs import CancelMessage
from daemon.core.run_evidence import RuntimeContext
from daemon.core.schedule_verbs import PutSchedule
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import (
    ApplyStale,
    DeleteSession,
    KillSession,
    PreviewStale,
    QuarantineSession,
    ReleaseSession,
    ResetSession,
    StopSession,
    UndoStale,
)
from daemon.core.verb import AnyVerb, HostVerb, RowVerb, Verb
from daemon.inspect.central_reading import incarnations_of
from daemon.inspect.containers import RuntimeSeen, context_of, look_at_runtime
from daemon.maintenance import container_ends, host_verbs, session_repair, stale_sweep
from daemon.maintenance.container_ends import KilledAgent
from daemon.maintenance.host_verbs import Configured
from daemon.maintenance.row_verbs import change_row, check_schedule, operator_of
from daemon.maintenance.session_deletion import delete_from_files
from daemon.runtimes.factory import build_runtime
from daemon.runtimes.protocol import ContainerRuntime
from daemon.store.data_folder import DataFolder
from daemon.store.dead_letters import Operator
from daemon.store.rebuild import REBUILD_HINT, agree_on_install_id, found_sessions, is_session
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from schema.connect import holds_pages
from schema.errors import ClawbusError
from schema.ids import session_path
from schema.layout import SessionFolder
from schema.os_faults import in_own_folder

T = TypeVar("T")
Look = Callable[[Config, str | None], RuntimeSeen]


class OfflineExecutor:
    """Built by `offline_executor`. `recover`: roll back the journals that dead containers left."""

    source = "files"

    def __init__(
        self,
        config: Config,
        folder: DataFolder,
        registry: Registry,
        install_id: str,
        clock: Clock,
        *,
        recover: bool,
        look: Look,
    ) -> None:
        self._config = config
        self._folder = folder
        self._registry = registry
        self._install_id = install_id
        self._clock = clock
        self._recover = recover
        self._look = look
        self._listing = look(config, install_id)

    def sessions(self) -> Sequence[tuple[str, str]]:
        """Return every session that has a folder."""
        return list(found_sessions(self._folder.sessions_dir))

    def canary(self, agent: str, wait_s: float) -> dict[str, Any] | None:
        """Return None: no daemon runs that could accept a canary message."""
        del agent, wait_s

    def execute(self, verb: AnyVerb) -> dict[str, Any]:
        """Carry out one verb and return its result. Raise UnknownSessionError and what the verb's own part raises."""
        if isinstance(verb, HostVerb):
            at = self._clock.now_ms()
            configured = Configured.of(self._config, at)
            return self._registry.with_file(lambda db: host_verbs.execute(db, verb, configured, at))
        return self._execute_in_session(verb)

    def _execute_in_session(self, verb: Verb) -> dict[str, Any]:
        key, operator, now = SessionKey(verb.agent, verb.session), operator_of(verb), self._clock.now_ms()
        if not isinstance(verb, PreviewStale):  # it only looks
            self._withdraw_starts(key)
        files = self._files(key)
        self._check_session(key, files, verb)
        match verb:
            case RowVerb():
                return self._change_row(key, files, verb)
            case StopSession():
                ended = self._end(key, graceful=True)
                return {"stopping": ended is not None, "incarnation": ended and ended["incarnation"]}
            case KillSession():
                return self._kill(key, files, operator)
            case ReleaseSession():
                return self._release(key, files, operator, now)
            case QuarantineSession():
                return self._quarantine(key, files, operator, now)
            case ResetSession():
                return self._reset(key, operator, discard=verb.discard)
            case DeleteSession():
                return self._delete(key, files, operator, force=verb.force)
            case ApplyStale():
                self._registry.activate(key, now)
                context = self._context(key)
                return stale_sweep.apply(files, key, context, verb.scope, operator, expected=verb.expected).report()
            case PreviewStale():
                return stale_sweep.preview_report(files, key, self._context(key), verb.scope)
            case UndoStale():
                self._registry.activate(key, now)
                return stale_sweep.undo(files, key, stale_sweep.found_backup(files, verb.backup), operator, now)
            case _:
                raise NotImplementedError(type(verb).__name__)

    def _check_session(self, key: SessionKey, files: SessionFiles, verb: Verb) -> None:
        """Raise UnknownSessionError, UnknownAgentError or what `check_schedule` does. A new schedule may create its session."""
        if isinstance(verb, PutSchedule):
            if key.agent not in self._config.agents:
                raise UnknownAgentError(f"there is no agent {key.agent!r}.")
            check_schedule(verb, ("local", *self._config.channels), self._clock.now_ms())
        if self._is_known(key):
            return
        if not isinstance(verb, PutSchedule):
            raise UnknownSessionError(f"there is no session {key}.")
        files.create()

    def _change_row(self, key: SessionKey, files: SessionFiles, verb: RowVerb) -> dict[str, Any]:
        live: str | None = None
        if isinstance(verb, CancelMessage):
            # Cancelling a message that a container works on requires that the container can be ended.
            container = self._container(key)
            live = container.incarnation if container is not None else None
        self._registry.activate(
            key, self._clock.now_ms()
        )  # before the work is written, so that the next daemon sweeps the session
        # Nothing is being sent: only a daemon sends.
        done = change_row(verb, files, self._clock.now_ms(), live=live, is_sent_now=lambda _: False)
        if isinstance(verb, CancelMessage) and verb.kill and done["running"]:
            self._end(key, graceful=False)
        return done

    # --- containers

    def _container(self, key: SessionKey) -> Container | None:
        """Return the session's running container. Raise RuntimeUnavailableError if that is unknown."""
        listed = self._listed(f"whether a container of session {key} runs")
        return next((one for one in listed if (one.agent, one.session) == key), None)

    def _listed(self, question: str) -> Sequence[Container]:
        """Return the containers that run. Raise RuntimeUnavailableError if that is unknown; it names what was asked."""
        if self._listing.containers is not None:
            return self._listing.containers
        raise container_ends.containers_unknown(question, self._listing.error, self._listing.repair)

    def _end(self, key: SessionKey, *, graceful: bool) -> dict[str, Any] | None:
        """End the session's container: {incarnation, exit_code}, or None if none runs.

        Wait for the confirmed exit unless it is graceful. What the exit means for its messages is settled by the next
        daemon. Raise RuntimeUnavailableError or NotConfirmedError.
        """
        container = self._container(key)
        if container is None:
            return None
        confirm_s = self._config.runtime.kill_confirm_s
        code = self._ask_runtime(lambda by: container_ends.end(by, container, confirm_s, graceful=graceful))
        if not graceful:
            self._listing = self._look(self._config, self._install_id)
        return {"incarnation": container.incarnation, "exit_code": code}

    def _ask_runtime(self, work: Callable[[ContainerRuntime], Awaitable[T]]) -> T:
        async def ask() -> T:
            async with aclosing(build_runtime(self._config, self._folder, self._install_id, self._clock)) as runtime:
                return await work(runtime)

        return anyio.run(ask)

    def kill_all(self, operator: Operator) -> list[KilledAgent]:
        """Kill every container of the installation, also of sessions that are gone, and return what became of each.

        Where the containers run under another runtime than the configured one, they are ended there. Raises
        RuntimeUnavailableError if it is unknown which run.
        """
        if self._listing.other_kind is not None:
            runtime = self._config.runtime.model_copy(update={"kind": self._listing.other_kind})
            self._config = self._config.model_copy(update={"runtime": runtime})
            self._listing = self._look(self._config, self._install_id)
        self._withdraw_starts(None)
        containers = self._listed("whether agents run")
        for one in containers:
            key = SessionKey(one.agent, one.session)
            if self._is_known(key):
                self._try_note(self._files(key), "session_killed", operator)
        confirm_s = self._config.runtime.kill_confirm_s
        ends = self._ask_runtime(lambda runtime: container_ends.kill_each(runtime, containers, confirm_s))
        self._listing = self._look(self._config, self._install_id)
        for one in containers:
            key = SessionKey(one.agent, one.session)
            if self._is_known(key):
                self._registry.activate(key, self._clock.now_ms())
        return container_ends.killed_agents(containers, ends, self._listing.alive or frozenset())

    def _withdraw_starts(self, key: SessionKey | None) -> None:
        """Withdraw the starts that a dead daemon asked for, of one session or all: none may begin while its files change.

        If the runtime does not answer, it is unknown from now on what runs.
        """
        alive = self._listing.alive
        if alive is None:
            return
        rows = [row for row in self._registry.live_incarnations() if key in (None, row.key)]
        asked = [row.id for row in rows if row.id not in alive]
        try:
            if asked and self._ask_runtime(lambda runtime: container_ends.withdraw_starts(runtime, asked)):
                self._listing = self._look(self._config, self._install_id)
        except RuntimeUnavailableError as error:
            self._listing = RuntimeSeen(None, str(error))

    # --- sessions

    def _kill(self, key: SessionKey, files: SessionFiles, operator: Operator) -> dict[str, Any]:
        if self._container(key) is not None:
            self._try_note(files, "session_killed", operator)
        ended = self._end(key, graceful=False)
        if ended is None:
            return {"killed": False, "incarnation": None, "exit_code": None}
        self._registry.activate(key, self._clock.now_ms())
        return {"killed": True, **ended}

    def _release(self, key: SessionKey, files: SessionFiles, operator: Operator, now: int) -> dict[str, Any]:
        was = self._quarantined(key)
        if was is not None and not files.folder.root.exists():
            files.create()
        self._registry.activate(key, now)
        self._registry.release(key)
        if was is not None:
            self._try_note(files, "session_released", operator, was=was)
        return {"released": was is not None, "was": was}

    def _quarantine(self, key: SessionKey, files: SessionFiles, operator: Operator, now: int) -> dict[str, Any]:
        was = self._quarantined(key)
        self._container(key)  # before anything is written: refuse while it is unknown whether one runs
        if was is None:
            self._registry.activate(key, now)
            self._registry.quarantine(key, session_repair.quarantine_reason(operator), now)
        noted = self._try_note(files, "session_quarantined", operator)
        return {
            "quarantined": was is None,
            "was": was,
            "ending": self._end(key, graceful=False) is not None,
            "noted": noted,
        }

    def _reset(self, key: SessionKey, operator: Operator, *, discard: bool) -> dict[str, Any]:
        was = self._quarantined(key)
        self._end(key, graceful=False)  # raises unless no container is left
        files, now = self._files(key), self._clock.now_ms()
        self._registry.activate(key, now)
        done = session_repair.reset(files, operator, now, discard=discard)
        self._registry.release(key)
        return {**done, "was": was}

    def _delete(self, key: SessionKey, files: SessionFiles, operator: Operator, *, force: bool) -> dict[str, Any]:
        return delete_from_files(
            self._registry,
            self._folder.sessions_dir,
            files,
            key,
            operator,
            self._clock.now_ms,
            lives=self._lives(key),
            force=force,
        )

    def _quarantined(self, key: SessionKey) -> str | None:
        row = self._registry.session(key)
        return row.quarantine_reason if row is not None else None

    def _try_note(self, files: SessionFiles, event: str, operator: Operator, **more: object) -> bool:
        """Write who did what into the session's history. False where that cannot be written."""
        try:
            session_repair.note(files, event, operator, self._clock.now_ms(), **more)
        except ClawbusError:
            return False
        return True

    def _is_known(self, key: SessionKey) -> bool:
        """Return whether there is such a session.

        A folder without a finished inbound.db is not one yet: its next message completes it. Registered, it would count
        as damaged.
        """
        if self._registry.session(key) is not None:
            return True
        with in_own_folder(f"the folder of {key} cannot be looked at"):
            return is_session(SessionFolder(session_path(self._folder.sessions_dir, *key)))

    # --- what the runtime says

    def _lives(self, key: SessionKey) -> bool:
        """Return whether a container of the session runs, or may run."""
        listed = self._listing.containers
        return listed is None or any((one.agent, one.session) == key for one in listed)

    def _files(self, key: SessionKey) -> SessionFiles:
        files = SessionFiles(session_path(self._folder.sessions_dir, *key), read_limits(self._config))
        if self._recover and not self._lives(key) and files.has_journal():
            files.recover()  # the runtime reports that nothing runs: as at a daemon's start
        return files

    def _context(self, key: SessionKey) -> RuntimeContext:
        rows = incarnations_of(self._folder.root, key)
        return context_of(self._listing, key, rows, self._clock.now_ms(), synced=False)


@contextmanager
def offline_executor(
    config: Config, clock: Clock, *, recover: bool, look: Look = look_at_runtime
) -> Generator[OfflineExecutor]:
    """Hold the data folder and yield its executor.

    Raise DataFolderError, DataFolderLockedError, RegistryGoneError, SchemaTooNewError or StorageError.
    """
    if not (config.data_dir / "clawbus.version").is_file():
        raise DataFolderError(
            f"{config.data_dir} is not a data folder of clawbus.", hint="Name it with --data or --config."
        )
    with DataFolder.open(config.data_dir, clock) as folder:
        if not holds_pages(folder.central_db):  # an empty one in its place would hide the loss
            raise RegistryGoneError(f"{folder.central_db} is missing or empty.", hint=REBUILD_HINT)
        registry = Registry(folder.central_db)
        install_id = agree_on_install_id(registry, folder.install_file, clock.now_ms())
        yield OfflineExecutor(config, folder, registry, install_id, clock, recover=recover, look=look)
