"""Rules that find problems of the host: the daemon, the registry, the disk, the runtime, the clock. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from daemon.core.command_words import one_word
from daemon.core.diagnosis import Choice, Diagnosis, span
from daemon.core.facts import DaemonState, HostFacts, Limit
from daemon.core.host_repairs import (
    BACKUPS,
    exhausted_repair,
    move_away,
    restart_choice,
    restart_for,
    storage_repair,
    unlocking,
)
from daemon.core.printable import room
from daemon.core.slot_rules import slot_stuck, slots_unknown, standby_absent
from schema.errors import HostTroubleError, UnusableFileError
from schema.instants import to_text

CLOCK_SLACK_MS: Final = 60_000
TOO_NEW: Final = "SCHEMA_TOO_NEW"
UPGRADE: Final = "pip install --upgrade clawbus"
_KNOWN_TROUBLES: Final = frozenset({"registry", "storage", "disk", "runtime", "image"})
_START: Final[Mapping[str, str]] = MappingProxyType(
    {"docker": "systemctl start docker", "podman": "systemctl start podman.socket"}
)
_ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {"docker": "docker context ls", "podman": "podman system connection list"}
)
_EXHAUSTED: Final = HostTroubleError.code
_BROKEN: Final = f"{UnusableFileError.code}:"

HostRule = Callable[[HostFacts], Diagnosis | None]


def _config_invalid(host: HostFacts) -> Diagnosis | None:
    if not host.config_faults:
        return None
    summary = "The configuration cannot be used, so no daemon starts with it."
    return Diagnosis("CONFIG_INVALID", summary, host.config_faults, "clawbus config check")


def _daemon_down(host: HostFacts) -> Diagnosis | None:
    if host.daemon is not DaemonState.DOWN:
        return None
    evidence = (host.daemon_detail or "No process holds the data folder's lock or answers on the socket.",)
    # A daemon does not start with a file that it cannot read. The repair command for that file also starts the daemon.
    unreadable = "DATA_UNREADABLE" if any(not text.startswith(TOO_NEW) for text in host.file_errors) else None
    cause = "REGISTRY_UNREADABLE" if host.registry_error is not None else unreadable
    cause = "SLOT_STUCK" if host.slots.stuck is not None else cause
    cause = "SLOT_STATE" if host.slots.error is not None else cause
    cause = "CONFIG_INVALID" if host.config_faults else cause
    return Diagnosis("DAEMON_DOWN", "No daemon runs on this data folder.", evidence, host.start, cause=cause)


def _daemon_silent(host: HostFacts) -> Diagnosis | None:
    if host.daemon is not DaemonState.SILENT:
        return None
    evidence = (host.daemon_detail or "A process holds the data folder's lock, but nothing answers on the socket.",)
    return Diagnosis("DAEMON_SILENT", "The daemon runs but does not answer.", evidence, host.restart)


def _sweep_stalled(host: HostFacts) -> Diagnosis | None:
    if host.daemon is not DaemonState.UP or host.last_sweep_at is None:
        return None
    silent = host.now - host.last_sweep_at
    allowed = 3 * host.sweep_interval_ms + 60_000
    if silent <= allowed:
        return None
    evidence = (f"The last sweep was {span(silent)} ago; one is due every {span(host.sweep_interval_ms)}.",)
    return Diagnosis("SWEEP_STALLED", "The daemon answers, but its sweep has stopped.", evidence, host.restart)


def _registry_missing(host: HostFacts) -> Diagnosis | None:
    degraded = host.trouble("registry")
    if not host.registry_missing and degraded is None:
        return None
    evidence = [f"{host.data_dir}/central.db is missing or empty."] if host.registry_missing else []
    if degraded is not None:
        evidence.append(degraded.why)
    command = host.start if host.daemon is DaemonState.DOWN else "clawbus logs -n 50 --level warning"
    return Diagnosis(
        "REGISTRY_GONE", "central.db is gone; the daemon rebuilds it from the session folders.", tuple(evidence), command,
        choices=() if host.daemon is DaemonState.DOWN else (restart_choice(host),),
    )  # fmt: skip


def _too_new(host: HostFacts) -> Diagnosis | None:
    errors = [
        text for text in (host.registry_error, *host.file_errors) if text is not None and text.startswith(TOO_NEW)
    ]
    if not errors:
        return None
    return Diagnosis(
        TOO_NEW, "The data folder was written by a newer clawbus.", tuple(errors), UPGRADE, choices=(BACKUPS,)
    )


def _file_unreadable(host: HostFacts) -> Diagnosis | None:
    errors = tuple(text for text in host.file_errors if not text.startswith(TOO_NEW))
    if not errors:
        return None
    summary = "mailbox.db cannot be read, so no daemon starts."
    path = f"{host.data_dir}/mailbox.db"
    if not any(text.startswith(_BROKEN) for text in errors):
        # A lock or a failing disk: the file itself may be intact.
        return _passing(host, "DATA_UNREADABLE", summary, errors, "mailbox.db")
    evidence = (*errors, "The file that the command moves away keeps the answers that no client has fetched.")
    return Diagnosis("DATA_UNREADABLE", summary, evidence, f"{move_away(host, path)}{_then_start(host)}")


def _passing(host: HostFacts, code: str, summary: str, errors: tuple[str, ...], file: str | None = None) -> Diagnosis:
    """Report an intact file that cannot be used now. Name the process that locks it, or what the host lacks."""
    held = unlocking(host.lock_holders, file)
    if held is not None:
        return Diagnosis(code, summary, (*errors, *held.evidence), held.command, choices=(restart_choice(host),))
    repair = storage_repair(host)
    return Diagnosis(code, summary, (*errors, *repair.evidence), repair.command, choices=(restart_choice(host),))


def _locked(host: HostFacts) -> Diagnosis | None:
    """Report another process's lock on a file of ours: reads succeed, but the daemon cannot write."""
    held = unlocking(host.lock_holders)
    if held is None or host.daemon is not DaemonState.UP:
        return None
    summary = "Another process keeps the daemon from writing one of its files."
    return Diagnosis("FILE_LOCKED", summary, held.evidence, held.command)


