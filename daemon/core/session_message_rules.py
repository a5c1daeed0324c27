"""Rules about a session's messages, questions and answers: what waits, what fails again and again, what was given up. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from daemon.core.command_words import one_word
from daemon.core.delivery_plan import Reason
from daemon.core.diagnosis import Choice, Diagnosis, span
from daemon.core.facts import DaemonState, HostFacts, SessionFacts
from daemon.core.host_rules import disk_full
from daemon.core.printable import counted, one_line
from daemon.core.session_finding import GRACE_MS, finding, quoted
from schema.instants import to_text

_OPTIONS: Final = 5  # how many of a question's options are printed, each as the command that chooses it


def held_back(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report messages that wait long behind one that is being retried: the order of arrival is kept."""
    if not one.held or one.oldest_held_at is None or one.holder is None:
        return None
    waited = host.now - one.oldest_held_at
    if waited < host.held_ms:
        return None
    evidence = (
        f"{counted(one.held, 'message waits', 'messages wait')} for an earlier one: {one.holder_sentence}.",
        f"The oldest has waited for {span(waited)}.",
        '`agents.NAME.order = "ready"` lets later messages pass; `clawbus message cancel` gives the first one up.',
    )
    return finding(
        one, "HELD_BACK", "Messages wait for an earlier one of their session, which will be tried again later.", evidence,
        f"clawbus message retry {shlex.quote(one.holder)} --session {one_word(one.agent, one.session)}",
    )  # fmt: skip


