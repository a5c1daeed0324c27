"""The two ways a stale sweep reaches the sessions: through the running daemon, or through the files under the folder's lock.

Through the daemon nothing is opened here: it stays the one writer. Through the files nothing is written but under the
data folder's lock, which no daemon can hold at the same time, and after the runtime has said which containers live.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from daemon.api.client import ControlClient
from daemon.config.models import Config
from daemon.config.policies import read_limits
from daemon.core.clock import Clock
from daemon.core.errors import DataFolderError, RegistryGoneError, RemoteError, UnknownSessionError
from daemon.core.repair_errors import RestoreRefusedError
from daemon.core.run_state import Life
from daemon.core.stale_plan import Scope
from daemon.inspect.central_reading import incarnations_of
from daemon.inspect.containers import RuntimeSeen, look_at_runtime
from daemon.inspect.content import error_of
from daemon.maintenance import stale_sweep
from daemon.maintenance.session_deletion import delete_from_files
from daemon.maintenance.stale_drive import CANARY_SESSION, Key
from daemon.maintenance.stale_reading import Surroundings
from daemon.store.data_folder import DataFolder
from daemon.store.dead_letters import Operator
from daemon.store.rebuild import REMAKE_HINT, agree_on_install_id, found_sessions
from daemon.store.registry import Registry, SessionKey
from daemon.store.session_files import SessionFiles
from schema.ids import session_of_folder, session_path

_APPLY_S: Final = 60.0


class DaemonAccess:
    """Through the control socket. Raises what the client raises."""

    source = "daemon"

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def sessions(self) -> Sequence[Key]:
        """As the daemon lists them."""
        return [(one["agent"], one["session"]) for one in self._client.sessions()]

    def preview(self, key: Key, scope: Scope) -> dict[str, Any]:
        """See StaleAccess."""
        return self._client.post("/v1/stale/preview", _limits(key, scope), wait_s=_APPLY_S)

    def apply(self, key: Key, scope: Scope, operator: Operator, expected: Sequence[str]) -> dict[str, Any]:
        """See StaleAccess."""
        body = {**_limits(key, scope), **_who(operator), "expected": list(expected)}
        return self._client.post("/v1/stale/apply", body, wait_s=_APPLY_S)

    def undo(self, key: Key, backup: str, operator: Operator) -> dict[str, Any]:
        """See StaleAccess."""
        body = {"agent": key[0], "session": key[1], "backup": backup, **_who(operator)}
        return self._client.post("/v1/stale/undo", body, wait_s=_APPLY_S)

    def canary(self, agent: str, wait_s: float) -> dict[str, Any] | None:
        """See StaleAccess. The agent has a turn of its own for it, in a session that nothing else uses."""
        message: dict[str, Any] = {
            "agent": agent,
            "session": CANARY_SESSION,
            "content": {"text": "This is a test of the message bus. Answer with one word."},
            "address": {"channel_type": "local", "platform_id": CANARY_SESSION},
        }
        try:
            message_id = str(self._client.accept(message)["message_id"])
            until = time.monotonic() + wait_s
            entry = None
            while entry is None and (left := until - time.monotonic()) > 0:
                entry = self._client.wait_reply(agent, CANARY_SESSION, message_id, left)
        except RemoteError as error:
            return {"message_id": None, "answered": False, "error": f"{error.remote_code}: {error}"}
        failed = error_of(entry.content) if entry is not None else None
        return {"message_id": message_id, "answered": entry is not None and failed is None, "error": failed}


class FilesAccess:
    """Through the files, while this process holds the data folder. Built by `files_access`."""

    source = "files"

    def __init__(
        self,
        config: Config,
        folder: DataFolder,
        registry: Registry,
        listing: RuntimeSeen,
        clock: Clock,
        *,
        recover: bool,
    ) -> None:
        self._recover = recover
        self._config = config
        self._folder = folder
        self._registry = registry
        self._listing = listing
        self._clock = clock

    def sessions(self) -> Sequence[Key]:
        """Every session that has a folder."""
        return list(found_sessions(self._folder.sessions_dir))

    def preview(self, key: Key, scope: Scope) -> dict[str, Any]:
        """See StaleAccess."""
        return stale_sweep.preview_report(self._files(key), SessionKey(*key), self._around(key), scope)

    def apply(self, key: Key, scope: Scope, operator: Operator, expected: Sequence[str]) -> dict[str, Any]:
        """See StaleAccess."""
        named = SessionKey(*key)
        self._registry.activate(named, self._clock.now_ms())
        done = stale_sweep.apply(self._files(key), named, self._around(key), scope, operator, expected=expected)
        return done.report()

    def undo(self, key: Key, backup: str, operator: Operator) -> dict[str, Any]:
        """See StaleAccess."""
        files, named, now = self._files(key), SessionKey(*key), self._clock.now_ms()
        self._registry.activate(named, now)
        return stale_sweep.undo(files, named, stale_sweep.found_backup(files, backup), operator, now)

    def delete(self, key: Key, operator: Operator, *, force: bool) -> dict[str, Any]:
        """Delete a session that no container lives of. Raises as `session_deletion.delete_from_files` does."""
        files, named = self._files(key), SessionKey(*key)
        if self._registry.session(named) is None and not files.folder.root.is_dir():
            raise UnknownSessionError(f"there is no session {named}.")
        listed = self._listing.containers
        lives = listed is None or any((one.agent, one.session) == key for one in listed)
        return delete_from_files(
            self._registry,
            self._folder.sessions_dir,
            files,
            named,
            operator,
            self._clock.now_ms,
            lives=lives,
            force=force,
        )

    def canary(self, agent: str, wait_s: float) -> dict[str, Any] | None:
        """Nobody is there to take it."""
        del agent, wait_s

    def _files(self, key: Key) -> SessionFiles:
        files = SessionFiles(session_path(self._folder.sessions_dir, *key), read_limits(self._config))
        alive = self._listing.containers
        lives = alive is None or any((one.agent, one.session) == key for one in alive)
        if self._recover and not lives and files.has_journal():
            files.recover()  # nothing runs, by the runtime's word: as at a daemon's start
        return files

    def _around(self, key: Key) -> Surroundings:
        rows: Mapping[str, Mapping[str, Any]] = incarnations_of(self._folder.root, key)
        ended = {name: int(row["ended_at"]) for name, row in rows.items() if row.get("ended_at") is not None}
        alive = self._listing.alive

        def life(incarnation: str) -> Life:
            if alive is not None:
                return Life.ALIVE if incarnation in alive else Life.GONE
            return Life.GONE if incarnation in ended else Life.UNKNOWN

        listed = self._listing.containers  # None: nobody could say, and that is never "gone"
        lives = listed is None or any((one.agent, one.session) == key for one in listed)
        return Surroundings(self._clock.now_ms(), life, alive=lives, synced=False, gone_at=ended)


@contextmanager
def files_access(
    config: Config,
    clock: Clock,
    *,
    recover: bool,
    look: Callable[[Config, str | None], RuntimeSeen] = look_at_runtime,
) -> Generator[FilesAccess]:
    """Hold the data folder as a daemon would. `recover`: dead containers' journals are rolled back first. Raises DataFolderError, DataFolderLockedError, RegistryGoneError, SchemaTooNewError, StorageError."""
    if not (config.data_dir / "clawbus.version").is_file():
        raise DataFolderError(
            f"{config.data_dir} is no data folder of clawbus.", hint="Name it with --data or --config."
        )
    with DataFolder.open(config.data_dir, clock) as folder:
        if not folder.central_db.is_file():  # an empty one in its place would hide the loss
            raise RegistryGoneError(f"{folder.central_db} is missing.", hint=REMAKE_HINT)
        registry = Registry(folder.central_db)
        install_id = agree_on_install_id(registry, folder.install_file, clock.now_ms())
        yield FilesAccess(config, folder, registry, look(config, install_id), clock, recover=recover)


def backup_key(path: Path, sessions_dir: Path) -> tuple[Key, str]:
    """Which session a sweep's backup is of, by where it lies: `sessions/<agent>/<session>/in/NAME`."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - a link is not to be followed
    try:
        agent, session, inbox, name = whole.relative_to(Path(os.path.abspath(sessions_dir))).parts  # noqa: PTH100
    except ValueError:
        agent = session = inbox = name = ""
    named = session_of_folder(session)
    if inbox != "in" or named is None:
        raise RestoreRefusedError(f"{path} does not lie in a session's in/ folder of this data folder.")
    return (agent, named), name


def _limits(key: Key, scope: Scope) -> dict[str, Any]:
    return {"agent": key[0], "session": key[1], "older_than_ms": scope.older_than_ms, "max_runs": scope.max_runs}


def _who(operator: Operator) -> dict[str, Any]:
    return {"by": operator.name, "reason": operator.reason}
