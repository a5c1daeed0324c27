"""Rules that find problems of the two slots: a record that cannot be read, and a slot without its standby. Pure."""

from __future__ import annotations

from daemon.core.diagnosis import Choice, Diagnosis
from daemon.core.facts import DaemonState, HostFacts
from daemon.core.host_repairs import move_away
from daemon.core.slots import STATE_FILE


def slots_unknown(host: HostFacts) -> Diagnosis | None:
    """Report a record of slots that is damaged: no slot begins to serve, and no deploy begins."""
    if host.slots.error is None:
        return None
    evidence = (
        host.slots.error,
        "Without the file, the slot that serves or served last goes on and writes a new one; that knows no earlier deploy.",
    )
    summary = "Which slot is to serve cannot be read, so no slot begins to."
    return Diagnosis("SLOT_STATE", summary, evidence, move_away(host, f"{host.data_dir}/{STATE_FILE}"))


def slot_stuck(host: HostFacts) -> Diagnosis | None:
    """Report a slot that is to serve and cannot start: the other slot's standby waits for a deploy, which needs this one."""
    slots = host.slots
    if slots.stuck is None or host.daemon is not DaemonState.DOWN:
        return None
    evidence = ("What its link leads to is gone, or is no whole release; each start fails. `clawbus source` names it.",)
    summary = f"Slot {slots.stuck} is to serve, and its release cannot be started."
    command = f"clawbus release link {slots.stuck} {slots.instead}" if slots.instead else "clawbus release list"
    return Diagnosis("SLOT_STUCK", summary, evidence, command)


def standby_absent(host: HostFacts) -> Diagnosis | None:
    """Report a slot without its standby: a deploy waits for it in vain, and a bad release is not taken back."""
    slot = host.slots.absent
    if slot is None or host.daemon is not DaemonState.UP:
        return None
    evidence = ("It is not started, or the release that it points at does not start.",)
    linked = Choice("when its release does not start", f"clawbus release link {slot} {host.slots.release}")
    summary = f"No standby answers in slot {slot}."
    if host.unit is None:
        return Diagnosis("STANDBY_ABSENT", summary, evidence, f"clawbus serve --slot {slot}", choices=(linked,))
    unit = f"clawbus@{slot}"
    started = Choice("when it is not started", f"systemctl enable --now {unit}")
    return Diagnosis("STANDBY_ABSENT", summary, evidence, f"journalctl -u {unit} -n 50", choices=(started, linked))