def _then_start(host: HostFacts) -> str:
    return f" && {host.start}" if host.daemon is DaemonState.DOWN else ""


def _other_trouble(host: HostFacts) -> Diagnosis | None:
    """Report every other part that the daemon calls degraded."""
    found = [
        one for one in host.degraded if one.what not in _KNOWN_TROUBLES and not one.what.startswith("channel ")
    ]  # fmt: skip
    if not found:
        return None
    evidence = tuple(f"{one.what}: {one.why}" for one in found)
    summary = "A part of the daemon does not work."
    if any(one.what == "central.db" for one in found):
        return _passing(host, "DEGRADED", summary, evidence, "central.db")
    return Diagnosis("DEGRADED", summary, evidence, "clawbus logs -n 50 --level warning",
                     choices=(restart_choice(host),))  # fmt: skip


def _registry_unreadable(host: HostFacts) -> Diagnosis | None:
    if host.registry_error is None:
        return None
    path = f"{host.data_dir}/central.db"
    if not host.registry_error.startswith(_BROKEN):
        # A lock, a failing disk or no free descriptor: the file may be intact, so do not move it away.
        summary = "central.db cannot be read now; the daemon keeps trying."
        return _passing(host, "REGISTRY_UNREADABLE", summary, (host.registry_error,), "central.db")
    # The daemon rebuilds the registry from the session files, which are authoritative.
    command = f"{move_away(host, path)}{_then_start(host)}"
    return Diagnosis("REGISTRY_UNREADABLE", "central.db cannot be read.", (host.registry_error,), command)


