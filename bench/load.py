"""An even load on many sessions through the control socket, and the account of what was sent and what came back.

A message's time runs from the instant at which it was due to be sent, so a bus that makes its senders wait is not flattered.
Whatever is not answered exactly once is named.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, cast

from bench.bus import session_name
from bench.stage import ECHO, BenchFailed, BenchStage
from schema.errors import ClawbusError

MAILBOX: Final = "bench"
_SENDERS: Final = 8
_POLL_S: Final = 1.0
_PAGE: Final = 1000


@dataclass(slots=True)
class Account:
    """Instants of time.monotonic() by message id. `answers` has every answer, so that a second one shows."""

    due: dict[str, float] = field(default_factory=dict[str, float])
    answers: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    refused: list[str] = field(default_factory=list[str])

    def latencies(self) -> list[float]:
        """Milliseconds of every answered message."""
        return [(self.answers[one][0] - due) * 1000 for one, due in self.due.items() if one in self.answers]

    def lost(self) -> list[str]:
        """Accepted, and never answered."""
        return [one for one in self.due if one not in self.answers]

    def doubled(self) -> list[str]:
        """Answered more than once."""
        return [one for one, times in self.answers.items() if len(times) > 1]


def schedule(sessions: int, rate: float, seconds: float) -> list[tuple[float, int]]:
    """(seconds from the start, session) of every message: each session `rate` times a second, spread evenly."""
    spacing = 1 / rate
    streams = [
        [(spacing * (number / sessions + turn), number) for turn in range(round(seconds * rate))]
        for number in range(sessions)
    ]
    return list(heapq.merge(*streams))


class Load:
    """One run of a load: senders and a reader in threads of their own. Use `run` once."""

    def __init__(self, stage: BenchStage) -> None:
        self._stage = stage
        self.account = Account()
        self._done = threading.Event()
        self._cursor = 0

    def run(self, plan: Sequence[tuple[float, int]], prefix: str, answer_s: float) -> Account:
        """Send by the plan, then wait up to `answer_s` seconds for what is missing. Raises BenchFailed for a dead reader."""
        reader = threading.Thread(target=self._read, name="mailbox reader")
        reader.start()
        try:
            with ThreadPoolExecutor(_SENDERS) as senders:
                sent = self._send_all(plan, prefix, senders)
            for one in sent:
                one.result()
            deadline = time.monotonic() + answer_s
            while self.account.lost() and time.monotonic() < deadline and reader.is_alive():
                time.sleep(0.01)
        finally:
            self._done.set()
            reader.join()
        return self.account

    def _send_all(
        self, plan: Sequence[tuple[float, int]], prefix: str, senders: ThreadPoolExecutor
    ) -> list[Future[None]]:
        began = time.monotonic()
        sent: list[Future[None]] = []
        for number, (offset, session) in enumerate(plan):
            due = began + offset
            time.sleep(max(0.0, due - time.monotonic()))
            sent.append(senders.submit(self._send, f"{prefix}-{number}", session, due))
        return sent

    def _send(self, message_id: str, session: int, due: float) -> None:
        try:
            with self._stage.client() as client:
                client.accept(
                    {
                        "agent": ECHO,
                        "session": session_name(session),
                        "id": message_id,
                        "content": {"text": message_id},
                        "address": {"channel_type": "local", "platform_id": MAILBOX},
                    }
                )
        except ClawbusError as error:
            self.account.refused.append(f"{message_id}: {error}")
            return
        self.account.due[message_id] = due

    def _read(self) -> None:
        while not self._done.is_set():
            with self._stage.client() as client:
                try:
                    entries = client.read_mailbox(MAILBOX, self._cursor, _PAGE, _POLL_S)
                except ClawbusError as error:
                    self.account.refused.append(f"mailbox: {error}")
                    return
            now = time.monotonic()
            for entry in entries:
                self._cursor = entry.cursor
                for message_id in answered(entry.in_reply_to, entry.content):
                    self.account.answers.setdefault(message_id, []).append(now)


def answered(in_reply_to: str | None, content: str) -> set[str]:
    """The ids that an answer answers: the one it replies to and those that it names."""
    parsed: object = json.loads(content)
    named: object = cast("dict[str, object]", parsed).get("answers", []) if isinstance(parsed, dict) else []
    return {str(one) for one in cast("list[object]", named)} | ({in_reply_to} if in_reply_to is not None else set())


def check(account: Account, what: str) -> None:
    """Raise BenchFailed unless every accepted message was answered exactly once and none was refused."""
    faults = {"lost": account.lost(), "answered twice": account.doubled(), "refused": account.refused}
    found = [f"{len(ids)} {name} ({', '.join(ids[:3])})" for name, ids in faults.items() if ids]
    if found:
        raise BenchFailed(f"{what}: {'; '.join(found)}")
