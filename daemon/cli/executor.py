"""Chooses who executes an operator's verb: the daemon while it runs, else this process, on the files. Same for every verb."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from daemon.api.client import ControlClient
from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock
from daemon.core.content import error_of
from daemon.core.errors import NotListeningError, RemoteError, RuntimeUnavailableError
from daemon.core.repair_errors import RestoreRefusedError
from daemon.core.session_verbs import KillSession
from daemon.core.verb import AnyVerb
from daemon.maintenance.container_ends import KilledAgent
from daemon.maintenance.stale_drive import CANARY_SESSION, Key
from daemon.store.dead_letters import Operator
from schema.errors import ClawbusError
from schema.ids import session_of_folder

_AT_ONCE: Final = 8


class Executor(Protocol):
    """Executes verbs, one at a time."""

    source: str  # `daemon` or `files`

    def execute(self, verb: AnyVerb) -> dict[str, Any]:
        """Execute one verb and return its result. Raise RemoteError, or whatever the verb's own code raises."""
        ...

    def sessions(self) -> Sequence[Key]:
        """Return every session."""
        ...

    def canary(self, agent: str, wait_s: float) -> dict[str, Any] | None:
        """See stale_drive.StaleAccess."""
        ...

    def kill_all(self, operator: Operator) -> Sequence[KilledAgent]:
        """Kill every running agent and return each one's outcome. An agent that does not end does not stop the others' kills."""
        ...


@contextmanager
def executor(invocation: Invocation, *, changes: bool = True) -> Generator[Executor]:
    """Yield the daemon's executor when a daemon listens, else the offline one.

    Raise NotListeningError when a process holds the data folder but does not listen (a daemon that is starting, stopping
    or hanging), and when there is no data folder to work on.
    """
    with invocation.client() as client:
        try:
            client.live()
        except NotListeningError:
            if invocation.silent_daemon() is not None or not _is_data_folder(invocation):
                raise
        except RemoteError:  # for example another version's daemon: it is running, so it must execute the verb
            yield DaemonClient(client, invocation.client, invocation.place.data_dir)
            return
        else:
            yield DaemonClient(client, invocation.client, invocation.place.data_dir)
            return
    from daemon.maintenance.offline import offline_executor  # noqa: PLC0415 - only without a daemon

    with offline_executor(invocation.config, SystemClock(), recover=changes) as found:
        yield found


def execute(invocation: Invocation, verb: AnyVerb) -> dict[str, Any]:
    """Execute one verb, in the daemon or on the files, and return its result."""
    with executor(invocation) as found:
        return found.execute(verb)


def _is_data_folder(invocation: Invocation) -> bool:
    return (invocation.place.data_dir / "clawbus.version").is_file()


class DaemonClient:
    """Executes verbs in the running daemon, over the control socket. Raises the errors of the client."""

    source = "daemon"

    def __init__(self, client: ControlClient, connect: Callable[[], ControlClient], data_dir: Path) -> None:
        self._client = client
        self._connect = connect
        self._data_dir = data_dir
        self.execute = client.execute

    def sessions(self) -> Sequence[Key]:
        """Return every session in the registry. If this process cannot read the registry, ask the daemon."""
        from daemon.inspect.central_reading import read_central  # noqa: PLC0415

        central = read_central(self._data_dir)
        if central.missing or central.error is not None:
            return [(one["agent"], one["session"]) for one in self._client.sessions()]
        return list(central.sessions)

    def kill_all(self, operator: Operator) -> Sequence[KilledAgent]:
        """Kill every agent that the daemon runs, several in parallel: each call waits for its agent's confirmed exit."""
        live = self._client.live()
        if live["runtime"]["state"] != "available":
            why = next((one["why"] for one in live["degraded"] if one["what"] == "runtime"), "it does not answer")
            raise RuntimeUnavailableError(
                f"whether agents run cannot be determined: {why.rstrip('.')}.",
                hint="`clawbus doctor` says what to do about the runtime; then repeat the command.",
            )
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(partial(self._kill_one, operator), live["running"]))

    def _kill_one(self, operator: Operator, slot: Mapping[str, Any]) -> KilledAgent:
        agent, session, incarnation = slot["agent"], slot["session"], slot["incarnation"]
        try:
            with self._connect() as client:
                done = client.execute(KillSession(agent, session, by=operator.name, reason=operator.reason))
        except ClawbusError as error:
            return KilledAgent(agent, session, incarnation, error=error)
        return KilledAgent(agent, session, done["incarnation"] or incarnation, done["exit_code"])

    def canary(self, agent: str, wait_s: float) -> dict[str, Any] | None:
        """See StaleAccess. The test message goes to a session that nothing else uses."""
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


def backup_key(path: Path, sessions_dir: Path) -> tuple[Key, str]:
    """Return a sweep backup's session and file name, from its path `sessions/<agent>/<session>/in/NAME`.

    Raise RestoreRefusedError for any other path.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - must not follow links
    try:
        agent, session, inbox, name = whole.relative_to(Path(os.path.abspath(sessions_dir))).parts  # noqa: PTH100
    except ValueError:
        agent = session = inbox = name = ""
    named = session_of_folder(session)
    if inbox != "in" or named is None:
        raise RestoreRefusedError(f"{path} does not lie in a session's in/ folder of this data folder.")
    return (agent, named), name