def runtime_away(host: HostFacts) -> Diagnosis | None:
    """Report a container runtime that does not answer."""
    degraded = host.trouble("runtime")
    # In these cases another runtime is the problem: see _runtime_changed, _engine_changed and _copied.
    elsewhere = host.other_runtime is not None or host.other_engine or host.copied_from is not None
    own_error = host.runtime_error if not elsewhere else None
    why = own_error or (degraded.why if degraded is not None else None)
    if why is None:
        return None
    evidence = [why]
    if degraded is not None and degraded.since is not None:
        evidence.append(f"The daemon has been without it since {to_text(degraded.since)}.")
    command = host.runtime_repair or _START.get(host.runtime, "clawbus config check")
    return Diagnosis("RUNTIME_UNAVAILABLE", f"The runtime {host.runtime} does not answer.", tuple(evidence), command)


def _copied(host: HostFacts) -> Diagnosis | None:
    if host.copied_from is None:
        return None
    here = host.copied_from == host.data_dir
    other = "the folder that was at this path before" if here else f"another folder: {host.copied_from}"
    evidence = (
        f"Its installation id belongs to {other}.",
        "The containers that it records belong to that installation; this one neither adopts nor ends them.",
    )
    summary = "This data folder is a copy or was restored; its first start gives it its own installation id."
    return Diagnosis("COPIED_FOLDER", summary, evidence, host.start)


def _engine_changed(host: HostFacts) -> Diagnosis | None:
    if not host.other_engine:
        return None
    evidence = (host.runtime_error or "Another engine answers.",)
    summary = "The container engine that answers is not the one that the containers run on."
    command = _ENGINES.get(host.runtime, "clawbus install show")
    choices = (Choice("when the earlier engine is gone for good", "clawbus install renew"),)
    return Diagnosis("RUNTIME_CHANGED", summary, evidence, command, choices=choices)


def _runtime_changed(host: HostFacts) -> Diagnosis | None:
    if host.other_runtime is None:
        return None
    evidence = (host.runtime_error or f'The containers run under "{host.other_runtime}".',)
    summary = f"The configuration names the runtime {host.runtime}, and the containers run under {host.other_runtime}."
    evidence = (*evidence, f'To keep the containers, set runtime.kind to "{host.other_runtime}" again.')
    begin = host.start if host.daemon is DaemonState.DOWN else host.restart
    command = f"clawbus session kill --all --reason 'the runtime was changed' && {begin}"
    choices = (Choice("once runtime.kind is set back", host.start),)
    return Diagnosis("RUNTIME_CHANGED", summary, evidence, command, choices=choices)


def image_unusable(host: HostFacts) -> Diagnosis | None:
    """Report images of agents that cannot be used."""
    degraded = host.trouble("image")
    if host.images_checked:
        degraded = None  # the images were checked just now; the daemon's report is older
    why = host.image_error or (degraded.why if degraded is not None else None)
    if why is None:
        return None
    others = host.image_others
    evidence = [
        why,
        *(other for other, _ in others),
        "If the name is mistyped, correct that key in clawbus.toml, and reload the daemon.",
    ]
    if any("is foreign" in one for one in evidence):  # from the message of `usable_image`
        evidence.append(
            "A build takes the name away from the image that has it now; to keep that one, correct the key."
        )
    command = host.image_repair or "clawbus image build"
    summary = "Images of agents cannot be used." if others else "An image of agents cannot be used."
    choices = tuple(Choice("for another image", build) for _, build in others)
    return Diagnosis("IMAGE_UNUSABLE", summary, tuple(evidence), command, choices=choices)


