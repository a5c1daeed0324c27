"""Clients that never give up, and the account of what became of every message they got a yes for.

A message counts as accepted when a daemon said so. `account` reads the files and the receiver once all is over: each
accepted message is answered once, or failed with a reason, or lost; a post that came twice is doubled unless the daemon
was killed or frozen in between (then its first receipt was in doubt, and the channel's policy is to send again).
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx

from daemon.api.client import ControlClient
from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError
from schema.connect import open_reader
from tests.faults.talk import Person, faults_of_talk

MAILBOX: Final = {"channel_type": "local", "platform_id": "load"}
HOOK: Final = {"channel_type": "webhook", "platform_id": "work"}
_DIED: Final = (DaemonDownError, DaemonSilentError, httpx.TransportError, ConnectionError)

_LATER: Final = frozenset({"STORAGE", "HOST_TROUBLE", "FILE_BUSY"})  # refusals that say: send it again

Key = tuple[str, str, str]  # agent, session, message


@dataclass(slots=True)
class Receiver:
    """A real HTTP receiver: what it took, when, by idempotency key. A seeded part of the posts is refused first."""

    url: str
    posts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: int = 0


@contextmanager
def receiver(seed: int, refuse: float = 0.05) -> Iterator[Receiver]:
    """Serve on a loopback port for as long as the block runs."""
    rng, lock = random.Random(seed), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with contextlib.suppress(ConnectionError):
                body = self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    status = 503 if rng.random() < refuse else 200
                    if status == 200:
                        found.posts[self.headers["idempotency-key"]].append(time.monotonic())
                        found.bodies[self.headers["idempotency-key"]] = json.loads(body)
                    else:
                        found.refused += 1
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A daemon killed in mid-post breaks its connection; that is what we are here for."""

    server = Server(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_address[1]}/reply")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Load:
    """Sends to the sessions in turn from threads of its own, `per_second` in all, until `stop`."""

    def __init__(
        self, socket: Path, sessions: list[tuple[str, str]], *, per_second: float, person: Person, threads: int = 3
    ) -> None:
        self._socket = socket
        self.person = person
        self._sessions = sessions
        self._pause = threads / per_second
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.accepted: dict[Key, dict[str, str]] = {}
        self.trouble: list[str] = []
        self._threads = [threading.Thread(target=self._send, args=(number, threads)) for number in range(threads)]

    def start(self) -> None:
        self.person.start()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Begin nothing new; every message begun is pressed until it is accepted."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout_s)
            if thread.is_alive():
                self.trouble.append("a client could not place its last message")

    def _send(self, number: int, step: int) -> None:
        count, client = number, ControlClient(self._socket)
        while not self._over.is_set():
            agent, session = self._sessions[count % len(self._sessions)]
            # Each session's answers go to both channels in turn.
            place = (MAILBOX, HOOK)[(count // len(self._sessions)) % 2]
            self._insist(client, agent, session, f"m{count}", place)
            count += step
            self._over.wait(self._pause)
        client.close()

    def _insist(self, client: ControlClient, agent: str, session: str, identity: str, place: dict[str, str]) -> None:
        deadline = time.monotonic() + 120
        message = {"agent": agent, "session": session, "id": identity, "content": {"text": identity}, "address": place}
        while time.monotonic() < deadline:
            try:
                client.accept(message)
            except _DIED:
                time.sleep(0.05)
            except RemoteError as error:
                if error.remote_code not in _LATER:
                    self.trouble.append(f"{identity}: {type(error).__name__}: {error}")
                time.sleep(0.2)
            except Exception as error:
                self.trouble.append(f"{identity}: {type(error).__name__}: {error}")
                time.sleep(0.2)
            else:
                with self._lock:
                    self.accepted[agent, session, identity] = place
                return
        self.trouble.append(f"{identity} was never accepted")


@dataclass(slots=True)
class Account:
    """The sum. `repeated` posts were in doubt and sent again; `doubled` ones were not in doubt."""

    accepted: int = 0
    answered: int = 0
    questions: int = 0
    dead: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])  # of the dead letters
    lost: list[str] = field(default_factory=list[str])
    doubled: list[str] = field(default_factory=list[str])
    repeated: int = 0
    tries: int = 0


def account(data: Path, load: Load, posted: Receiver, doubts: list[tuple[float, float]]) -> Account:
    """Count. `doubts`: spans of monotonic time in which the daemon was killed or frozen. Nothing may run any more."""
    answers = _answers(data, posted)
    rows = {key: row for pair in {key[:2] for key in load.accepted} for key, row in _rows(data, *pair).items()}
    found = Account(accepted=len(load.accepted), questions=load.person.questions)
    found.lost, found.doubled = faults_of_talk(data, posted.bodies, load.person)
    for key, place in load.accepted.items():
        row, seen = rows.get(key), answers.get(key, set())
        found.tries += row["tries"] if row else 0
        name = "/".join(key)
        if len(seen) > 1:
            found.doubled.append(f"{name}: answered by {sorted(seen)}")
        if row is None or row["status"] not in ("completed", "failed"):
            found.lost.append(f"{name}: {row and row['status']}")
        elif row["status"] == "failed" and not row["reason"]:
            found.lost.append(f"{name}: failed without a reason")
        elif not seen:
            found.lost.append(f"{name}: {row['status']}, and nothing came to {place['channel_type']}")
        elif row["status"] == "failed":
            found.dead += 1
            found.reasons[row["reason"]] += 1
        else:
            found.answered += 1
    for key, times in posted.posts.items():
        for first, second in pairwise(times):
            if any(begin < second and end > first for begin, end in doubts):
                found.repeated += 1
            else:
                found.doubled.append(f"{key}: posted again after {second - first:.2f} s, with no doubt between")
    return found


def _rows(data: Path, agent: str, session: str) -> dict[Key, dict[str, Any]]:
    with open_reader(data / "sessions" / agent / session / "in" / "inbound.db") as db:
        found = db.all(
            "SELECT id, status, coalesce(tries, 0) AS tries, (SELECT max(h.detail) FROM message_history AS h"
            " WHERE h.message_id = m.id AND h.event = 'failed') AS reason FROM messages_in AS m"
        )
    return {(agent, session, row["id"]): dict(row) for row in found}


def _answers(data: Path, posted: Receiver) -> dict[Key, set[str]]:
    """Which outbound rows answered each message, at both ends."""
    found: dict[Key, set[str]] = defaultdict(set)
    with open_reader(data / "mailbox.db") as db:
        for row in db.all("SELECT agent, session, message_out_id, in_reply_to, content FROM mailbox WHERE final = 1"):
            for message in _answered(row["in_reply_to"], json.loads(row["content"])):
                found[row["agent"], row["session"], message].add(row["message_out_id"])
    for body in posted.bodies.values():
        for message in _answered(body["in_reply_to"], body["content"]) if body["final"] else ():
            found[body["agent"], body["session"], message].add(body["id"])
    return found


def _answered(reply: str | None, content: Any) -> set[str]:
    several = content.get("answers", []) if isinstance(content, dict) else []
    return {*several, *([reply] if reply else [])}
