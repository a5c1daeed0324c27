"""What can be wrong with a session apart from its single runs. Pure; it repairs nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final

from daemon.core.command_words import one_word, two_words
from daemon.core.diagnosis import Choice, Diagnosis, counted, span
from daemon.core.facts import DaemonState, HostFacts, SessionFacts
from daemon.core.host_repairs import BACKUPS, exhausted_repair, unlocking
from daemon.core.host_rules import TOO_NEW, UPGRADE, disk_full, host_trouble, image_unusable, runtime_away
from daemon.core.printable import one_line
from daemon.core.run_state import Life
from schema.errors import FileBusyError, HostTroubleError, StorageError, UnusableFileError
from schema.instants import to_text

# A container may be young, or a wake on its way: report only what lasts longer than this.
GRACE_MS: Final = 15_000
UNCLAIMED_MS: Final = 60_000  # a runner that works has polled many times by then
_HOLDERS_SHOWN: Final = 10
_FAILURES: Final = 3

SessionRule = Callable[[HostFacts, SessionFacts], Diagnosis | None]


def _quarantined(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    if one.quarantined_at is None:
        return None
    reason = one.quarantine_reason or "No reason was recorded."
    evidence = (f"Since {to_text(one.quarantined_at)}: {reason}", *one.errors)
    summary = "The session is in quarantine."
    if _is_broken(one.errors):  # released, it would be in quarantine again at once
        command = f"clawbus session show {_two(one)}"
        back = f"Once its files are back in place, `clawbus session release {_two(one)}` ends it."
        return _of(one, "QUARANTINED", summary, (evidence[0], back, *one.errors), command, choices=_ways_out(one))
    if "limits.max_home_folder" in reason:  # released, it would be in quarantine again at the next sweep
        back = f"Delete what is not needed in its home/, then `clawbus session release {_two(one)}` ends it."
        return _of(one, "QUARANTINED", summary, (evidence[0], back), _what_fills(one, "home"))
    command = _anew(one) if _is_hostile(one.errors) else f"clawbus session release {_two(one)}"
    return _of(one, "QUARANTINED", summary, evidence, command)


def _files_unreadable(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    # A journal explains why outbound.db cannot be read now; another rule reports it.
    errors = [text for text in one.errors if not (one.journal and text.startswith("READ_RACE"))]
    if not errors:
        return None
    held = unlocking(one.lock_holders)
    if held is not None and all(text.startswith(FileBusyError.code) for text in errors):
        summary = "The session's files cannot be read: another process locks them."
        return _of(one, "FILES_UNREADABLE", summary, (*errors, *held.evidence), held.command)
    cause = host_cause(host, {text.partition(":")[0] for text in errors})
    if cause is not None:
        return _of(one, "FILES_UNREADABLE", "The session's files cannot be read.", errors, cause.command,
                   cause=cause.code, choices=cause.choices)  # fmt: skip
    # The container's side can be reset; only a backup brings back the host's own file.
    slow = any(text.startswith("READ_DEADLINE") for text in errors)
    command = _anew(one) if _is_hostile(errors) else f"clawbus session {'reset' if slow else 'show'} {_two(one)}"
    choices = _ways_out(one) if " show " in command and _is_broken(errors) else ()
    return _of(one, "FILES_UNREADABLE", "The session's files cannot be read.", errors, command, choices=choices)


def _too_new(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    errors = [text for text in one.errors if text.startswith(TOO_NEW)]
    errors += [seen.sentence for seen in one.failing if seen.code == TOO_NEW]
    if not errors:
        return None
    return _of(
        one, TOO_NEW, "A file of the session was written by a newer clawbus.", errors, UPGRADE, choices=(BACKUPS,)
    )


def _failing(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Name work on the session that fails, by the daemon's report, and has not succeeded since."""
    lasting = [seen for seen in one.failing if host.now - seen.since >= GRACE_MS or seen.times >= _FAILURES]
    if not lasting or one.quarantined_at is not None:
        return None
    evidence = [seen.sentence for seen in lasting]
    summary = "The daemon fails at work on the session."
    shortage = next((seen for seen in lasting if seen.code == HostTroubleError.code), None)
    cause = host_cause(host, {seen.code for seen in lasting})
    if cause is not None:
        return _of(one, "SESSION_FAILING", summary, evidence, cause.command, cause=cause.code, choices=cause.choices)
    held = unlocking(one.lock_holders)
    repair = exhausted_repair(host, shortage.resource) if shortage is not None else held
    if repair is not None:
        evidence += repair.evidence
        return _of(one, "SESSION_FAILING", summary, evidence, repair.command, choices=repair.choices)
    return _failing_by_its_own(one, evidence, {seen.code for seen in lasting})


