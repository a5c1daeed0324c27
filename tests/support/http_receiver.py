"""A receiver of webhooks that misbehaves on demand: raw sockets, one thread a connection, every request kept.

What it does to a request is scripted for each session, first come first served; unscripted it answers 200. It knows the
session from the Idempotency-Key, which it peeks at: a request can be reset before a byte of it was read.
"""

import json
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

_HEAD_END: Final = b"\r\n\r\n"
_LONGEST_S: Final = 30.0


@dataclass(slots=True)
class Request:
    """One request that was read: when (epoch seconds), on which connection, its key and body."""

    at: float
    connection: int
    session: str
    key: str
    body: bytes

    @property
    def text(self) -> str:
        return json.loads(self.body)["content"]["text"]


class Connection:
    """One client. `number` counts connections."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number

    def peek_head(self) -> bytes | None:
        """The request's head, still unread in the kernel; None at the end of the connection."""
        deadline = time.monotonic() + _LONGEST_S
        while time.monotonic() < deadline:
            seen = self.sock.recv(65536, socket.MSG_PEEK)
            if not seen:
                return None
            if _HEAD_END in seen:
                return seen.partition(_HEAD_END)[0]
            time.sleep(0.001)  # the rest is on its way; a peek cannot wait for more than there is
        raise AssertionError("half a request head")

    def read(self, head: bytes) -> bytes:
        """The body."""
        length = int(header(head, "content-length"))
        wanted = len(head) + len(_HEAD_END) + length
        got = b""
        while len(got) < wanted:
            chunk = self.sock.recv(wanted - len(got))
            if not chunk:
                raise ConnectionError("the client ended in mid-request")
            got += chunk
        return got[-length:] if length else b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """RST instead of an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def header(head: bytes, name: str) -> str:
    for line in head.decode("latin-1").split("\r\n")[1:]:
        found, _, value = line.partition(":")
        if found.lower() == name:
            return value.strip()
    return ""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to a request. `before`: instead of reading it. `takes`: the receiver acts on it nevertheless."""

    do: Callable[["Receiver", Connection], bool]  # whether the connection may go on
    before: bool = False
    takes: bool = False


@dataclass
class Receiver:
    """`script[session]` is what comes next for it; `taken` counts for each key how often it was acted on."""

    url: str = ""
    script: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    requests: list[Request] = field(default_factory=list)
    resets: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    release: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def of(self, session: str) -> list[Request]:
        return [one for one in self.requests if one.session == session]

    def serve(self, connection: Connection) -> None:
        with suppress(OSError), connection.sock:
            while not self.ended.is_set():
                head = connection.peek_head()
                if head is None:
                    return
                key = header(head, "idempotency-key")
                session = key.split("/")[1]
                fault = self.script[session].pop(0) if self.script[session] else ok()
                if fault.before:
                    self.resets[session] += 1
                else:
                    body = connection.read(head)
                    self.taken[key] += fault.takes
                    self.requests.append(Request(time.time(), connection.number, session, key, body))
                if not fault.do(self, connection):
                    return


def _response(status: int, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + _HEAD_END + body


def ok(**headers: str) -> Fault:
    """200, and the connection stays."""

    def do(receiver: Receiver, connection: Connection) -> bool:
        given = {"x-message-id": f"at-receiver-{len(receiver.requests)}", **headers}
        connection.send(_response(200, b"fine", given))
        return True

    return Fault(do, takes=True)


def status(code: int, *, retry_after: Callable[[], str] | None = None) -> Fault:
    """Another status; `retry_after` is asked when the answer is written."""

    def do(_: Receiver, connection: Connection) -> bool:
        connection.send(_response(code, b"no", {"retry-after": retry_after()} if retry_after is not None else {}))
        return True

    return Fault(do)


def raw(data: bytes, *, takes: bool = False) -> Fault:
    """These bytes, and then the end of the connection."""

    def do(_: Receiver, connection: Connection) -> bool:
        connection.send(data)
        return False

    return Fault(do, takes=takes)


def reset_unread() -> Fault:
    """The connection is reset, and not a byte of the request was read."""
    return Fault(_reset, before=True)


def reset_read(*, takes: bool = True) -> Fault:
    """The whole request is read (and acted on), then the connection is reset."""
    return Fault(_reset, takes=takes)


def _reset(_: Receiver, connection: Connection) -> bool:
    connection.reset()
    return False


def stall(*, takes: bool = False) -> Fault:
    """Read, and no answer until `release`; then a 200, however late."""

    def do(receiver: Receiver, connection: Connection) -> bool:
        receiver.release.wait(_LONGEST_S)
        connection.send(_response(200, b"late", {}))
        return False

    return Fault(do, takes=takes)


def twice() -> Fault:
    """Two answers to one request, on a connection that stays: the second must not pass for the next one's."""

    def do(_: Receiver, connection: Connection) -> bool:
        connection.send(
            _response(200, b"one", {"x-message-id": "first"}) + _response(200, b"", {"x-message-id": "stale"})
        )
        return True

    return Fault(do, takes=True)


def ok_then_close() -> Fault:
    """200 without a word about closing, and the connection is closed: the client may believe that it stays."""

    def do(_: Receiver, connection: Connection) -> bool:
        connection.send(_response(200, b"fine", {}))
        return False

    return Fault(do, takes=True)


def torn() -> Fault:
    """200, and the body ends in its middle."""
    return raw(
        b"HTTP/1.1 200 x\r\ncontent-type: application/json\r\ncontent-length: 500" + _HEAD_END + b'{"id"', takes=True
    )


@contextmanager
def misbehaving() -> Iterator[Receiver]:
    """A receiver on a loopback port, for as long as the block runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    receiver = Receiver(f"http://127.0.0.1:{listener.getsockname()[1]}/reply")
    connections: list[Connection] = []
    threads: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.settimeout(_LONGEST_S)
                connections.append(Connection(sock, len(connections)))
                threads.append(threading.Thread(target=receiver.serve, args=(connections[-1],)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        receiver.release.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for connection in connections:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def place(hook: str = "work") -> dict[str, Any]:
    """The address whose answers go to the hook's receiver."""
    return {"channel_type": "webhook", "platform_id": hook}
