"""The command line's client of the daemon: blocking HTTP over the control socket.

It never retries a send. A call without an answer raises DaemonDownError; it never returns an empty result. It uses the
standard library's client because importing httpx takes longer than most calls.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import quote, urlencode

from daemon.api.interruptible_socket import InterruptibleSocket
from daemon.core.errors import (
    DaemonDownError,
    DaemonSilentError,
    LostAnswerError,
    NoAccessError,
    NotListeningError,
    RemoteError,
    SocketPathError,
)

if TYPE_CHECKING:
    from daemon.core.verb import AnyVerb
    from daemon.store.mailbox import MailboxEntry

_ANSWER_S: Final = 30.0
_CONNECT_S: Final = 5.0
_KEEP_S: Final = 10.0  # shorter than the daemon keeps an idle connection
_POLL_S: Final = 50.0  # the longest single long poll, in seconds; the daemon's own limit is a little higher
_MAX_PATH_BYTES: Final = 107


class _UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket. Raises DaemonDownError or DaemonSilentError when it cannot connect."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("clawbus", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect within _CONNECT_S. `timeout_s` is for the answer only."""
        sock = InterruptibleSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_CONNECT_S)
            sock.connect(str(self._path))
            sock.settimeout(self._timeout_s)
        except OSError as error:
            sock.close()
            raise _not_taken(error, self._path) from error
        self.sock = sock

    def reuse(self, timeout_s: float) -> bool:
        """Return whether the connection can carry another request. Set that request's timeout."""
        sock = self.sock
        if not isinstance(sock, socket.socket):
            return False
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            try:
                sock.recv(1, socket.MSG_PEEK)  # the end of the stream, or unexpected bytes
            except BlockingIOError:
                sock.settimeout(timeout_s)
                return True
        return False


def _not_taken(error: OSError, path: Path) -> DaemonDownError | DaemonSilentError:
    if isinstance(error, PermissionError):
        return NoAccessError(f"no permission to speak to the daemon on {path}.")
    if isinstance(error, TimeoutError):
        return DaemonSilentError(f"the daemon on {path} takes no calls.")
    return NotListeningError(f"no daemon answers on {path}.")


