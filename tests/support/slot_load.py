"""Senders on a host with two slots: what they sent, and whether each message was answered once."""

import threading
import time
from collections import Counter
from typing import Final, Self

from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError
from tests.support.daemon import eventually
from tests.support.slot_host import SlotHost

_GIVE_UP_S: Final = 120.0  # only ends a hang
# What a host whose disk is slow answers: the sender repeats, as with a daemon that is away.
_LATER: Final = frozenset({"FILE_BUSY", "READ_DEADLINE"})


def is_taken(host: SlotHost, name: str, *, agent: str, session: str) -> bool:
    """Send a message whose id and text are `name`; return whether the host took it. False: it is to be repeated."""
    try:
        host.bus.post(name, agent=agent, session=session, id=name)
    except (DaemonDownError, DaemonSilentError):
        return False
    except RemoteError as error:
        if error.remote_code not in _LATER:
            raise
        return False
    return True


class Load:
    """Senders of one session each that send one message after the other, and repeat one that was not taken, with its id."""

    def __init__(self, host: SlotHost, sessions: int, prefix: str = "") -> None:
        self._host, self._prefix = host, prefix
        self.sent: list[str] = []
        self.given_up: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(f"load{n}",)) for n in range(sessions)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, session: str) -> None:
        number = 0
        while not self._over.wait(0.25):
            number += 1
            name = f"{self._prefix}{session}-{number}"
            deadline = time.monotonic() + _GIVE_UP_S
            while not self._try(session, name):  # between two daemons nobody listens: the sender repeats
                if self.given_up or time.monotonic() > deadline:
                    self.given_up.append(name)
                    return
                time.sleep(0.02)
            self.sent.append(name)

    def _try(self, session: str, name: str) -> bool:
        try:
            return is_taken(self._host, name, agent="echo", session=session)
        except RemoteError as error:  # `check` tells it
            self.given_up.append(f"{name}: {error.remote_code}: {error}")
            return False

    def check(self, after: int = 0) -> None:
        """Wait for every answer; each message has exactly one. `after`: the mailbox's cursor before the load."""

        def answers() -> Counter[str]:
            return Counter(str(one["in_reply_to"]) for one in self._host.bus.entries(after=after))

        assert self.given_up == []
        eventually("every answer", lambda: set(self.sent) <= answers().keys(), 60)
        found = answers()
        assert {name: found[name] for name in self.sent if found[name] != 1} == {}