def host_cause(host: HostFacts, codes: AbstractSet[str]) -> Diagnosis | None:
    """Return the host's own finding that explains errors of these codes: no repair of a session ends them."""
    if HostTroubleError.code in codes and (trouble := host_trouble(host)) is not None:
        return trouble
    return disk_full(host) if codes & {StorageError.code, HostTroubleError.code} else None


def _failing_by_its_own(one: SessionFacts, evidence: list[str], codes: AbstractSet[str]) -> Diagnosis:
    if "FILE_BUSY" in codes and one.live is not None:
        command = f"clawbus session kill {_two(one)}"  # its exit frees every lock of its container's
    elif "READ_DEADLINE" in codes:
        command = f"clawbus session reset {_two(one)}"
    else:
        command = "clawbus logs -n 50 --level warning"
    choices = () if " logs " not in command else (
        Choice("when its container does it", f"clawbus session kill {_two(one)}"),
        Choice("when what it wrote does it", f"clawbus session reset {_two(one)}"),
    )  # fmt: skip
    return _of(one, "SESSION_FAILING", "The daemon fails at work on the session.", evidence, command, choices=choices)


def _is_hostile(errors: Iterable[str]) -> bool:
    return any(text.startswith("HOSTILE_FILE") for text in errors)


def _is_broken(errors: Iterable[str]) -> bool:
    """Return whether the file is broken for good, not only unreadable now."""
    return any(text.startswith(UnusableFileError.code) for text in errors)


def _ways_out(one: SessionFacts) -> tuple[Choice, ...]:
    """Return what ends a session whose own files are gone or corrupt: no wait and no release does."""
    return (
        Choice(
            "when the session may go", f"clawbus session delete {_two(one)} --force --reason 'its files are broken'"
        ),
        BACKUPS,
    )


def _anew(one: SessionFacts) -> str:
    """Return the reset of an out/ that cannot be read: without --discard it is refused, and a release does not last."""
    return f"clawbus session reset {_two(one)} --discard"


