"""Where the webhook channel's answers arrive: a small HTTP server on the loopback that checks each signature.

It stands for somebody else's service, so it knows nothing of the bus but what an outgoing request promises.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

_MAX_BODY: Final = 1_000_000


def sign(secret: str, head: str, body: bytes) -> str:
    """`sha256=` and the hexadecimal HMAC-SHA256 of a head and the body: docs/channels.md has the head of each direction."""
    return "sha256=" + hmac.new(secret.encode(), head.encode() + body, hashlib.sha256).hexdigest()


class Receiver:
    """Collects what is posted to it. Use as a context manager; `url` is where."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._changed = threading.Condition()
        self._received: dict[str, dict[str, Any]] = {}  # by Idempotency-Key: a repeated request is the same answer
        self.refused: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._take))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)

    @property
    def url(self) -> str:
        """Where answers are to be posted."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/answers"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def wait_new(self, known: int, timeout_s: float) -> list[dict[str, Any]]:
        """The answers beyond the first `known`; waits for one up to `timeout_s` seconds. Empty when none came."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(self._received) <= known:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return list(self._received.values())[known:]

    def _take(self, headers: dict[str, str], body: bytes) -> int:
        expected = sign(self._secret, headers.get("x-clawbus-timestamp", "") + ".", body)
        if not hmac.compare_digest(headers.get("x-clawbus-signature", "").encode(), expected.encode()):
            self.refused.append("wrong signature")
            return 401
        key = headers.get("idempotency-key", "")
        if not key:
            self.refused.append("no Idempotency-Key")
            return 400
        with self._changed:
            self._received.setdefault(key, json.loads(body))
            self._changed.notify_all()
        return 200


def _handler(take: Callable[[dict[str, str], bytes], int]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = min(int(self.headers.get("Content-Length") or 0), _MAX_BODY)
            body = self.rfile.read(length)
            status = take({name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Quiet: the demo prints its own lines."""

    return Handler