def disk_full(host: HostFacts) -> Diagnosis | None:
    """Report a full disk, or one to which writing fails for another reason."""
    storage, disk = host.trouble("storage"), host.trouble("disk")
    if storage is not None and storage.code == _EXHAUSTED:
        storage = None
    low = (host.free_bytes is not None and host.free_bytes < host.low_bytes) or host.free_inodes is not None
    if host.write_error is None and storage is None and disk is None and not low:
        return None
    evidence = [why for why in (host.write_error, storage.why if storage else None, disk.why if disk else None) if why]
    if host.free_bytes is not None:
        evidence.append(f"{room(host.free_bytes)} are free; below {room(host.low_bytes)} writing soon fails.")
    if host.free_inodes is not None:
        evidence.append(f"{host.free_inodes} inodes are free: every new file needs one, whatever its size.")
    failing = host.write_error is not None or storage is not None
    full = low or disk is not None
    code = "DISK_FULL" if full else "STORAGE_FAILING"
    what = "is full" if full and failing else "is nearly full" if full else "cannot be written"
    if not full:
        repair = storage_repair(host)
        return Diagnosis(code, f"The data folder's disk {what}.", (*evidence, *repair.evidence), repair.command,
                         choices=repair.choices)  # fmt: skip
    where = shlex.quote(host.data_dir)
    by_size = f"du -xk --max-depth=2 {shlex.quote(f'{host.data_dir}/sessions')} | sort -rn | head -n 20"
    choices = (
        Choice("to see what fills it", f"du -xh --max-depth=4 {where}"),
        Choice("to list the largest sessions (`clawbus session delete` removes one that is finished)", by_size),
    )
    evidence.append("Free space on this disk, or enlarge it; waiting work then continues.")
    command = f"df {'-i' if host.free_inodes is not None else '-h'} {where}"
    return Diagnosis(code, f"The data folder's disk {what}.", tuple(evidence), command, choices=choices)


def host_trouble(host: HostFacts) -> Diagnosis | None:
    """Report that the host has run out of open files, memory or processes, and how to end that."""
    storage, used_up = host.trouble("storage"), host.used_up
    if used_up is not None:
        evidence = (
            f"The daemon, process {used_up.pid}, has open all of the {used_up.limit} files that its limit allows."
        )
        limit = Limit("nofile", used_up.limit, used_up.hard, used_up.limit)
        repair = exhausted_repair(replace(host, limits=(limit,), holder_pid=used_up.pid), "files")
        summary = "The daemon has run out of open files, so it cannot answer."
        return Diagnosis(_EXHAUSTED, summary, (evidence, *repair.evidence), repair.command)
    if storage is None or storage.code != _EXHAUSTED:
        return None
    summary = "This host has run out of open files, memory or processes; work continues when it has some again."
    repair = exhausted_repair(host, storage.resource)
    return Diagnosis(_EXHAUSTED, summary, (storage.why, *repair.evidence), repair.command, choices=repair.choices)


def _clock_ahead(host: HostFacts) -> Diagnosis | None:
    clock = host.clock
    if clock.ahead_ms <= CLOCK_SLACK_MS:
        return None
    evidence = [
        f"{clock.where or 'A row'} is dated {span(clock.ahead_ms)} in the future: the clock has been set back since."
    ]
    if clock.waits_until is not None and clock.message_id is not None:
        evidence.append(
            f"Message {clock.message_id} was put off to {to_text(clock.waits_until)}, by the clock as it was then."
        )
    return Diagnosis(
        "CLOCK_JUMP",
        "The host's clock jumped back: what was due by the earlier clock may wait that long.",
        tuple(evidence),
        _retry(clock.agent, clock.session, clock.message_id) or "timedatectl status",
        clock.agent,
        clock.session,
        clock.message_id,
    )


def _clock_jumped(host: HostFacts) -> Diagnosis | None:
    clock = host.clock
    if clock.jumped_at is None or clock.by_ms is None or host.now - clock.jumped_at > 3_600_000:
        return None
    way = "forward" if clock.by_ms > 0 else "back"
    evidence = (
        f"At {to_text(clock.jumped_at)} the daemon saw it go {way} by {span(abs(clock.by_ms))}.",
        f"If the clock is right now, do nothing: this finding ends at {to_text(clock.jumped_at + 3_600_000)}.",
    )
    choices = (Choice("when the clock is wrong", "timedatectl set-ntp true"),)
    return Diagnosis("CLOCK_JUMP", "The host's clock jumped within the last hour.", evidence, "timedatectl status",
                     choices=choices)  # fmt: skip