def _unregistered(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    if one.registered or host.registry_missing or host.registry_error is not None:
        return None
    evidence = ("Its folder is there and central.db has no row of it.",)
    summary = "The registry does not know the session; a start, and every full pass, takes it in."
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session release {_two(one)}"
    return _of(one, "UNREGISTERED", summary, evidence, command)


def _orphaned_container(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    if not one.containers:
        return None
    stray = one.containers[0]
    evidence = [
        f"Container {stray.container_id[:12]} of incarnation {stray.incarnation} runs since {to_text(stray.started_at)}.",
        f"central.db says that {one.live.incarnation} lives."
        if one.live
        else "central.db has no living incarnation of it.",
    ]
    if len(one.containers) > 1:
        evidence.append(f"{len(one.containers) - 1} more run beside it.")
    down = host.daemon is DaemonState.DOWN
    command = host.start if down else f"clawbus session kill {_two(one)}"
    return _of(
        one, "ORPHANED_CONTAINER", "It has a running container that the daemon does not supervise.", evidence, command,
        incarnation=stray.incarnation,
    )  # fmt: skip


def _container_restarted(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    live, container = one.live, one.container
    if live is None or container is None or live.started_at in {None, container.started_at}:
        return None
    evidence = (
        (
            f"Container {container.container_id[:12]} was started at {to_text(live.started_at or 0)}, and again at"
            f" {to_text(container.started_at)}: it was restarted from outside (`docker restart`, a restart policy)."
        ),
    )
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session kill {_two(one)}"
    return _of(
        one, "CONTAINER_RESTARTED", "Its container was restarted by others; the daemon ends it and starts another one.",
        evidence, command, incarnation=live.incarnation,
    )  # fmt: skip


def _restart_policy(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    found = [item for item in (one.container, *one.containers) if item is not None and item.restarts]
    if not found:
        return None
    container = found[0]
    evidence = (
        f"Container {container.container_id[:12]} has a restart policy: a message that ends it would be retried without end.",
    )
    return _of(
        one, "RESTART_POLICY", "Docker would restart its container on its own.", evidence,
        f"docker update --restart=no {container.container_id[:12]}", incarnation=container.incarnation,
    )  # fmt: skip


def _paused(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    container = one.container
    if container is None or not container.paused:
        return None
    evidence = (f"Container {container.container_id[:12]} is paused: it does no work until it is resumed or ended.",)
    return _of(
        one, "CONTAINER_PAUSED", "Somebody has paused its container.", evidence,
        f"docker unpause {container.container_id[:12]}", incarnation=container.incarnation,
    )  # fmt: skip


def _container_gone(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    live = one.live
    if live is None or live.life is not Life.GONE:
        return None
    # It is recorded before it exists: a daemon that works may be about to start it.
    if host.daemon is DaemonState.UP and host.now - (live.started_at or live.created_at) < GRACE_MS:
        return None
    evidence = (
        f"central.db has incarnation {live.incarnation} living since {to_text(live.started_at or live.created_at)}.",
        f"The runtime {host.runtime} lists no such container.",
    )
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session kill {_two(one)}"
    return _of(
        one, "GHOST_CONTAINER", "The registry takes a container for living that is gone.", evidence, command,
        incarnation=live.incarnation,
    )  # fmt: skip


def _hot_journal(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    lives = one.containers or (one.live is not None and one.live.life is not Life.GONE)
    if not one.journal or lives:
        return None
    # A release has the session swept at once, and a sweep with nothing running recovers the journal first.
    evidence = ("out/outbound.db-journal is there and no container runs: its writer died in mid-commit.",)
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session release {_two(one)}"
    return _of(one, "HOT_JOURNAL", "A dead container's journal keeps its answers from being read.", evidence, command)


def _spawn_failing(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    starting = one.live is not None and one.live.container_id is None  # that it is being tried is no news
    if not one.spawn_failures or not one.due or (one.live is not None and not starting):
        return None
    evidence = [
        f"{one.spawn_failures} failed starts in a row, the last: {one.last_spawn_error or 'no reason recorded'}"
    ]
    if one.next_spawn_at is not None and one.next_spawn_at > host.now:
        evidence.append(f"The next attempt is in {span(one.next_spawn_at - host.now)}.")
    image, away = image_unusable(host), runtime_away(host)
    cause = image or away
    # A container in the way is ended by a kill; the end of the container's own log is in `session show`.
    command = (
        cause.command if cause is not None else f"clawbus session {'kill' if one.containers else 'show'} {_two(one)}"
    )
    if cause is None and TOO_NEW in (one.last_spawn_error or ""):
        # An image of an older clawbus: its runner does not know the files that this host writes.
        command = "clawbus image build" if host.runtime == "docker" else UPGRADE
    named = cause is not None or one.containers or not command.startswith("clawbus session show")
    if not named:
        evidence.append("Repair what the last error names. The daemon keeps retrying, less often each time.")
    return _of(
        one, "SPAWN_FAILING", "Its container cannot be started.", evidence, command,
        cause=cause.code if cause is not None else "ORPHANED_CONTAINER" if one.containers else None,
        choices=() if named else (
            Choice("once its cause is repaired, to retry it now", f"clawbus session release {_two(one)}"),
        ),
    )  # fmt: skip


def _nearly_full(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a session near its size limit. Its container can still free space; over the limit, it is quarantined."""
    if one.near_limit is None or one.quarantined_at is not None:
        return None
    evidence = (one.near_limit, "Over the limit, the daemon ends its container and quarantines the session.")
    if one.near_limit.startswith("home/"):
        return _of(one, "HOME_NEARLY_FULL", "Its home/ folder is near its limit.", evidence, _what_fills(one, "home"))
    choices = (
        Choice("when nothing in out/ is needed any more", f"clawbus session reset {_two(one)}"),
        Choice("to see what fills it", _what_fills(one, "out")),
    )
    return _of(
        one, "OUT_NEARLY_FULL", "Its out/ folder is near its limit.", evidence, choices[1].command, choices=choices[:1]
    )


def _what_fills(one: SessionFacts, name: str) -> str:
    path = f"{one.folder or ''}/{name}"
    return f"du -ah --max-depth=3 {shlex.quote(path)}"


def _work_waiting(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    if not one.due or one.live is not None or one.containers or one.oldest_due_at is None:
        return None
    waited = host.now - one.oldest_due_at
    down = host.daemon is not DaemonState.UP
    if waited < (GRACE_MS if down else max(GRACE_MS, host.sweep_interval_ms + GRACE_MS)):
        return None
    cause = (
        f"DAEMON_{host.daemon.value.upper()}" if down
        else "RUNTIME_UNAVAILABLE" if runtime_away(host)
        else "IMAGE_UNUSABLE" if image_unusable(host)
        else "DISK_FULL" if disk_full(host)
        else None
    )  # fmt: skip
    evidence = [f"{one.due} due, the oldest since {span(waited)}, and no container runs."]
    if not down and cause is None and host.holders:
        evidence += _slots(host)
        longest = host.holders[0]
        return _of(
            one, "WORK_WAITING", "Work is due and every container slot is taken.", evidence,
            f"clawbus session stop {two_words(longest.agent, longest.session)}",
        )  # fmt: skip
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session release {_two(one)}"
    return _of(one, "WORK_WAITING", "Work is due and nothing runs.", evidence, command, cause=cause)


def _slots(host: HostFacts) -> list[str]:
    """Return which sessions have held the slots for the longest time, and for how long."""
    lines = [f"All {host.max_containers} slots (runtime.max_containers) are taken."]
    for one in host.holders[:_HOLDERS_SHOWN]:
        work = (
            f"works on message {one.message_id}"
            if one.message_id is not None
            else "has held one, with nothing claimed,"
        )
        lines.append(f"{one.agent}/{one.session} {work} for {span(host.now - one.since)}.")
    if len(host.holders) > _HOLDERS_SHOWN:
        lines.append(f"{len(host.holders) - _HOLDERS_SHOWN} more hold one for less long.")
    return lines


def _unclaimed(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    if one.live is None or one.live.life is not Life.ALIVE or one.oldest_due_at is None or one.claimed:
        return None
    waited = host.now - max(one.oldest_due_at, one.live.started_at or one.live.created_at)
    if waited < UNCLAIMED_MS:
        return None
    evidence = (f"{one.due} due for {span(waited)}; the container {one.live.container_id} lives and claims nothing.",)
    # It claims nothing, so a stop costs no message a try; a runner that hangs is killed after the grace.
    return _of(
        one, "UNCLAIMED", "Its container runs and takes nothing: the runner hangs, or cannot see its folder.", evidence,
        f"clawbus session stop {_two(one)}", incarnation=one.live.incarnation,
    )  # fmt: skip


def _held_back(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
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
    return _of(
        one, "HELD_BACK", "Messages wait for an earlier one of their session, which is to be tried again later.", evidence,
        f"clawbus message retry {shlex.quote(one.holder)} --session {one.name}",
    )  # fmt: skip


def _message_retrying(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Name a message on which the container dies again and again, before it is given up."""
    if one.crashing is None or _held_back(host, one) is not None:
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
    return _of(
        one, "MESSAGE_RETRYING", "Its container ends each time before a message is done.", evidence,
        f"clawbus message retry {named}", choices=choices,
    )  # fmt: skip


def _question_open(_: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Name a question that waits for a person."""
    if one.question is None:
        return None
    named = f"{shlex.quote(one.question)} --session {one_word(one.agent, one.session)}"
    more = f" {counted(one.questions - 1, 'more is', 'more are')} open." if one.questions > 1 else ""
    evidence = (
        f'"{one_line(one.question_text or "")[:200]}"{more}',
        f"Without an answer by {to_text(one.question_deadline or 0)} the agent takes it for a no, or for its default.",
    )
    choices = (Choice("to read it, with its options", f"clawbus question show {named}"),)
    return _of(
        one, "QUESTION_OPEN", "The agent waits for a person's answer.", evidence,
        f"clawbus question answer {named} --decline", choices=choices,
    )  # fmt: skip


def _delivery_stuck(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
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
    choices = () if down else (Choice("to have it looked at now", f"clawbus session release {_two(one)}"),)
    return _of(
        one,
        "DELIVERY_STUCK",
        "Answers are due, and the daemon does not send them.",
        evidence,
        command,
        cause=cause,
        choices=choices,
    )


def _answer_retrying(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
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
    evidence.append("Repair the receiver and retry it; or give it up with `clawbus delivery drop`.")
    command = f"clawbus delivery retry {shlex.quote(worst['id'])} --session {one.name}"
    drop = Choice("to give it up", f"clawbus delivery drop {shlex.quote(worst['id'])} --session {one_word(one.agent, one.session)}"
                  " --reason 'its receiver is gone'")  # fmt: skip
    return _of(one, "ANSWER_RETRYING", "An answer keeps failing.", evidence, command, choices=(drop,))


def _answers_held_back(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    if one.open_answers < host.max_open_answers:
        return None
    evidence = (
        f"{one.open_answers} answers are on their way; further ones wait in the container's own file.",
        "Repair the receiver and retry them, or give answers up with `clawbus delivery drop`.",
    )
    summary = "The session has as many open answers as it may have (delivery.max_open_answers)."
    where = one_word(one.agent, one.session)
    retry = f"clawbus delivery retry --all --session {where} --reason 'the receiver is repaired'"
    choices = [Choice("to see them", f"clawbus delivery list --session {where}")]
    if one.retrying_example is not None:
        answer = shlex.quote(one.retrying_example["id"])
        drop = f"clawbus delivery drop {answer} --session {where} --reason 'its receiver is gone'"
        choices.append(Choice("to give up the answer with the most failures", drop))
    return _of(one, "ANSWERS_HELD_BACK", summary, evidence, retry, choices=tuple(choices))


def _dead_letters(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
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
    which = (
        f"{shlex.quote(one.dead_example) if one.dead_example else '--all'} --session {one_word(one.agent, one.session)}"
    )
    choices = (
        Choice("once its cause is repaired", f"clawbus dead requeue {which} --reason 'its cause is repaired'"),
        Choice("to give it up", f"clawbus dead drop {which} --reason 'not needed any more'"),
    )
    found = _of(one, "DEAD_LETTERS", f"{waiting} for an operator.", evidence, command, choices=choices)
    return replace(found, died_of=one.dead_code, number=total)


def _two(one: SessionFacts) -> str:
    return two_words(one.agent, one.session)


def _of(
    one: SessionFacts,
    code: str,
    summary: str,
    evidence: Iterable[str],
    command: str,
    *,
    incarnation: str | None = None,
    cause: str | None = None,
    choices: tuple[Choice, ...] = (),
) -> Diagnosis:
    return Diagnosis(
        code, summary, tuple(evidence), command, one.agent, one.session, incarnation=incarnation, cause=cause,
        choices=choices,
    )  # fmt: skip


SESSION: Final[tuple[tuple[SessionRule, ...], ...]] = (
    (_quarantined, _too_new, _files_unreadable, _unregistered),
    (_failing,),
    (_nearly_full,),
    (_orphaned_container, _container_gone, _container_restarted, _hot_journal),
    (_restart_policy, _paused),
    (_spawn_failing, _work_waiting, _unclaimed),
    (_held_back, _message_retrying),
    (_delivery_stuck, _answers_held_back, _answer_retrying),
    (_question_open,),
    (_dead_letters,),
)

# What explains a session's state, the most pressing first: what keeps its next message waiting, and what delays nothing.
BLOCKING: Final[tuple[SessionRule, ...]] = (
    *(_quarantined, _too_new, _files_unreadable),
    *(_spawn_failing, _unclaimed, _held_back),
)
PASSABLE: Final[tuple[SessionRule, ...]] = (_message_retrying, _answer_retrying, _question_open, _dead_letters)
