"""A unix socket before dockerd that spoils single calls: an error, nonsense, a delay or a cut, for the calls that match."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

_HEAD_END: Final = b"\r\n\r\n"
Act = Callable[[socket.socket], None]


def answer(status: int, body: str = '{"message": "no such luck"}') -> Act:
    """Answer with this instead of the engine."""

    def act(near: socket.socket) -> None:
        data = body.encode()
        head = f"HTTP/1.1 {status} Spoiled\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        near.sendall(head.encode() + data)

    return act


def cut(_: socket.socket) -> None:
    """Close the connection without an answer; the engine never sees the call."""


@dataclass(slots=True)
class Spoiled:
    """What happens to the calls whose `METHOD path` matches. `passes`: the engine carries them out first. `left`: how often."""

    pattern: re.Pattern[str]
    act: Act | None = None
    passes: bool = False
    left: int = 1_000_000
    until: threading.Event | None = None  # the call is held up until this is set
    hit: threading.Event = field(default_factory=threading.Event)


class EngineProxy:
    """`open` listens at `path` and forwards each call to `target`; one connection, one call."""

    def __init__(self, path: Path, target: Path = Path("/var/run/docker.sock")) -> None:
        self.path = path
        self.calls: list[str] = []
        self._target = target
        self._rules: list[Spoiled] = []
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for rule in self._rules:
            if rule.until is not None:
                rule.until.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def spoil(
        self, pattern: str, act: Act | None = None, *, passes: bool = False, left: int = 1_000_000, hold: bool = False
    ) -> Spoiled:
        """Spoil the calls whose `METHOD path` matches from now on. `hold`: each waits until the rule's `until` is set."""
        rule = Spoiled(re.compile(pattern), act, passes, left, threading.Event() if hold else None)
        self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Spoil nothing any more."""
        rules, self._rules = self._rules, []
        for rule in rules:
            if rule.until is not None:
                rule.until.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as far, contextlib.suppress(OSError):
            with self._lock:
                self._sockets |= {near, far}
            try:
                self._one_call(near, far)
            finally:
                with self._lock:
                    self._sockets -= {near, far}

    def _one_call(self, near: socket.socket, far: socket.socket) -> None:
        data = b""
        while _HEAD_END not in data:
            more = near.recv(65_536)
            if not more:
                return
            data += more
        line, _, rest = data.partition(b"\r\n")
        method, path, _ = line.decode().split(" ", 2)
        call = f"{method} {re.sub(r'^/v[0-9.]+', '', path)}"
        with self._lock:
            self.calls.append(call)
            rule = next((one for one in self._rules if one.left > 0 and one.pattern.search(call)), None)
            if rule is not None:
                rule.left -= 1
        if rule is not None:
            rule.hit.set()
            if rule.until is not None:
                rule.until.wait()
            if rule.act is not None and not rule.passes:
                rule.act(near)
                return
        far.connect(str(self._target))
        head = re.sub(rb"(?im)^Connection:.*\r\n", b"", rest)
        far.sendall(line + b"\r\nConnection: close\r\n" + head)
        threading.Thread(target=_pump, args=(near, far), daemon=True).start()
        if rule is not None and rule.passes and rule.act is not None:
            while far.recv(65_536):
                pass
            rule.act(near)
            return
        _pump(far, near)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
