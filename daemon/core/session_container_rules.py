"""Rules about a session's container: stray, restarted, paused, gone, idle, or missing although work is due. Pure."""

from __future__ import annotations

import shlex
from typing import Final

from daemon.core.command_words import two_words
from daemon.core.diagnosis import Choice, Diagnosis, span
from daemon.core.facts import DaemonState, HostFacts, SessionFacts
from daemon.core.host_rules import TOO_NEW, UPGRADE, disk_full, image_unusable, runtime_away
from daemon.core.run_state import Life
from daemon.core.session_file_rules import too_new
from daemon.core.session_finding import GRACE_MS, finding, quoted
from schema.instants import to_text

UNCLAIMED_MS: Final = 60_000  # a healthy runner has polled many times by then
_HOLDERS_SHOWN: Final = 10


def orphaned_container(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a running container that the daemon does not supervise."""
    if not one.containers:
        return None
    stray = one.containers[0]
    evidence = [
        f"Container {stray.container_id[:12]} of incarnation {stray.incarnation} has run since {to_text(stray.started_at)}.",
        f"central.db says that {one.live.incarnation} lives."
        if one.live
        else "central.db records no living incarnation of this session.",
    ]
    if len(one.containers) > 1:
        evidence.append(f"{len(one.containers) - 1} more run beside it.")
    down = host.daemon is DaemonState.DOWN
    command = host.start if down else f"clawbus session kill {quoted(one)}"
    return finding(
        one, "ORPHANED_CONTAINER", "It has a running container that the daemon does not supervise.", evidence, command,
        incarnation=stray.incarnation,
    )  # fmt: skip


def _engine(host: HostFacts) -> str:
    """Return the program that commands the engine in which the containers run."""
    return "podman" if (host.other_runtime or host.runtime) == "podman" else "docker"


def container_restarted(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a container that was restarted from outside: an incarnation must run only once."""
    live, container = one.live, one.container
    if live is None or container is None or live.started_at in {None, container.started_at}:
        return None
    evidence = (
        (
            f"Container {container.container_id[:12]} was started at {to_text(live.started_at or 0)}, and again at"
            f" {to_text(container.started_at)}: it was restarted from outside (`{_engine(host)} restart`, a restart policy)."
        ),
    )
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session kill {quoted(one)}"
    return finding(
        one, "CONTAINER_RESTARTED", "Something else restarted its container; the daemon ends it and starts a new one.",
        evidence, command, incarnation=live.incarnation,
    )  # fmt: skip


def restart_policy(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a container that its engine would restart on its own."""
    found = [item for item in (one.container, *one.containers) if item is not None and item.restarts]
    if not found:
        return None
    container = found[0]
    evidence = (
        f"Container {container.container_id[:12]} has a restart policy: a message that ends it would be retried without end.",
    )
    return finding(
        one, "RESTART_POLICY", f"{_engine(host).capitalize()} would restart its container on its own.", evidence,
        f"{_engine(host)} update --restart=no {container.container_id[:12]}", incarnation=container.incarnation,
    )  # fmt: skip


def paused(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a container that somebody paused."""
    container = one.container
    if container is None or not container.paused:
        return None
    evidence = (f"Container {container.container_id[:12]} is paused: it does no work until it is resumed or ended.",)
    return finding(
        one, "CONTAINER_PAUSED", "Somebody has paused its container.", evidence,
        f"{_engine(host)} unpause {container.container_id[:12]}", incarnation=container.incarnation,
    )  # fmt: skip


def container_gone(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report an incarnation that central.db records as alive, although the runtime lists no container of it."""
    live = one.live
    if live is None or live.life is not Life.GONE:
        return None
    # An incarnation is recorded before its container exists: a running daemon may be about to start it.
    if host.daemon is DaemonState.UP and host.now - (live.started_at or live.created_at) < GRACE_MS:
        return None
    evidence = (
        f"central.db says that incarnation {live.incarnation} has lived since {to_text(live.started_at or live.created_at)}.",
        f"The runtime ({host.runtime}) lists no such container.",
    )
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session kill {quoted(one)}"
    return finding(
        one, "GHOST_CONTAINER", "central.db says that its container runs, but the container is gone.", evidence, command,
        incarnation=live.incarnation,
    )  # fmt: skip


def hot_journal(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report the journal of a container that died in the middle of a commit."""
    lives = one.containers or (one.live is not None and one.live.life is not Life.GONE)
    if not one.journal or lives:
        return None
    # `session release` sweeps the session at once, and a sweep while no container runs first recovers the journal.
    evidence = ("out/outbound.db-journal is there but no container runs: its writer died in mid-commit.",)
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session release {quoted(one)}"
    return finding(
        one, "HOT_JOURNAL", "A dead container's journal keeps its answers from being read.", evidence, command
    )


def work_without_agent(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report work for an agent that is no longer configured, even if none of it is due yet."""
    waits = one.due or one.later or one.next_due_at is not None
    if not host.lost(one.agent) or one.quarantined_at is not None or not waits:
        return None
    if one.due:
        when = f"{one.due} due now."
    elif one.next_due_at is not None:
        when = f"The next is due at {to_text(one.next_due_at)}."
    else:
        when = f"{one.later} not due yet."
    evidence = (f"The configuration has no table [agents.{one.agent}].", when)
    choices = (
        Choice("once the table is back", "clawbus reload"),
        Choice(
            "if the session is no longer needed",
            f"clawbus session delete {quoted(one)} --force --reason 'its agent is gone'",
        ),
    )
    return finding(
        one, "WORK_WITHOUT_AGENT", "Work waits for an agent that is not configured any more.", evidence,
        f"clawbus session show {quoted(one)}", choices=choices,
    )  # fmt: skip


def spawn_failing(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report that the session's container cannot be started, also while the next start is under way."""
    running = one.live is not None and one.live.container_id is not None
    if not one.spawn_failures or not one.due or (running and not _hangs(host, one)):
        return None
    evidence = [
        f"{one.spawn_failures} failed starts in a row, the last: {one.last_spawn_error or 'no reason recorded'}"
    ]
    if one.next_spawn_at is not None and one.next_spawn_at > host.now:
        evidence.append(f"The next attempt is in {span(one.next_spawn_at - host.now)}.")
    cause, command = _repair_of_starts(host, one)
    choices: tuple[Choice, ...] = ()
    if command is None:
        command = f"clawbus session show {quoted(one)}"  # it has the failed container's log
        evidence.append("Repair what the last error names. The daemon keeps retrying, less often each time.")
        choices = (Choice("once its cause is repaired, to retry it now", f"clawbus session release {quoted(one)}"),)
    return finding(
        one, "SPAWN_FAILING", "Its container cannot be started.", evidence, command, cause=cause, choices=choices
    )


def _repair_of_starts(host: HostFacts, one: SessionFacts) -> tuple[str | None, str | None]:
    """Return the code of what makes the starts fail, and the command that ends it; None for what is not known."""
    cause = image_unusable(host) or runtime_away(host) or too_new(host, one)
    if cause is not None:
        return cause.code, cause.command
    if TOO_NEW in (one.last_spawn_error or ""):
        # The image is of an older clawbus, whose runner cannot read the files that this host writes.
        return None, UPGRADE if host.runtime == "process" else "clawbus image build"
    if one.containers:  # a stray container is in the way of every start until it is killed
        return "ORPHANED_CONTAINER", f"clawbus session kill {quoted(one)}"
    return None, None


def _hangs(host: HostFacts, one: SessionFacts) -> bool:
    """Return whether the container has claimed nothing for so long that its start may have failed, too."""
    if one.live is None or one.claimed or one.oldest_due_at is None:
        return False
    return host.now - max(one.oldest_due_at, one.live.started_at or one.live.created_at) > GRACE_MS


def budget_spent(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report work that waits because the agent has used up its daily budget."""
    spent = dict(host.agents_stopped).get(one.agent)
    if spent is None or not one.due or one.live is not None or one.oldest_due_at is None:
        return None
    waits = f"{one.due} due, the oldest for {span(host.now - one.oldest_due_at)}. The budget is renewed at midnight."
    return finding(
        one, "WORK_WAITING", "Its agent's daily budget is used up.", (f"{one.agent} has used {spent}.", waits),
        f"clawbus agent refill {shlex.quote(one.agent)}", cause="BUDGET_USED_UP",
    )  # fmt: skip


def work_waiting(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report work that is due while no container runs, and what keeps it waiting."""
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
    evidence = [f"{one.due} due, the oldest for {span(waited)}, and no container runs."]
    if not down and cause is None and host.holders:
        evidence += _slots(host)
        longest = host.holders[0]
        return finding(
            one, "WORK_WAITING", "Work is due and every container slot is taken.", evidence,
            f"clawbus session stop {two_words(longest.agent, longest.session)}",
        )  # fmt: skip
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session release {quoted(one)}"
    return finding(one, "WORK_WAITING", "Work is due and nothing runs.", evidence, command, cause=cause)


def _slots(host: HostFacts) -> list[str]:
    """Return the evidence: which sessions have held the slots longest, and for how long."""
    lines = [f"All {host.max_containers} slots (runtime.max_containers) are taken."]
    for one in host.holders[:_HOLDERS_SHOWN]:
        work = (
            f"works on message {one.message_id}"
            if one.message_id is not None
            else "has held one, with nothing claimed,"
        )
        lines.append(f"{one.agent}/{one.session} {work} for {span(host.now - one.since)}.")
    if len(host.holders) > _HOLDERS_SHOWN:
        lines.append(f"{len(host.holders) - _HOLDERS_SHOWN} more have held one for less time.")
    return lines


def unclaimed(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a container that runs and takes none of the messages that are due."""
    if one.live is None or one.live.life is not Life.ALIVE or one.oldest_due_at is None or one.claimed:
        return None
    # Between two turns it claims nothing for a moment, however long its queue is.
    waited = host.now - max(one.oldest_due_at, one.live.started_at or one.live.created_at, one.moved_at or 0)
    if waited < UNCLAIMED_MS:
        return None
    evidence = (f"{one.due} due for {span(waited)}; the container {one.live.container_id} lives and claims nothing.",)
    # It claims nothing, so a stop costs no message a try; a runner that hangs is killed after the grace.
    return finding(
        one, "UNCLAIMED", "Its container runs but takes nothing: the runner hangs, or cannot see its folder.", evidence,
        f"clawbus session stop {quoted(one)}", incarnation=one.live.incarnation,
    )  # fmt: skip
