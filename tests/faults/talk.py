"""An agent that talks before its answer, a person who answers its questions, and the account of what was said and asked.

In each turn it says one thing, edits it, makes a schedule and asks; a retried turn does the same again. Whatever strikes it,
each place gets each text at most once, no answer comes without what was said before it, and each names the choice of the person.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from daemon.api.client import ControlClient
from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError
from schema.connect import open_reader

PROGRAM: Final = """
import json, sys
turn = json.load(sys.stdin)
name = next(one["id"] for one in turn["messages"] if one["trigger"])
def say(**line):
    print(json.dumps(line), flush=True)
with open(turn["answers"]) as answers:
    say(type="message", now=True, key="status", text="begun " + name)
    say(type="schedule", key="daily", text="look", every_s=86400)
    say(type="question", text="Go on with " + name + "?", options=["yes", "no"], free_text=False, timeout_s=30)
    answer = json.loads(answers.readline())
    say(type="message", now=True, key="status", text="half way " + name)
say(type="message", text="done", name=name, status=answer["status"], choice=answer["choice"])
"""
AGENT: Final = "talk"
TABLE: Final = f"""
[agents.{AGENT}]
provider = "command"
command = ["python3", "-I", "-S", "-c", {json.dumps(PROGRAM)}]
timeout_s = 10.0
"""
_DIED: Final = (DaemonDownError, DaemonSilentError, httpx.TransportError, ConnectionError)

Spot = tuple[str, str]  # a session and a place


@dataclass(slots=True)
class Heard:
    """Everything that one place got from one session: texts that are no answers by row, and answers."""

    early: dict[str, str] = field(default_factory=dict[str, str])
    done: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Person:
    """Reads both places in a thread of its own, and answers each question once, in the end: by `yes` or `no`, as the seed says."""

    def __init__(
        self, socket: Path, posts: dict[str, dict[str, Any]], mailbox: str, hook: dict[str, str], seed: int
    ) -> None:
        self._socket = socket
        self._posts = posts
        self._mailbox = mailbox
        self._hook = hook
        self._rng = random.Random(f"person {seed}")
        self._over = threading.Event()
        self._seen: set[str] = set()
        self._open: dict[str, tuple[dict[str, Any], str]] = {}  # by question: the answer, and the message's name
        self.chosen: dict[Spot, str] = {}  # by session and the message's name: what the bus has taken as the answer
        self.questions = 0
        self._thread = threading.Thread(target=self._read)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)

    def _read(self) -> None:
        client, cursor = ControlClient(self._socket), 0
        while not self._over.wait(0.05):
            asked = [(one["session"], one["content"], self._hook) for one in list(self._posts.values())]
            with contextlib.suppress(*_DIED, RemoteError):
                entries = client.read_mailbox(self._mailbox, cursor, 100)
                local = {"channel_type": "local", "platform_id": self._mailbox}
                asked += [(one.session, json.loads(one.content), local) for one in entries]
                cursor = entries[-1].cursor if entries else cursor
            for session, content, place in asked:
                if isinstance(content, dict) and content.get("type") == "question":
                    self._note(session, content, place)
            # One answer that is refused now must not keep the other sessions waiting.
            self._open = {one: answer for one, answer in self._open.items() if not self._answer(client, answer)}
        client.close()

    def _note(self, session: str, content: dict[str, Any], place: dict[str, str]) -> None:
        identity = content["question"]
        if identity not in self._seen:
            self._seen.add(identity)
            said = {"answer_to": identity, "text": self._rng.choice(("yes", "no"))}
            message = {"agent": AGENT, "session": session, "id": f"a-{identity}", "content": said, "address": place}
            self._open[identity] = message, content["text"].removeprefix("Go on with ").removesuffix("?")

    def _answer(self, client: ControlClient, answer: tuple[dict[str, Any], str]) -> bool:
        """Try once. Return whether that is the end of it."""
        message, name = answer
        try:
            client.accept(message)
        except RemoteError as error:
            return error.remote_code in ("QUESTION_CLOSED", "UNKNOWN_QUESTION")  # its end came first
        except _DIED:
            return False
        self.chosen[message["session"], name] = message["content"]["text"]
        self.questions += 1
        return True


def faults_of_talk(data: Path, posts: dict[str, dict[str, Any]], person: Person) -> tuple[list[str], list[str]]:
    """(what was lost, what was doubled or wrong), from the mailbox and the receiver. Nothing may run any more."""
    heard: dict[Spot, Heard] = defaultdict(Heard)
    for session, place, row_id, content, final in _rows(data, posts):
        if final and content.get("text") == "done":
            heard[session, place].done.append(content)
        elif not final and content.get("type") != "question":
            heard[session, place].early[row_id] = content["text"]
    lost: list[str] = []
    wrong: list[str] = []
    for (session, place), found in heard.items():
        texts = Counter(found.early.values())
        wrong += [f"{session} at {place}: {text!r} came {count} times" for text, count in texts.items() if count > 1]
        for answer in found.done:
            name = answer["name"]
            lost += [
                f"{session} at {place}: {name} is done, and {text!r} never came"
                for text in (f"begun {name}", f"half way {name}") if text not in texts
            ]  # fmt: skip
            chosen = person.chosen.get((session, name))
            if chosen is not None and (answer["status"], answer["choice"]) != ("answered", chosen):
                wrong.append(f"{session}: {name} was answered {chosen}, and its agent was told {answer}")
    return lost, wrong


def _rows(data: Path, posts: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, dict[str, Any], bool]]:
    with open_reader(data / "mailbox.db") as db:
        for row in db.all("SELECT session, message_out_id, content, final FROM mailbox WHERE agent = ?", (AGENT,)):
            yield row["session"], "mailbox", row["message_out_id"], json.loads(row["content"]), bool(row["final"])
    for body in posts.values():
        if body["agent"] == AGENT:
            yield body["session"], "hook", body["id"], body["content"], bool(body["final"])