def _retry(agent: str | None, session: str | None, message_id: str | None) -> str | None:
    if message_id is None or agent is None or session is None:
        return None
    return f"clawbus message retry {message_id} --session {one_word(agent, session)}"


def _channel_failing(host: HostFacts) -> Diagnosis | None:
    failing = [item for item in host.degraded if item.what.startswith("channel ")]
    if not failing:
        return None
    evidence = tuple(f"{item.what}: {item.why}" for item in failing)
    held = unlocking(host.lock_holders)
    if all(item.why.startswith("sends to ") for item in failing):
        summary = "A channel's receiver accepts nothing; the daemon keeps retrying the answers to it."
        if held is not None:
            return Diagnosis("CHANNEL_FAILING", summary, (*evidence, *held.evidence), held.command)
        more = "Repair the receiver; a success ends this, and so does giving up every answer that failed there."
        return Diagnosis("CHANNEL_FAILING", summary, (*evidence, more), "clawbus delivery list", choices=(
            Choice("once the receiver is repaired", "clawbus delivery retry --all --reason 'the receiver is repaired'"),
        ))  # fmt: skip
    summary = "A channel has failed; the daemon restarts it."
    if held is not None:
        return Diagnosis("CHANNEL_FAILING", summary, (*evidence, *held.evidence), held.command)
    more = "Fix what the reason names: end the program that has taken its address, or correct its table in the configuration."
    choices = (restart_for(host, "once its configuration is corrected"),)
    return Diagnosis("CHANNEL_FAILING", summary, (*evidence, more), "ss -ltnp", choices=choices)


def _secret_unusable(host: HostFacts) -> Diagnosis | None:
    if not host.secret_errors:
        return None
    evidence = (*(why for why, _ in host.secret_errors), "Requests of agents that need it are answered with 503.")
    return Diagnosis("EGRESS_SECRET", "A route's secret cannot be read.", evidence, host.secret_errors[0][1])


def _budget_used_up(host: HostFacts) -> Diagnosis | None:
    if not host.budgets_used_up:
        return None
    evidence = (
        *(f"{agent} has used {spent}." for agent, spent in host.budgets_used_up),
        "Their requests are answered with 429 until midnight.",
    )
    choices = (restart_for(host, "once egress.budgets allows more"),)
    return Diagnosis("EGRESS_BUDGET", "The daily budget is used up.", evidence, "clawbus egress list", choices=choices)


def _agent_stopped(host: HostFacts) -> Diagnosis | None:
    if not host.agents_stopped:
        return None
    evidence = (
        *(f"{agent} has used {spent}." for agent, spent in host.agents_stopped),
        "Its messages wait, and cost no try, until midnight; a message with an expiry may expire.",
    )
    names = " ".join(shlex.quote(agent) for agent, _ in host.agents_stopped)
    choices = (Choice("once the limits in [agents.NAME] are raised", "clawbus reload"),)
    return Diagnosis(
        "BUDGET_USED_UP", "An agent has used up its daily budget, and starts no more turns.", evidence,
        f"clawbus agent refill {names}", choices=choices,
    )  # fmt: skip


HOST: Final[tuple[tuple[HostRule, ...], ...]] = (
    (_config_invalid,),
    (_daemon_silent, _daemon_down, _sweep_stalled),
    (_registry_missing, _too_new, _registry_unreadable, _file_unreadable, _locked),
    (slots_unknown, slot_stuck, standby_absent),
    (_other_trouble,),
    (disk_full, host_trouble),
    (_copied, _runtime_changed, _engine_changed, runtime_away, image_unusable),
    (_clock_ahead, _clock_jumped),
    (_channel_failing,),
    (_secret_unusable,),
    (_budget_used_up,),
    (_agent_stopped,),
)
