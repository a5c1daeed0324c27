"""Have the daemon accept a message and, if asked to, wait for its answer: the second half of `clawbus send`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from daemon.cli.answers import as_result, file_lines
from daemon.cli.envelope import INTERRUPTED, NextAction, Outcome, Problem, interrupted, problem_of
from daemon.cli.invocation import Invocation
from daemon.cli.notes import LOOK_S
from daemon.cli.patience import insist
from daemon.cli.same_place import operand
from daemon.core.clock import Clock, SystemClock
from daemon.core.command_words import two_words
from daemon.core.errors import DaemonSilentError, LostAnswerError, UnknownSessionError
from daemon.core.waiting import what_it_waits_for
from schema.errors import ClawbusError

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.api.client import ControlClient
    from daemon.store.mailbox import MailboxEntry


def send_and_wait(
    invocation: Invocation, message: dict[str, Any], mailbox: str, wait: float | None, save: Path | None
) -> Outcome:
    """Have the message accepted, and wait up to `wait` seconds for its answer (None: do not wait). Save its files in `save`."""
    # What a caller needs to repeat the request without doubling the work, from the moment the message may be stored.
    known: dict[str, Any] = {
        "message_id": message["id"],
        "agent": message["agent"],
        "session": message["session"],
        "accepted": None,
        "mailbox": mailbox,
    }

    clock, until = SystemClock(), 0.0

    def note(accepted: dict[str, Any]) -> None:
        nonlocal until
        until = clock.monotonic() + (wait or 0.0)
        known.update({**accepted, "accepted": True, "mailbox": _mailbox_of(accepted, mailbox)})
        if message["process_after"] is not None and not accepted.get("duplicate"):
            known["due_at"] = message["process_after"]

    try:
        with invocation.client() as client:
            entry = insist(invocation, lambda: _accept(client, message, min(wait or 0.0, LOOK_S), note))
            if wait is None:
                return Outcome(known, lambda console: _say_accepted(console, known), _next(known))
            said: list[dict[str, Any]] = known.setdefault("said", [])
            hear, look = partial(_hear, invocation, said), _notes_shown(invocation, known)
            if entry is None or not entry.final:
                after = 0
                if entry is not None:
                    hear(entry)
                    after = entry.cursor
                if look is not None:
                    look()
                entry = wait_for_reply(client, known, max(0.0, until - clock.monotonic()), clock, hear, look, after)
            why = _held_up(client, known) if entry is None else _reason(client, known)
            answers = [] if entry is None else [as_result(one) for one in (entry, *_rest(client, known, entry.cursor))]
            _save(invocation, [*said, *answers], save)
    except ClawbusError as error:
        return _failed(known, error)
    except KeyboardInterrupt:
        problem = interrupted(f"interrupted; message {known['message_id']} {_standing(known)}.")
        return Outcome(known, problem=problem, exit_code=INTERRUPTED, next_actions=_next(known))
    return _answered(known, answers, wait, why)


def _accept(
    client: ControlClient, message: dict[str, Any], wait_s: float, note: Callable[[dict[str, Any]], None]
) -> MailboxEntry | None:
    """Have the message accepted, and wait `wait_s` seconds at most for an entry about it. `note` gets what the daemon says of it.

    A connection that is lost after the acceptance ends the wait, and the message is not sent again.
    """
    if not wait_s:
        note(client.accept(message))
        return None
    accepted = False

    def noted(found: dict[str, Any]) -> None:
        nonlocal accepted
        accepted = True
        note(found)

    try:
        return client.accept_and_wait(message, wait_s, noted, 0)
    except LostAnswerError:
        if not accepted:
            raise
        return None


def _failed(known: dict[str, Any], error: ClawbusError) -> Outcome:
    """Return the error as it came. Where the message is stored, or may be, the envelope names it."""
    if not known["accepted"] and not isinstance(error, DaemonSilentError | LostAnswerError):
        raise error
    problem = problem_of(error)
    if known["accepted"] and problem.code == UnknownSessionError.code:  # it was deleted, and the message with it
        return Outcome(known, problem=problem)
    message = f"{problem.message.rstrip('.')}; message {known['message_id']} {_standing(known)}."
    return Outcome(known, problem=replace(problem, message=message), next_actions=_next(known))


def _standing(known: dict[str, Any]) -> str:
    return "is accepted and stays so" if known["accepted"] else "may have been accepted: send it again with this --id"


def _mailbox_of(answer: dict[str, Any], mailbox: str) -> str | None:
    """Return the mailbox of the answer, or None if it goes elsewhere. A duplicate keeps the address of the first message."""
    if not answer.get("duplicate"):
        return mailbox
    address = answer.get("address")
    if not isinstance(address, dict):
        return None
    first = cast("dict[str, Any]", address)
    return first["platform_id"] if first.get("channel_type") == "local" else None


def _held_up(client: ControlClient, known: dict[str, Any]) -> str:
    """Return what the message may wait for, by the session's report and without other messages' dead letters."""
    try:
        report = client.session(known["agent"], known["session"])
    except ClawbusError:
        return ""
    if report.get("held_up"):
        return f" {report['held_up']}"
    why = what_it_waits_for(report.get("messages", ()), _working_id(known), SystemClock().now_ms())
    if why is None and report.get("state") in ("waiting", "backing_off"):
        return f" The session is {report['state']}: it waits for a container (`clawbus status` says why)."
    return f" {why[0].upper()}{why[1:]}." if why is not None else ""


def _reason(client: ControlClient, known: dict[str, Any]) -> str:
    """Return why the message failed, as the operator sees it, or an empty text if unknown."""
    try:
        letters = client.dead_letters((known["agent"], known["session"]), _working_id(known))["letters"]
    except ClawbusError:
        return ""
    return next((str(one["reason"]) for one in letters if one["kind"] == "in" and one["code"] == "AGENT_FAILED"), "")


def _hear(invocation: Invocation, said: list[dict[str, Any]], entry: MailboxEntry) -> None:
    """Keep what the agent says before its answer; show it on standard error, so that standard output is the answer."""
    from daemon.cli.answers import lines_of  # noqa: PLC0415
    from daemon.cli.output import progress  # noqa: PLC0415

    said.append(as_result(entry))
    if not invocation.json:
        progress(*lines_of(said[-1]))


def _notes_shown(invocation: Invocation, known: dict[str, Any]) -> Callable[[], None] | None:
    """Return what prints the agent's progress notes on standard error as they come; None for an envelope alone."""
    if invocation.json:
        return None
    from daemon.cli.notes import Notes  # noqa: PLC0415
    from daemon.cli.output import progress  # noqa: PLC0415

    notes, working = Notes(invocation.place.data_dir, known["agent"], known["session"]), {_working_id(known)}
    return lambda: progress(*(f"... {note}" for note in notes.new(working)))


