"""The two channels over which a probe sends messages and reads answers: the local channel, and a signed webhook.

The webhook's client and receiver are written after docs/channels.md, and share no code with the channel that they test.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol

AGENT: Final = "probe"
_HOOK: Final = "probe"
_CALL_S: Final = 10.0
_MAX_BODY: Final = 1024**2
_MAX_POSTS: Final = 100


class Caller(Protocol):
    """The part of the control client that a probe uses."""

    def accept(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one message. Return the daemon's reply, with `message_id`."""
        ...

    def read_mailbox(self, name: str, after: int, limit: int, wait_s: float = 0.0) -> list[Any]:
        """Return at most `limit` entries of a mailbox above the cursor `after`."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Way(Protocol):
    """One channel, to the probe agent's session `session` and back."""

    name: str
    session: str

    def send(self, nonce: str) -> str | None:
        """Send a message and return its id. Return None if it was not accepted: the caller may send it again.

        The local way raises the control client's errors instead.
        """
        ...

    def answers(self, message: str) -> list[str]:
        """Return the text of each distinct answer to this message that has arrived."""
        ...


class Local:
    """The control socket and a mailbox."""

    name = "local"
    session = "probe"

    def __init__(self, connect: Callable[[], Caller]) -> None:
        self._connect = connect

    def send(self, nonce: str) -> str | None:
        """Send over the control socket. Raise the control client's errors; never return None."""
        address = {"channel_type": "local", "platform_id": AGENT}
        message = {"agent": AGENT, "session": self.session, "content": {"text": nonce}, "address": address}
        client = self._connect()
        try:
            return str(client.accept(message)["message_id"])
        finally:
            client.close()

    def answers(self, message: str) -> list[str]:
        """Return the content of the mailbox entries that answer this message. Return none if they cannot be read."""
        client = self._connect()
        try:
            return [str(one.content) for one in client.read_mailbox(AGENT, 0, 1000) if one.in_reply_to == message]
        except Exception:  # noqa: BLE001 - the daemon may be starting, or has ended: the caller repeats until its deadline
            return []
        finally:
            client.close()


class Webhook:
    """A webhook client, and a receiver for the answers on a loopback port. The caller must close it."""

    name = "webhook"
    session = "hook"

    def __init__(self) -> None:
        self._secret, self._reply_secret = secrets.token_hex(16), secrets.token_hex(16)
        self._port = _free_port()
        self._received: dict[str, tuple[str, str]] = {}  # {idempotency key: (id of the answered message, body)}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._receive))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="probe's receiver", daemon=True)
        self._thread.start()
        self.forged = 0  # posts whose signature was wrong

    def configuration(self) -> list[str]:
        """Return the lines of clawbus.toml that define the hook."""
        receiver = f"http://127.0.0.1:{self._server.server_port}/answers"
        return [
            "[channels.webhook]", f'listen = "127.0.0.1:{self._port}"',
            f"[channels.webhook.hooks.{_HOOK}]", f'agent = "{AGENT}"', f'session = "{self.session}"', 'kind = "chat"',
            f'secret = "{self._secret}"', f'reply_url = "{receiver}"', f'reply_secret = "{self._reply_secret}"',
        ]  # fmt: skip

    def send(self, nonce: str) -> str | None:
        """Post a signed request. Its id is the nonce, so sending it again makes no second message."""
        path, at, body = f"/hooks/{_HOOK}", str(int(time.time())), nonce.encode()
        signed = f"{at}\n{path}\n{nonce}\n".encode() + body
        headers = {
            "content-type": "text/plain", "x-clawbus-id": nonce, "x-clawbus-timestamp": at,
            "x-clawbus-signature": _signature(self._secret, signed),
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_CALL_S)
        try:
            connection.request("POST", path, body, headers)
            with connection.getresponse() as response:
                response.read(_MAX_BODY)
                return nonce if response.status == http.HTTPStatus.ACCEPTED else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def answers(self, message: str) -> list[str]:
        """Return the bodies of the posts that answer this message. Posts with the same idempotency key count as one."""
        return [body for about, body in list(self._received.values()) if about == message]

    def _receive(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Store a posted answer. Return False if its signature is wrong.

        Raise ValueError or AttributeError if it is not a JSON object.
        """
        signed = headers.get("x-clawbus-timestamp", "").encode("latin-1", "replace") + b"." + body
        if not hmac.compare_digest(_signature(self._reply_secret, signed), headers.get("x-clawbus-signature", "")):
            self.forged += 1
            return False
        if len(self._received) < _MAX_POSTS:
            text = body.decode("utf-8", "replace")
            self._received[headers.get("idempotency-key", "")] = (str(json.loads(text).get("in_reply_to")), text)
        return True

    def close(self) -> None:
        """Stop the receiver."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_CALL_S)


def _handler(receive: Callable[[Mapping[str, str], bytes], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Pass an answer to `receive`. Reply 200 if that accepts it, else 401."""
            accepted = False
            with suppress(ValueError, AttributeError):
                size = min(_MAX_BODY, int(self.headers.get("content-length", "0")))
                accepted = receive({name.lower(): value for name, value in self.headers.items()}, self.rfile.read(size))
            self.send_response(200 if accepted else 401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Write nothing."""

    return Handler


def _signature(secret: str, signed: bytes) -> str:
    return f"sha256={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def _free_port() -> int:
    """Return a loopback port that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
