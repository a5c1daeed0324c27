"""Load on a bus that is deployed: many senders that repeat what was not taken, and an account of what came back.

Runs beside the daemon, as its user, on nothing but clawbus and what clawbus imports:

    python deploy_load.py DATA_DIR HOOK_PORT REPORT

It sends until REPORT's folder has a file `stop`, waits for the answers, and writes REPORT as JSON. A message's latency runs
from its first attempt to the yes that it is stored.
"""

import hashlib
import hmac
import json
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx

from daemon.api.client import ControlClient
from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError

LOCAL: Final = 12
HOOKED: Final = 6
LONG: Final = 2
SECRET: Final = "the secret of this load"
MAILBOX: Final = "load"
_PAUSE_S: Final = 0.4
_GIVE_UP_S: Final = 60.0
_ANSWERS_S: Final = 120.0


class Account:
    """What was accepted, how long that took, and what could not be sent. Used by every sender's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.accepted: list[dict[str, Any]] = []
        self.given_up: list[str] = []

    def send(self, kind: str, name: str, attempt: Callable[[], bool]) -> None:
        """Repeat the attempt until it succeeds; note when it began and how long it took."""
        began, at = time.monotonic(), time.time()
        while not attempt():
            if time.monotonic() - began > _GIVE_UP_S:
                with self._lock:
                    self.given_up.append(name)
                return
            time.sleep(0.02)  # between two daemons nobody listens
        with self._lock:
            self.accepted.append({"kind": kind, "id": name, "at": at, "took_s": time.monotonic() - began})


class Receiver:
    """The address of the hook's answers: which posts and which distinct keys each message got. One answer may be to several."""

    def __init__(self) -> None:
        self.posts: Counter[str] = Counter()
        self.keys: dict[str, set[str]] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for name in answered_by(body["in_reply_to"], body["content"]):
                    receiver.posts[name] += 1
                    receiver.keys.setdefault(name, set()).add(str(self.headers["idempotency-key"]))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 8651), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def take_local(client: ControlClient, agent: str, session: str, name: str) -> bool:
    """Send over the control socket. Return whether it was taken."""
    message = {
        "agent": agent, "session": session, "id": name, "content": {"text": name},
        "address": {"channel_type": "local", "platform_id": MAILBOX},
    }  # fmt: skip
    try:
        client.accept(message)
    except (DaemonDownError, DaemonSilentError, RemoteError):
        return False
    return True


def take_hook(client: httpx.Client, port: int, session: str, name: str) -> bool:
    """Send a signed request to the hook. Return whether it was taken."""
    path, body, stamp = f"/hooks/load/{session}", json.dumps({"text": name}).encode(), str(int(time.time()))
    signed = f"{stamp}\n{path}\n{name}\n".encode() + body
    headers = {
        "content-type": "application/json", "x-clawbus-timestamp": stamp, "x-clawbus-id": name,
        "x-clawbus-signature": f"sha256={hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()}",
    }  # fmt: skip
    try:
        return client.post(f"http://127.0.0.1:{port}{path}", content=body, headers=headers).is_success
    except httpx.HTTPError:
        return False


def run(data: Path, port: int, folder: Path) -> dict[str, Any]:
    """Send until `stop` is there, wait for the answers, and return the account."""
    account, receiver, over = Account(), Receiver(), threading.Event()

    def talk(number: int, agent: str, kind: str) -> None:
        count, session = 0, f"{kind}{number}"
        with ControlClient(data / "control.sock") as client:
            while not over.wait(_PAUSE_S):
                count += 1
                name = f"{session}-{count}"
                account.send(kind, name, lambda name=name: take_local(client, agent, session, name))
                while kind == "long" and not over.is_set() and not answered(client, session, name):
                    over.wait(0.2)

    def hook(number: int) -> None:
        count = 0
        with httpx.Client(timeout=10, trust_env=False) as client:
            while not over.wait(_PAUSE_S):
                count += 1
                name = f"hook{number}-{count}"
                account.send("hook", name, lambda name=name: take_hook(client, port, f"hook{number}", name))

    threads = [threading.Thread(target=talk, args=(number, "echo", "local")) for number in range(LOCAL)]
    threads += [threading.Thread(target=talk, args=(number, "slow", "long")) for number in range(LONG)]
    threads += [threading.Thread(target=hook, args=(number,)) for number in range(HOOKED)]
    for thread in threads:
        thread.start()
    while not (folder / "stop").exists():
        time.sleep(0.2)
    over.set()
    for thread in threads:
        thread.join()
    return {
        "accepted": account.accepted, "given_up": account.given_up, **answers(data, account, receiver),
        "attempts": second_attempts(data),
    }  # fmt: skip


def answered(client: ControlClient, session: str, name: str) -> bool:
    """Return whether a long turn's answer is there, waiting up to five seconds for it."""
    with suppress(DaemonDownError, DaemonSilentError, RemoteError):
        return client.wait_reply("slow", session, name, 5.0) is not None
    return False


def answers(data: Path, account: Account, receiver: Receiver) -> dict[str, Any]:
    """Wait for every answer; return those that are lost, those that came twice, and what was sent again under its key."""
    hooked = {one["id"] for one in account.accepted if one["kind"] == "hook"}
    others = {one["id"] for one in account.accepted} - hooked
    deadline = time.monotonic() + _ANSWERS_S
    local: Counter[str] = Counter()
    while time.monotonic() < deadline:
        local = Counter(read_mailbox(data))
        if others <= local.keys() and hooked <= receiver.posts.keys():
            break
        time.sleep(0.5)
    return {
        "lost": sorted((others - local.keys()) | (hooked - receiver.posts.keys())),
        "doubled": sorted(
            [name for name in others if local[name] > 1]
            + [name for name, keys in receiver.keys.items() if len(keys) > 1]
        ),
        "sent_again": sorted(name for name, keys in receiver.keys.items() if receiver.posts[name] > len(keys)),
    }


def answered_by(in_reply_to: str | None, content: dict[str, Any]) -> set[str]:
    """Return the messages that an answer answers."""
    return {str(in_reply_to), *content.get("answers", ())}


def read_mailbox(data: Path) -> list[str]:
    """Return which message each entry of the mailbox answers."""
    with suppress(DaemonDownError, DaemonSilentError, RemoteError), ControlClient(data / "control.sock") as client:
        found: list[str] = []
        after = 0
        while page := client.read_mailbox(MAILBOX, after, 1000):
            for entry in page:
                found += answered_by(entry.in_reply_to, json.loads(entry.content))
            after = page[-1].cursor
        return found
    return []


def second_attempts(data: Path) -> list[dict[str, Any]]:
    """Return each message that a container had to begin again, or that did not complete at its first attempt."""
    found: list[dict[str, Any]] = []
    for file in sorted((data / "sessions").glob("*/*/inbound.db")):
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
            rows = db.execute(
                "SELECT message_id, count(*), group_concat(outcome) FROM attempts GROUP BY message_id"
            ).fetchall()
        found += [
            {"id": name, "attempts": count, "outcomes": outcomes}
            for name, count, outcomes in rows
            if count != 1 or outcomes != "completed"
        ]
    return found


def main() -> None:
    """Write the account beside the file that ended the load."""
    data, port, report = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    found = run(data, port, report.parent)
    report.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