def wait_for_reply(
    client: ControlClient,
    accepted: dict[str, Any],
    wait_s: float,
    clock: Clock,
    hear: Callable[[MailboxEntry], object] = lambda _: None,
    look: Callable[[], object] | None = None,
    after: int = 0,
) -> MailboxEntry | None:
    """Long-poll until the answer is there or `wait_s` seconds have passed.

    `hear` gets what the agent says before it, above the mailbox's cursor `after`. `look` is called every LOOK_S seconds
    meanwhile.
    """
    deadline = clock.monotonic() + wait_s
    while True:
        started = clock.monotonic()
        left = max(0.0, deadline - started)
        step = left if look is None else min(left, LOOK_S)
        entry = client.wait_reply(accepted["agent"], accepted["session"], _working_id(accepted), step, after)
        if look is not None and (entry is None or not entry.final):
            look()
        if entry is not None and not entry.final:
            hear(entry)
            after = entry.cursor
            continue
        if entry is not None or clock.monotonic() >= deadline:
            return entry
        if clock.monotonic() - started < 0.05:
            time.sleep(0.2)  # a daemon that answers at once is stopping: do not spin until it is gone


def _rest(client: ControlClient, known: dict[str, Any], after: int) -> list[MailboxEntry]:
    """Return what is there of the answer above the cursor of its first message. An error ends the look: the first one is had."""
    found: list[MailboxEntry] = []
    with suppress(ClawbusError):
        while True:
            entry = client.wait_reply(known["agent"], known["session"], _working_id(known), 0.0, after)
            if entry is None:
                break
            after = entry.cursor
            found += [entry] if entry.final else []
    return found