class ControlClient:
    """Calls one daemon, one call at a time, and keeps the connection open for some seconds. Use as a context manager.

    Every method raises DaemonDownError, DaemonSilentError or RemoteError. `answer_s`: how many seconds an answer may take,
    in addition to the time that the request asks the daemon to wait.
    """

    def __init__(self, path: Path, *, answer_s: float = _ANSWER_S) -> None:
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise SocketPathError(f"the control socket's path is over {_MAX_PATH_BYTES} bytes: {path}")
        self._path = path
        self._answer_s = answer_s
        self._current: _UnixConnection | None = None
        # The connection and when it was last used (monotonic seconds).
        self._kept: tuple[_UnixConnection, float] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._drop_kept()

    def close(self) -> None:
        """Make a call in another thread, and all later calls, raise DaemonDownError."""
        self._closed = True
        self._drop_kept()
        current = self._current
        sock = current.sock if current is not None else None
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):  # the peer may have closed it already
                sock.shutdown(socket.SHUT_RDWR)

    def event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Route an event of a place of the local channel. Return {messages, refused}."""
        return self._call("POST", "/v1/events", body=event)

    def accept(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message. Return {message_id, agent, session, seq, duplicate}."""
        return self._call("POST", "/v1/messages", body=message)

    def accept_and_wait(
        self,
        message: Mapping[str, Any],
        wait_s: float,
        on_accepted: Callable[[dict[str, Any]], object],
        after: int | None = None,
    ) -> MailboxEntry | None:
        """Send a message and wait for its answer, as `accept` and one `wait_reply` would, in one call.

        `on_accepted` is called with what `accept` returns, as soon as the message is stored; an error after that call is
        about the wait alone.
        """
        wait = min(wait_s, _POLL_S)
        query = {"wait_s": f"{wait:.3f}"} | ({"after": str(after)} if after is not None else {})
        found = self._call("POST", "/v1/messages", query=query, body=message, wait_s=wait, first=on_accepted)
        return _entry(found["entry"]) if found["entry"] is not None else None

    def wait_reply(
        self, agent: str, session: str, message_id: str, wait_s: float, after: int | None = None
    ) -> MailboxEntry | None:
        """Long-poll once (at most 50 s) for the answer to a message; with the cursor `after`, also for what precedes the answer."""
        wait = min(wait_s, _POLL_S)
        query = {"agent": agent, "session": session, "message_id": message_id, "wait_s": f"{wait:.3f}"}
        query |= {"after": str(after)} if after is not None else {}
        entry = self._call("GET", "/v1/replies", query=query, wait_s=wait)["entry"]
        return _entry(entry) if entry is not None else None

    def read_mailbox(self, name: str, after: int, limit: int, wait_s: float = 0.0) -> list[MailboxEntry]:
        """Return the entries above a cursor, oldest first. If there are none, long-poll once (at most 50 s)."""
        wait = min(wait_s, _POLL_S)
        query = {"after": str(after), "limit": str(limit), "wait_s": f"{wait:.3f}"}
        return [
            _entry(entry)
            for entry in self._call("GET", f"/v1/mailbox/{_part(name)}", query=query, wait_s=wait)["entries"]
        ]

    def status(self) -> dict[str, Any]:
        """Return the status report with its live part."""
        return self._call("GET", "/v1/status")

    def live(self) -> dict[str, Any]:
        """Return what only the daemon's process knows. It answers from memory, even when no file can be read."""
        return self._call("GET", "/v1/live")

    def watch(self, query: Mapping[str, str]) -> Generator[dict[str, Any]]:
        """Yield the event stream until the daemon ends (LostAnswerError) or the caller closes it.

        `query` may have session (A/S), agent, message and level. The first event is {"event": "watching"}.
        """
        target = f"/v1/events?{urlencode(query)}" if query else "/v1/events"
        connection = _UnixConnection(self._path, self._answer_s)
        try:
            connection.connect()
            connection.request("GET", target)
            response = connection.getresponse()
            if response.status != http.client.OK:
                _unwrap(response.status, response.read())
            while line := response.readline():
                if line.strip():
                    yield cast("dict[str, Any]", json.loads(line))
        except TimeoutError as error:
            raise DaemonSilentError(f"the daemon on {self._path} sends nothing any more.") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LostAnswerError("the daemon ended.") from error
        finally:
            connection.close()
        raise LostAnswerError("the daemon ended.")

    def sessions(self) -> list[dict[str, Any]]:
        """Return a summary of every session."""
        return cast("list[dict[str, Any]]", self._call("GET", "/v1/sessions")["sessions"])

    def session(self, agent: str, session: str) -> dict[str, Any]:
        """Return one session's report."""
        return self._call("GET", f"/v1/sessions/{_part(agent)}/{_part(session)}")

    def reload(self) -> dict[str, Any]:
        """Have the daemon read its configuration again; return what is in force, and what needs a restart."""
        return self._call("POST", "/v1/reload", body={})

    def deploy(self, word: str = "", body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Begin a deploy, or `abort` or `rollback` it; return the state of slots."""
        return self._call("POST", f"/v1/deploy/{word}" if word else "/v1/deploy", body=body or {})

    def execute(self, verb: AnyVerb) -> dict[str, Any]:
        """Have the daemon carry out an operator's verb, and return its result."""
        from daemon.core.verb import Verb  # noqa: PLC0415 - most calls carry out none

        path, body = verb.route, verb.as_json()
        if "{" in path and isinstance(verb, Verb):
            names = {"{agent}": _part(verb.agent), "{session:path}": _part(verb.session)}
            for placeholder, name in names.items():
                path = path.replace(placeholder, name)
            del body["agent"], body["session"]
        return self._call("POST", path, body=body, wait_s=verb.wait_s)

    def dead_letters(
        self,
        session: tuple[str, str] | None = None,
        letter_id: str | None = None,
        limit: int = 100,
        *,
        code: str | None = None,
        oldest_first: bool = False,
    ) -> dict[str, Any]:
        """Return the newest open dead letters, or the oldest, of one session or of all."""
        query = {"limit": str(limit), **({"id": letter_id} if letter_id is not None else {})}
        query |= {"order": "oldest"} if oldest_first else {}
        query |= {"code": code} if code is not None else {}
        if session is not None:
            query |= {"agent": session[0], "session": session[1]}
        return self._call("GET", "/v1/dead", query=query)

    def dead_letter(self, agent: str, session: str, letter_id: str) -> dict[str, Any]:
        """Return everything known about one dead letter."""
        return self._call("GET", "/v1/dead/show", query={"agent": agent, "session": session, "id": letter_id})

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        wait_s: float = 0.0,
        first: Callable[[dict[str, Any]], object] | None = None,
    ) -> dict[str, Any]:
        """Make one call and return its result. `first`, if given, gets the first of two results as soon as it is there."""
        content = json.dumps(body).encode() if body is not None else None
        target = f"{path}?{urlencode(query)}" if query else path
        connection = self._current = self._connection(self._answer_s + wait_s)
        keep = False
        try:
            if connection.sock is None:
                connection.connect()
            if self._closed:  # checked after connecting, so that `close` either finds the socket or is noticed here
                raise DaemonDownError("the call was ended.")
            # The daemon may refuse before it has read the whole body, and close. Its answer can still be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status = response.status
            if first is not None and status == http.client.OK:
                first(_unwrap(status, response.readline()))
            answer = response.read()
            keep = not response.will_close
        except TimeoutError as error:
            raise DaemonSilentError(f"the daemon on {self._path} did not answer in time.") from error
        except (OSError, http.client.HTTPException) as error:
            raise LostAnswerError("the daemon ended before it answered.") from error
        finally:
            self._current = None
            if keep and not self._closed:
                self._kept = connection, time.monotonic()
            else:
                connection.close()
        if first is not None and status == http.client.OK and not answer:
            return {"entry": None}  # an older daemon does not wait
        return _unwrap(status, answer)

    def _connection(self, timeout_s: float) -> _UnixConnection:
        """Return the kept connection while it is fresh and its peer has not closed it, else a new one."""
        kept, self._kept = self._kept, None
        if kept is not None:
            connection, since = kept
            if connection.reuse(timeout_s) and time.monotonic() - since < _KEEP_S:
                return connection
            connection.close()
        return _UnixConnection(self._path, timeout_s)

    def _drop_kept(self) -> None:
        kept, self._kept = getattr(self, "_kept", None), None
        if kept is not None:
            kept[0].close()


def _unwrap(status: int, content: bytes) -> dict[str, Any]:
    try:
        answer = cast("object", json.loads(content))
    except ValueError as error:
        raise DaemonSilentError(f"the daemon's answer is not JSON (status {status}).") from error
    if isinstance(answer, dict):
        envelope = cast("dict[str, Any]", answer)
        if envelope.get("ok") is True:
            return cast("dict[str, Any]", envelope["result"])
        fault = envelope.get("error")
        if isinstance(fault, dict):
            named = cast("dict[str, Any]", fault)
            raise RemoteError(str(named.get("code")), str(named.get("message")), hint=str(envelope.get("fix", "")))
    raise DaemonSilentError(f"the daemon's answer is not an envelope (status {status}).")


def _entry(values: Mapping[str, Any]) -> MailboxEntry:
    from daemon.store.mailbox import MailboxEntry  # noqa: PLC0415 - most calls return none

    return MailboxEntry(**{name: values[name] for name in MailboxEntry.__dataclass_fields__ if name in values})


def _part(name: str) -> str:
    """Return the name as one path component: whatever it contains, it cannot select another route."""
    return quote(name, safe="")
