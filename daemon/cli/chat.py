"""`clawbus chat`: a conversation in the terminal, or lines from a pipe.

Each chat has its own mailbox, so two chats at once do not read each other's answers, and answers that arrive after the chat
has ended can still be read.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from daemon.cli.answers import as_result, file_lines, lines_of, question_of
from daemon.cli.command import add
from daemon.cli.envelope import INTERRUPTED, NextAction, Outcome, Problem, interrupted, problem_of
from daemon.cli.invocation import Invocation
from daemon.cli.names import AgentOption, SessionOption, addressed
from daemon.cli.notes import LOOK_S, Notes
from daemon.cli.output import Output, OutputLostError, progress
from daemon.cli.patience import insist
from daemon.cli.same_place import operand
from daemon.cli.standard_input import read_lines
from daemon.core.clock import SystemClock
from daemon.core.errors import ContentError, NoAnswerError, RemoteError, UnknownSessionError
from daemon.core.printable import counted
from schema.errors import ClawbusError
from schema.ids import new_id

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.api.client import ControlClient

_POLL_S: Final = 25.0
_END_S: Final = 5.0
_NEVER: Final = (NoAnswerError.code, UnknownSessionError.code)  # what says that a message will get no answer
_ASK_S: Final = 0.1  # the daemon answers a wait of no time at all without a look at the message
_PROMPT: Final = "you> "
_CLEAR: Final = "\r\x1b[K"  # the line with the prompt


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "chat", chat)


def chat(
    invocation: Invocation,
    session: SessionOption,
    agent: AgentOption = None,
    wait: Annotated[
        float,
        typer.Option("--wait", "-w", metavar="SECONDS", min=0, help="At the end, wait this long for open answers."),
    ] = 60.0,
    mailbox: Annotated[
        str | None, typer.Option("--mailbox", metavar="NAME", help="The mailbox to use. Default: a new one.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Save the files that come with answers here.")
    ] = None,
) -> Outcome:
    """Talk with an agent: a line is a message, answers are printed as they come; Ctrl-D ends.

    Use it to try an agent out. Lines may come from a pipe too: then it ends when all of them are answered, and --json
    gives one envelope with the whole exchange.

    \b
    Example:
      clawbus chat --agent echo --session demo
      printf 'one\\ntwo\\n' | clawbus chat --agent echo --session demo --pretty
    """
    agent, session = addressed(agent, session)
    name = mailbox or f"chat-{new_id(SystemClock().now_ms())}"
    talk = _Talk(invocation, agent, session, name, save)
    talk.run(wait)
    if talk.lost is not None:
        raise talk.lost
    open_ids = talk.unanswered()
    result = {"agent": agent, "session": session, "mailbox": name, "exchanges": talk.exchanges()}
    later = (NextAction(f"clawbus mailbox {operand(name)}", "answers that come later"),)
    if talk.failure is not None and not talk.sent:
        raise talk.failure
    ended = f"{counted(len(talk.accepted), 'message is', 'messages are')} accepted and stay so, {len(open_ids)} without an answer yet (mailbox {name})"
    if talk.failure is not None:
        problem = problem_of(talk.failure)
        problem = replace(problem, message=f"{problem.message.rstrip('.')}; {ended}.")
        return Outcome(result, problem=problem, next_actions=later)
    if talk.interrupted:
        return Outcome(result, problem=interrupted(f"interrupted; {ended}."), exit_code=INTERRUPTED, next_actions=later)
    if open_ids and talk.silent.keys() >= set(open_ids):
        why = talk.silent[open_ids[0]]
        message = f"{len(open_ids)} of {len(talk.sent)} messages get no answer: {why}"
        return Outcome(result, problem=Problem(NoAnswerError.code, message, why.hint), next_actions=later)
    if open_ids:
        message = f"{len(open_ids)} of {len(talk.sent)} messages have no answer yet; all are accepted."
        problem = Problem("NO_ANSWER_YET", message, "Read the mailbox later.")
        return Outcome(result, problem=problem, next_actions=later)
    return Outcome(result)


class _Talk:
    """One conversation. A second thread reads the mailbox while the calling thread reads the lines."""

    def __init__(self, invocation: Invocation, agent: str, session: str, mailbox: str, save: Path | None) -> None:
        self._invocation = invocation
        self._save = save
        self._agent, self._session, self._mailbox = agent, session, mailbox
        self._console: Console | None = None if invocation.json else invocation.console()
        self._changed = threading.Condition()
        self._ended = False
        self._prompts = False  # whether the prompt is on the screen
        self._typed_so_far: Callable[[], str] = str
        self._answers: list[dict[str, Any]] = []
        self._notes = Notes(invocation.place.data_dir, agent, session)
        self._questions: list[str] = []  # open ones; the next line answers the oldest
        self.sent: dict[str, str] = {}
        self.accepted: set[str] = set()
        self.silent: dict[str, RemoteError] = {}  # messages that will get no answer, each with the reason
        self.interrupted = False
        self.failure: ClawbusError | None = None
        self.lost: OutputLostError | None = None

    def run(self, wait_s: float) -> None:
        """Run until the input ends. Then wait until nothing more will be answered, `wait_s` seconds have passed or a call fails."""
        with self._invocation.client() as client:
            insist(self._invocation, client.live)  # report a daemon that is down before the first line is typed
        listener = self._invocation.client()
        thread = threading.Thread(target=self._listen, args=(listener,), name="mailbox", daemon=True)
        thread.start()
        try:
            with self._invocation.client() as client:
                for line in self._lines():
                    if self._answers_question(client, line):
                        continue
                    identity = new_id(SystemClock().now_ms())
                    with self._changed:
                        self.sent[identity] = line
                    client.accept(self._message(identity, line))
                    self.accepted.add(identity)
                self._await_answers(client, wait_s)
        except ClawbusError as error:
            self.failure = self.failure or error
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self._ended = True
            listener.close()  # it may be in a long poll
            thread.join(_END_S)

    def _await_answers(self, client: ControlClient, wait_s: float) -> None:
        """Wait for what is open, and ask the daemon once in a while whether an answer may still come."""
        clock = SystemClock()
        until = clock.monotonic() + wait_s
        while (left := until - clock.monotonic()) > 0:
            with self._changed:
                if self._changed.wait_for(self._over, min(left, LOOK_S)):
                    return
                waiting = [one for one in self._open() if one not in self.silent]
            for identity in waiting:
                try:
                    answered = client.wait_reply(self._agent, self._session, identity, _ASK_S) is not None
                except RemoteError as error:
                    if error.remote_code not in _NEVER:
                        break
                    self.silent[identity] = error
                else:
                    if not answered:
                        break  # one that may come is enough to wait for

    def _over(self) -> bool:
        """Return whether there is nothing to wait for. Call it with `_changed`."""
        return self.failure is not None or self.silent.keys() >= set(self._open())

    def _answers_question(self, client: ControlClient, line: str) -> bool:
        """Send the line as the answer to the oldest open question, if there is one. Return whether that was its use."""
        while self._questions:
            content = {"answer_to": self._questions[0], "text": line}
            message = {**self._message(new_id(SystemClock().now_ms()), line), "content": content}
            try:
                client.accept(message)
            except RemoteError as error:
                if error.remote_code == "ANSWER_REFUSED":
                    progress(f"{error} {error.hint}")
                    return True
                self._questions.pop(0)  # it has ended: the line is for another question, or a message
                continue
            self._questions.pop(0)
            return True
        return False

    def unanswered(self) -> list[str]:
        """Return the ids of messages without an answer."""
        with self._changed:
            return self._open()

    def exchanges(self) -> list[dict[str, Any]]:
        """Return each message with its answers, then the answers that belong to no message of this chat."""
        with self._changed:
            said = [
                {
                    "message_id": identity,
                    "text": text,
                    "accepted": identity in self.accepted or None,
                    "answers": [one for one in self._answers if identity in _about(one)],
                }
                for identity, text in self.sent.items()
            ]
            others = [one for one in self._answers if self.sent.keys().isdisjoint(_about(one))]
        nothing = {"message_id": None, "text": None, "accepted": None}
        return [*said, *({**nothing, "answers": [one]} for one in others)]

    def _open(self) -> list[str]:
        answered = {identity for one in self._answers for identity in one["answers"]}
        return [identity for identity in self.sent if identity not in answered]

    def _message(self, identity: str, line: str) -> dict[str, Any]:
        address = {"channel_type": "local", "platform_id": self._mailbox}
        content = {"text": line}
        return {"agent": self._agent, "session": self._session, "id": identity, "content": content, "address": address}

    def _lines(self) -> Iterator[str]:
        interactive = sys.stdin.isatty() and self._console is not None
        for line in self._typed() if interactive else read_lines():
            if self.failure is not None:
                return
            if line.strip():
                yield line.rstrip("\r\n")

    def _typed(self) -> Iterator[str]:
        """Yield the lines that somebody types. An answer that comes meanwhile is printed above what is typed so far."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: PLC0415 - `input` edits with it, and it knows what is typed so far

            self._typed_so_far = readline.get_line_buffer
        while self.failure is None:
            self._prompts = True
            try:
                line = input(_PROMPT)
            except EOFError:
                return
            except UnicodeDecodeError as error:
                raise ContentError("that line is not UTF-8.", hint="Set the terminal to UTF-8.") from error
            finally:
                self._prompts = False
            yield line

    def _listen(self, client: ControlClient) -> None:
        cursor = 0
        try:
            while not self._ended:
                for entry in client.read_mailbox(
                    self._mailbox, cursor, 100, _POLL_S if self._console is None else LOOK_S
                ):
                    cursor = entry.cursor
                    self._heard(as_result(entry))
                self._show_notes()
        except ClawbusError as error:
            if self._ended:
                return
            with self._changed:
                self.failure = self.failure or error
                self._changed.notify_all()

    def _heard(self, answer: dict[str, Any]) -> None:
        if self._save is not None and "files" in answer:
            from daemon.cli.saved_files import save_files  # noqa: PLC0415

            save_files(self._invocation, [answer], self._save)
        if self._console is not None:
            self._print(answer)
        with self._changed:
            asked = question_of(answer)
            if asked is not None:
                self._questions.append(asked)
            self._answers.append(answer)
            self._changed.notify_all()

    def _show_notes(self) -> None:
        """Print the progress notes that have come since the last look: in a pipe, on standard error."""
        if self._console is None or not self.sent or not (notes := self._notes.new(self.sent)):
            return
        if self._console.is_terminal:
            self._show([(note, "... ") for note in notes])
        else:
            progress(*(f"... {note}" for note in notes))

    def _print(self, answer: dict[str, Any]) -> None:
        if answer["final"]:
            files = [(line, "  ") for line in file_lines(answer)]
            self._show([(answer["text"], "! " if answer["error"] is not None else "< "), *files])
        else:
            self._show([(line, "") for line in lines_of(answer)])

    def _show(self, blocks: Sequence[tuple[str, str]]) -> None:
        """Print texts, each with its mark, above what is typed so far."""
        from daemon.cli.present import say_block  # noqa: PLC0415

        assert self._console is not None
        try:
            again = f"{_PROMPT}{self._typed_so_far()}" if self._prompts else ""
            if again:
                Output().write(_CLEAR)
            for text, mark in blocks:
                say_block(self._console, text, mark, "  ")
            if again:
                Output().write(again)
                Output().flush()
        except OutputLostError as error:  # in the listener's thread, which continues: answers are still collected
            self._console = None
            self.lost = error


def _about(answer: dict[str, Any]) -> list[str]:
    """Return the messages that an entry is about: those that it answers, or the one whose turn it was said in."""
    return answer["answers"] if answer["final"] else [answer["in_reply_to"]]