def _working_id(accepted: dict[str, Any]) -> str:
    """Return the id of the message whose answer counts: a failed one is worked on under another id."""
    return accepted.get("requeued_as") or accepted["message_id"]


def _save(invocation: Invocation, answers: list[dict[str, Any]], target: Path | None) -> None:
    if target is not None and any("files" in one for one in answers):
        from daemon.cli.saved_files import save_files  # noqa: PLC0415

        save_files(invocation, answers, target)


def _answered(accepted: dict[str, Any], answers: list[dict[str, Any]], wait_s: float, why: str) -> Outcome:
    if not answers:
        message = f"no answer came within {wait_s:g} s; message {accepted['message_id']} is accepted and stays so.{why}"
        fix = "Read the mailbox later, or send again with the same --id and a longer --wait: it is not stored twice."
        return Outcome(accepted, problem=Problem("NO_ANSWER_YET", message, fix), next_actions=_next(accepted))
    answer, *more = answers
    result = {**accepted, "answer": answer, "more": more}
    if answer["error"] is not None:
        problem = Problem(
            "AGENT_FAILED", why or str(answer["error"]), f"`clawbus run show {accepted['message_id']}` says why."
        )
        return Outcome(result, problem=problem, next_actions=_next(accepted))

    def people(console: Console) -> None:
        from daemon.cli.present import say_block  # noqa: PLC0415

        for one in answers:
            say_block(console, one["text"], rest="  ")
            for line in file_lines(one):
                say_block(console, line, rest="  ")

    unsaved = [one for one in answers if not all("saved" in file for file in one.get("files", ()))]
    return Outcome(result, people, tuple(map(_save_action, unsaved)))


def _save_action(answer: dict[str, Any]) -> NextAction:
    command = f"clawbus mailbox --after {answer['cursor'] - 1} --limit 1 --save . {operand(answer['mailbox'])}"
    return NextAction(command, "save the files")


def _say_accepted(console: Console, accepted: dict[str, Any]) -> None:
    from daemon.cli.present import say, when  # noqa: PLC0415

    place = f"mailbox {accepted['mailbox']}" if accepted["mailbox"] is not None else "another channel"
    again = f", it was there already ({_state(accepted)}): its answer goes to {place}" if accepted["duplicate"] else ""
    due = f"; due {when(accepted['due_at'], SystemClock().now_ms())}" if "due_at" in accepted else ""
    say(console, f"accepted {accepted['message_id']} ({accepted['agent']}/{accepted['session']}{again}){due}")


def _state(accepted: dict[str, Any]) -> str:
    state = accepted.get("state", "accepted")
    again = accepted.get("requeued_as")
    ended = accepted.get("previous") or "failed"
    return f"{ended}, and is worked on again as {again}, {state}" if again else str(state)


def _next(accepted: dict[str, Any]) -> tuple[NextAction, ...]:
    name = two_words(accepted["agent"], accepted["session"])
    life = NextAction(f"clawbus session show {name} --message {_working_id(accepted)}", "what became of the message")
    if accepted["mailbox"] is None:
        return (life,)
    return (NextAction(f"clawbus mailbox {operand(accepted['mailbox'])}", "read the answers"), life)