def message_retrying(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Name a message on which the container dies again and again, before it is given up."""
    if one.crashing is None or held_back(host, one) is not None:
        return None
    named = f"{shlex.quote(one.crashing)} --session {one_word(one.agent, one.session)}"
    evidence = (
        f"M{(one.crashing_sentence or 'message')[1:]}.",
        "Fix what ends the container and retry it; after its last try the message is given up.",
    )
    choices = (
        Choice("to see what its container wrote last", f"clawbus run show {named}"),
        Choice("to give it up", f"clawbus message cancel {named} --reason 'its container ends each time'"),
    )
    return finding(
        one, "MESSAGE_RETRYING", "Its container ends each time before a message is done.", evidence,
        f"clawbus message retry {named}", choices=choices,
    )  # fmt: skip


def question_open(_: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Name a question that waits for a person."""
    if one.question is None:
        return None
    named = f"{shlex.quote(one.question)} --session {one_word(one.agent, one.session)}"
    more = f" {counted(one.questions - 1, 'more is', 'more are')} open." if one.questions > 1 else ""
    evidence = (
        f'"{one_line(one.question_text or "")[:200]}"{more}',
        f"Without an answer by {to_text(one.question_deadline or 0)} the agent takes it for a no, or for its default.",
    )
    answers = (
        Choice(f'to answer "{one_line(label)[:40]}"', f"clawbus question answer {named} {number}")
        for number, label in enumerate(one.question_options[:_OPTIONS], 1)
    )
    choices = (*answers, Choice("to go on without an answer", f"clawbus question answer {named} --decline"))
    return finding(
        one, "QUESTION_OPEN", "The agent waits for a person's answer.", evidence,
        f"clawbus question show {named}", choices=choices,
    )  # fmt: skip


def schedule_failing(_: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Name the schedules that were paused because they kept failing."""
    if not one.failing_schedules:
        return None
    scope = f"--session {one_word(one.agent, one.session)}"
    (key, failures), more = one.failing_schedules[0], len(one.failing_schedules) - 1
    others = f" {counted(more, 'more schedule was', 'more schedules were')} paused for the same." if more else ""
    evidence = (
        f"The last {counted(failures, 'message', 'messages')} of schedule {key} failed.{others}",
        f"`clawbus schedule show {key} {scope}` lists them, and `clawbus run show ID` says why one failed.",
    )
    choices = (
        Choice("once the cause is repaired", f"clawbus schedule resume {key} {scope}"),
        Choice("to keep it paused", f"clawbus schedule pause {key} {scope}"),
    )
    return finding(
        one, "SCHEDULE_FAILING", f"Schedule {key} kept failing and is paused.", evidence,
        f"clawbus schedule resume {key} {scope}", choices=choices,
    )  # fmt: skip


def schedule_zone(_: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Name the schedules that wait because this machine does not have their time zone any more."""
    if not one.zoneless_schedules:
        return None
    scope = f"--session {one_word(one.agent, one.session)}"
    (key, zone), more = one.zoneless_schedules[0], len(one.zoneless_schedules) - 1
    others = f" {counted(more, 'more schedule waits', 'more schedules wait')} for the same." if more else ""
    evidence = (
        f"This machine does not have the time zone {one_line(zone)[:80]} of schedule {key}.{others}",
        "Install the zone (packages tzdata, tzdata-legacy), and the schedule continues; or add it again with another --timezone.",
    )
    choices = (
        Choice("to keep it without effect", f"clawbus schedule pause {key} {scope}"),
        Choice("to delete it", f"clawbus schedule cancel {key} {scope}"),
    )
    return finding(
        one, "SCHEDULE_ZONE", f"Schedule {key} waits for its time zone.", evidence,
        f"clawbus schedule pause {key} {scope}", choices=choices,
    )  # fmt: skip


def delivery_stuck(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report answers that are due and that the daemon does not send."""
    if not one.overdue_answers or one.oldest_overdue_at is None:
        return None
    waited = host.now - one.oldest_overdue_at
    if waited < max(GRACE_MS, host.sweep_interval_ms + GRACE_MS):
        return None
    due = counted(one.overdue_answers, "answer is", "answers are")
    evidence = (f"{due} due to be sent, the oldest for {span(waited)}.",)
    down = host.daemon is not DaemonState.UP
    cause = f"DAEMON_{host.daemon.value.upper()}" if down else "DISK_FULL" if disk_full(host) else None
    command = host.start if host.daemon is DaemonState.DOWN else "clawbus logs -n 50 --level warning"
    choices = () if down else (Choice("to have it looked at now", f"clawbus session release {quoted(one)}"),)
    return finding(
        one,
        "DELIVERY_STUCK",
        "Answers are due, but the daemon does not send them.",
        evidence,
        command,
        cause=cause,
        choices=choices,
    )


def answer_retrying(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report the answer with the most failed attempts."""
    worst = one.retrying_example
    if worst is None:
        return None
    attempts, behind = counted(worst["attempts"], "attempt", "attempts"), worst["holds_back"]
    error = worst["error"] or worst["code"] or "no reason was recorded"
    evidence = [f"Answer {worst['id']} to {worst['to']}: {attempts} failed; the last error: {error}"]
    evidence.append(f"It has been due for {span(host.now - worst['since'])}.")
    if worst["next_attempt_at"] is not None and worst["next_attempt_at"] > host.now:
        evidence.append(f"The next attempt is in {span(worst['next_attempt_at'] - host.now)}.")
    if behind:
        evidence.append(f"{counted(behind, 'later answer waits', 'later answers wait')} behind it.")
    if one.retrying > 1:
        evidence.append(f"{counted(one.retrying - 1, 'other answer keeps', 'other answers keep')} failing too.")
    if worst["code"] == Reason.NO_CHANNEL:
        return _without_channel(one, evidence, worst["id"])
    evidence.append("Repair the receiver and retry it; or give it up with `clawbus delivery drop`.")
    which = f"{shlex.quote(worst['id'])} --session {one_word(one.agent, one.session)}"
    command = f"clawbus delivery retry {which}"
    drop = Choice("to give it up", f"clawbus delivery drop {which} --reason 'its receiver is gone'")
    return finding(one, "ANSWER_RETRYING", "An answer keeps failing.", evidence, command, choices=(drop,))


def _without_channel(one: SessionFacts, evidence: Sequence[str], answer: str) -> Diagnosis:
    """Report an answer whose channel is not in the configuration: no retry helps before it is."""
    which = f"{shlex.quote(answer)} --session {one_word(one.agent, one.session)}"
    return finding(
        one, "ANSWER_RETRYING", "An answer is for a channel that is not configured.",
        (*evidence, "Configure the channel again, or give the answer up."), "clawbus channel list", choices=(
            Choice("once the channel is configured", f"clawbus delivery retry {which}"),
            Choice("to give it up", f"clawbus delivery drop {which} --reason 'its channel is gone'"),
        ),
    )  # fmt: skip


def answers_held_back(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report that the session has reached its limit of open answers."""
    if one.open_answers < host.max_open_answers:
        return None
    evidence = (
        f"{one.open_answers} answers are on their way; further ones wait in the container's own file.",
        "Repair the receiver and retry them, or give answers up with `clawbus delivery drop`.",
    )
    summary = "The session has reached its limit of open answers (delivery.max_open_answers)."
    where = one_word(one.agent, one.session)
    retry = f"clawbus delivery retry --all --session {where} --reason 'the receiver is repaired'"
    choices = [Choice("to see them", f"clawbus delivery list --session {where}")]
    if one.retrying_example is not None:
        answer = shlex.quote(one.retrying_example["id"])
        drop = f"clawbus delivery drop {answer} --session {where} --reason 'its receiver is gone'"
        choices.append(Choice("to give up the answer with the most failures", drop))
    return finding(one, "ANSWERS_HELD_BACK", summary, evidence, retry, choices=tuple(choices))


def dead_letters(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report messages and answers that were given up and wait for an operator."""
    total = one.failed + one.dead
    if not total:
        return None
    given_up = counted(one.failed, "message was", "messages were")
    evidence = [f"{given_up} given up, {counted(one.dead, 'answer', 'answers')} could not be delivered."]
    if one.dead_example is not None:
        evidence.append(f"The newest: {one.dead_example}: {one.dead_reason or 'no reason was recorded'}")
    # An answer's id is the container's own text.
    shown = f"show {shlex.quote(one.dead_example)}" if one.dead_example is not None else "list"
    command = f"clawbus dead {shown} --session {one_word(one.agent, one.session)}"
    waiting = counted(total, "open dead letter waits", "open dead letters wait")
    only = shlex.quote(one.dead_example) if one.dead_example and total == 1 else "--all"
    which = f"{only} --session {one_word(one.agent, one.session)}"
    choices = (
        Choice("once its cause is repaired", f"clawbus dead requeue {which} --reason 'its cause is repaired'"),
        Choice(
            f"to give {'it' if total == 1 else 'them'} up", f"clawbus dead drop {which} --reason 'not needed any more'"
        ),
    )
    found = finding(one, "DEAD_LETTERS", f"{waiting} for an operator.", evidence, command, choices=choices)
    return replace(found, died_of=one.dead_code, number=total)
