"""The other side of a webhook: sends signed requests, and runs a receiver that keeps what was posted to it."""

import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def request_signature(secret: str, stamp: str, path: str, message_id: str, body: bytes) -> str:
    """Return the signature of a request to a hook, from docs/channels.md and independent of the product's code."""
    signed = f"{stamp}\n{path}\n{message_id}\n".encode() + body
    return f"sha256={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def signature(secret: str, stamp: str, body: bytes) -> str:
    """Return the signature of an answer, from docs/channels.md and independent of the product's code."""
    digest = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={digest.hexdigest()}"


def post(
    url: str, secret: str, content: object, *, message_id: str, stamp: int | None = None,
    text: bool = False, more: Mapping[str, str] | None = None,
) -> httpx.Response:  # fmt: skip
    """Post a signed request to one of our hooks: JSON, or with `text` plain text. `more` are further headers."""
    body = str(content).encode() if text else json.dumps(content).encode()
    at = str(int(time.time()) if stamp is None else stamp)
    headers = {
        "content-type": "text/plain" if text else "application/json",
        **(more or {}),
        "x-clawbus-timestamp": at,
        "x-clawbus-signature": request_signature(secret, at, httpx.URL(url).path, message_id, body),
        "x-clawbus-id": message_id,
    }
    return httpx.post(url, content=body, headers=headers, timeout=60, trust_env=False)


@dataclass(slots=True)
class Received:
    """One received post: its headers (lower case), its body, and whether the receiver accepted it."""

    headers: dict[str, str]
    body: bytes
    taken: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Receiver:
    """Answers the first `failures` posts with 503 and the others with 200 and an id."""

    url: str
    failures: int = 0
    posts: list[Received] = field(default_factory=list)


@contextmanager
def receiving(failures: int = 0) -> Iterator[Receiver]:
    """Run a receiver on a loopback port for the duration of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken = len(receiver.posts) >= receiver.failures
            receiver.posts.append(Received({k.lower(): v for k, v in self.headers.items()}, body, taken))
            answer = json.dumps({"id": f"at-receiver-{len(receiver.posts)}"}).encode()
            self.send_response(200 if taken else 503)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}/reply", failures)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
