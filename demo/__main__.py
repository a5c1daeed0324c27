"""`python -m demo`, run by `make demo`: the promise, kept before your eyes.

RUNTIME=process|docker says where agents run, AGENT=plain|scripted what the worker is: a program for each turn, or an agent that
speaks the Agent Client Protocol. BASE_IMAGE is what a missing image is built on. Exits with 0 only when every
accepted message was answered.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

import httpx
from rich.console import Console

from daemon.api.client import ControlClient
from daemon.config.models import DEFAULT_IMAGE
from daemon.core.clock import SystemClock
from daemon.inspect.message_life import message_life
from daemon.inspect.question_reading import questions_report
from demo.image import check_docker, ensure_image
from demo.kill import kill_in_mid_turn
from demo.ledger import Ledger, answered_ids
from demo.receiver import Receiver
from demo.senders import MAILBOX, send_local, send_webhook
from demo.setting import AGENTS, ECHO, PLAIN, WORKER, Setting
from demo.stage import DemoFailed, Stage, free_port, poll
from demo.story import Row, check_story, rows_of, short, table_of
from schema.errors import ClawbusError

KILLED_SESSION: Final = "night-shift"
ASKING_SESSION: Final = "day-shift"
LOOK_S: Final = 5.0  # one long-poll
RECEIPT_S: Final = 10.0


class Play:
    """One run of the demo, act by act, on a stage that is ready."""

    def __init__(self, stage: Stage, setting: Setting, receiver: Receiver, timeout_s: float) -> None:
        self._stage = stage
        self._setting = setting
        self._receiver = receiver
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._ledger = Ledger()
        self._names: dict[str, str] = {}
        self._cursor = 0
        self._heard = 0

    def perform(self) -> int:
        """All of it; returns the exit code."""
        self._say(f"starting  a daemon in {self._stage.root}, runtime {self._stage.runtime}")
        pid = self._stage.start()
        self._say(f"ready     daemon {pid}")
        with httpx.Client(timeout=30, trust_env=False) as http, self._stage.client() as client:
            for number in (1, 2, 3):
                self._send_local(ECHO, f"hello-{number % 2}", f"greeting {number}")
            self._say(f"accepted  3 greetings over local, for {ECHO}")
            for number in (1, 2, 3):
                self._send_webhook(http, f"order {number}")
            self._say(f"accepted  3 orders over webhook, for {WORKER}")
            if self._setting.asks:
                self._answer_question()
            doomed = self._send_local(WORKER, KILLED_SESSION, "slow report")
            self._say(f'accepted  "slow report" over local, for {WORKER}')
            incarnation, at = kill_in_mid_turn(self._stage, WORKER, KILLED_SESSION, doomed, self._timeout_s)
            self._say(f'killed    container {short(incarnation)} with SIGKILL while it worked on "slow report"')
            self._send_local(WORKER, KILLED_SESSION, "a question while it is down")
            self._send_webhook(http, "order 4")
            self._say("accepted  a question and an order while it is down")
            self._await_answers(client)
        return self._conclude(doomed, incarnation, at)

    def _answer_question(self) -> None:
        """Send a request for which the agent asks for a permission, and give it."""
        self._send_local(WORKER, ASKING_SESSION, "careful report")
        self._say(f'accepted  "careful report" over local, for {WORKER}')

        def asked() -> dict[str, Any] | None:
            found: list[dict[str, Any]] = questions_report(self._stage.data, SystemClock(), limit=1)["questions"]
            return found[0] if found else None

        question = poll("the agent's question", asked, self._timeout_s)
        self._say(f"asked     {question['text']}")
        self._stage.clawbus("question", "answer", question["id"], "yes")
        self._say("allowed   by clawbus question answer")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.2f} s  {text}", flush=True)

    def _send_local(self, agent: str, session: str, text: str) -> str:
        message_id = send_local(self._stage, agent, session, text)
        self._accepted(message_id, "local", text)
        return message_id

    def _send_webhook(self, http: httpx.Client, text: str) -> None:
        message_id = send_webhook(http, self._setting, f"demo-{text.replace(' ', '-')}", text)
        self._accepted(message_id, "webhook", text)

    def _accepted(self, message_id: str, channel: str, text: str) -> None:
        self._ledger.accept(message_id, channel)
        self._names[message_id] = text

    def _await_answers(self, client: ControlClient) -> None:
        """Until nothing is missing or the time is over. Both ways of waiting are woken by what they wait for."""
        deadline = time.monotonic() + self._timeout_s
        while self._ledger.missing() and time.monotonic() < deadline:
            before = len(self._ledger.answers)
            self._look(client, LOOK_S)
            if len(self._ledger.answers) > before:
                self._say(f"answered  {len(self._ledger.answers)} of {len(self._ledger.accepted)}")

    def _look(self, client: ControlClient, wait_s: float) -> None:
        if self._ledger.missing("local"):
            self._read_mailbox(client, wait_s)
        if self._ledger.missing("webhook"):
            self._read_receiver(wait_s)

    def _read_mailbox(self, client: ControlClient, wait_s: float) -> None:
        for entry in client.read_mailbox(MAILBOX, self._cursor, 100, wait_s):
            self._cursor = entry.cursor
            if entry.final:  # a question in the middle of a turn answers nothing
                self._ledger.answer(answered_ids(entry.in_reply_to, json.loads(entry.content)))

    def _read_receiver(self, wait_s: float) -> None:
        for answer in self._receiver.wait_new(self._heard, wait_s):
            self._heard += 1
            self._ledger.answer(answered_ids(answer.get("in_reply_to"), answer["content"]))

    def _story(self, doomed: str, incarnation: str, at: int) -> list[Row]:
        """The life of the killed message, once it is whole: the receipt is written a moment after the answer is there."""

        def told() -> list[Row]:
            life = message_life(self._stage.data, WORKER, KILLED_SESSION, doomed)["life"]
            return rows_of(life, self._stage.session(WORKER, KILLED_SESSION)["incarnations"], at, incarnation)

        def whole() -> list[Row] | None:
            rows = told()
            return None if check_story(rows) else rows

        try:
            return poll("the whole story", whole, RECEIPT_S)
        except DemoFailed:
            return told()

    def _conclude(self, doomed: str, incarnation: str, at: int) -> int:
        rows = self._story(doomed, incarnation, at)
        console = Console(width=None if sys.stdout.isatty() else 80)
        console.print()
        console.print(table_of(f'The life of "slow report" ({doomed})', rows))
        print(f"The demo ends its daemon and its agents. To remove what stays: {self._stage.clean_up()}")
        gaps = check_story(rows)
        for message_id in self._ledger.missing():
            print(f'lost: "{self._names[message_id]}" ({message_id})')
        for message_id in self._ledger.repeated():
            print(f'answered more than once: "{self._names[message_id]}" ({message_id})')
        if gaps:
            print(f"the story lacks: {', '.join(gaps)}")
        if gaps or self._ledger.missing():
            print(f"\nthe end of the daemon's log:\n{self._stage.tail()}")
        print(self._ledger.verdict(), flush=True)
        return 1 if gaps or self._ledger.missing() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the folder, to look around in it")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="for each wait (default 120)")
    options = parser.parse_args(arguments)
    runtime = os.environ.get("RUNTIME") or "process"
    if runtime not in {"process", "docker"}:
        parser.error(f"RUNTIME must be process or docker, not {runtime!r}")
    agent = os.environ.get("AGENT") or PLAIN
    if agent not in AGENTS:
        parser.error(f"AGENT must be one of {', '.join(AGENTS)}, not {agent!r}")
    signal.signal(signal.SIGTERM, _leave)
    try:
        if runtime == "docker":
            check_docker()
        return _run(runtime, agent, keep=options.keep, timeout_s=options.timeout)
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started is ended", file=sys.stderr)
        return 130


def _run(runtime: str, agent: str, *, keep: bool, timeout_s: float) -> int:
    reply_secret = secrets.token_hex(16)
    with Stage(runtime, keep=keep) as stage, Receiver(reply_secret) as receiver:
        setting = Setting(port=free_port(), reply_url=receiver.url, agent=agent)
        setting.write(stage, image=DEFAULT_IMAGE, reply_secret=reply_secret)
        if runtime == "docker":
            ensure_image(stage, os.environ.get("BASE_IMAGE", ""))
        try:
            return Play(stage, setting, receiver, timeout_s).perform()
        except (DemoFailed, ClawbusError, httpx.HTTPError, OSError) as error:
            print(f"\nthe end of the daemon's log:\n{stage.tail()}")
            raise DemoFailed(
                f"{type(error).__name__}: {error}" if not isinstance(error, DemoFailed) else str(error)
            ) from error


def _leave(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends the demo as an exception does, so that nothing of it stays behind."""
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
