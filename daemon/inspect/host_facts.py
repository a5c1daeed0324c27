"""Reads what the host shows: the daemon, the registry, the runtime, the disk, the clock. `core/host_rules.py` judges it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from daemon.config.models import Config
from daemon.config.policies import claim_max_s
from daemon.core.daemon_status import DaemonStatus
from daemon.core.facts import ClockFacts, DaemonState, Degradation, Holder, HostFacts
from daemon.inspect.budget_reading import agents_stopped
from daemon.inspect.central_reading import CentralSeen, folder_of
from daemon.inspect.containers import RuntimeSeen
from daemon.inspect.egress_reading import budgets_used_up, secret_errors
from daemon.inspect.lock_owners import foreign_holders
from daemon.inspect.open_files import access_repair, limits_of, machine_files, open_files_used_up
from daemon.inspect.session_facts import oldest_claim
from daemon.inspect.slots_reading import slot_facts
from daemon.inspect.trusted_files import open_current
from daemon.store.data_layout import VERSION_NAME, Layout
from daemon.store.folder_lock import live_holder
from daemon.store.free_room import LOW_BYTES, FreeRoom, free_room
from daemon.store.mount_points import mount_of
from daemon.systemd.service import unit_of
from schema.errors import ClawbusError, FileBusyError, HostTroubleError, StorageError

# Codes of errors that say that the host lacks something now.
_SHORTAGES: Final = frozenset({HostTroubleError.code, StorageError.code})


def host_facts(config: Config, now: int, status: DaemonStatus, central: CentralSeen, listing: RuntimeSeen) -> HostFacts:
    """Return the facts about the host. `now` is epoch ms. Write nothing, not even to test whether writing works."""
    facts = HostFacts(
        now=now,
        data_dir=str(config.data_dir),
        # Before the first start there is no central.db.
        registry_missing=central.missing and (config.data_dir / VERSION_NAME).exists(),
        registry_error=central.error,
        holders=_slot_holders(config, central),
        secret_errors=secret_errors(config),
        budgets_used_up=budgets_used_up(config, now),
        agents_stopped=agents_stopped(config, now),
        agents=frozenset(config.agents),
        slots=slot_facts(config),
    )
    facts = _with_policy(facts, config)
    facts = _with_daemon(facts, config, status, central.newest_at or 0)
    facts = _with_runtime(facts, listing, central_missing=central.missing)
    facts = _with_disk(facts, config)
    return _with_files(facts, config, facts.degraded if status.live is not None else ())


def _with_policy(facts: HostFacts, config: Config) -> HostFacts:
    """Add the limits of the configuration that findings compare with."""
    by_agent = {name: _ms(claim_max_s(config, agent)) for name, agent in config.agents.items()}
    return replace(
        facts,
        runtime=config.runtime.kind,
        max_containers=config.runtime.max_containers,
        max_open_answers=config.delivery.max_open_answers,
        sweep_interval_ms=_ms(config.sweep.interval_s),
        claim_stuck_ms=_ms(config.sweep.claim_stuck_s),
        ceiling_ms=_ms(config.sweep.ceiling_s),
        max_declared_ms=_ms(config.sweep.max_declared_s),
        claim_max_ms={"": _ms(claim_max_s(config, None)), **by_agent},
    )


def _with_daemon(facts: HostFacts, config: Config, status: DaemonStatus, newest_at: int) -> HostFacts:
    """Add what the daemon reports, and what its process shows. `newest_at`: the newest incarnation's start, epoch ms."""
    live = status.live or {}
    sweep: Mapping[str, Any] = live.get("last_sweep") or {}
    jump: Mapping[str, Any] = live.get("clock") or {}
    ahead = max(0, newest_at - facts.now)
    pid = _holder_pid(config, status)
    return replace(
        facts,
        daemon=status.state,
        daemon_detail=status.detail,
        degraded=_degraded(status),
        last_sweep_at=sweep.get("at"),
        clock=ClockFacts(ahead, "The newest incarnation" if ahead else None, jump.get("jumped_at"), jump.get("by_ms")),
        unit=unit_of(config.data_dir),
        holder_pid=pid,
        used_up=open_files_used_up(pid) if pid is not None else None,
        limits=limits_of(pid) if pid is not None else (),
        denied=access_repair(config.data_dir, pid) if pid is not None else None,
    )


def _with_runtime(facts: HostFacts, listing: RuntimeSeen, *, central_missing: bool) -> HostFacts:
    """Add what the runtime shows. Without central.db, an unanswered listing is no finding of its own."""
    return replace(
        facts,
        runtime_error=listing.error if not central_missing or listing.other_kind else None,
        other_runtime=listing.other_kind,
        runtime_repair=listing.repair,
        other_engine=listing.other_engine,
        copied_from=listing.copied_from,
        image_error=listing.image_error,
        image_repair=listing.image_repair,
        image_others=listing.image_others,
        images_checked=listing.images_checked,
    )


def _with_disk(facts: HostFacts, config: Config) -> HostFacts:
    """Add the room on the data folder's disk, and the machine's limit of open files."""
    room = free_room(config.data_dir)
    return replace(
        facts,
        max_machine_files=machine_files(),
        mount=mount_of(config.data_dir),
        free_bytes=room.bytes if room is not None else None,
        free_inodes=room.inodes if room is not None and room.few_inodes else None,
        low_bytes=room.low_bytes if room is not None else LOW_BYTES,
        write_error=_write_error(config, room),
    )


def _with_files(facts: HostFacts, config: Config, degraded: Iterable[Degradation]) -> HostFacts:
    """Add the errors of mailbox.db, and who locks it or central.db. `degraded`: from the daemon's own status."""
    layout = Layout(config.data_dir)
    errors = _mailbox_errors(config.data_dir)
    busy = is_busy(facts.registry_error or "", *errors, *(one.why for one in degraded))
    files = (layout.central_db, layout.mailbox_db)
    holders = foreign_holders(files, {facts.holder_pid or 0}, writing=not busy)
    return replace(facts, file_errors=errors, lock_holders=holders)


def _slot_holders(config: Config, central: CentralSeen) -> tuple[Holder, ...]:
    """Return the sessions that hold the container slots, longest first; none while a slot is free."""
    if len(central.live) < config.runtime.max_containers:
        return ()
    found: list[Holder] = []
    for key, row in central.live.items():
        claimed = oldest_claim(folder_of(config.data_dir, key))
        message_id, since = claimed if claimed is not None else (None, int(row["started_at"] or row["created_at"]))
        found.append(Holder(*key, since, message_id))
    return tuple(sorted(found, key=lambda one: one.since))


def _mailbox_errors(data_dir: Path) -> tuple[str, ...]:
    """Return why mailbox.db cannot be used; nothing if it can, or does not exist yet."""
    path = Layout(data_dir).mailbox_db
    if not path.exists():
        return ()
    try:
        with open_current(path):
            return ()
    except ClawbusError as error:
        return (f"{error.code}: {error}",)


def is_busy(*errors: str) -> bool:
    """Return whether one of the texts says that another process locks a file."""
    return any(FileBusyError.code in text or "database is locked" in text for text in errors)


def _degraded(status: DaemonStatus) -> tuple[Degradation, ...]:
    """Return the degraded parts that the daemon reports; or one for the error that it returned instead of its status."""
    if status.code is not None:
        what = "storage" if status.code in _SHORTAGES else "control socket"
        return (Degradation(what, status.detail or status.code, None, status.code),)
    return tuple(
        Degradation(str(one.get("what")), str(one.get("why")), one.get("since"), one.get("code"), one.get("resource"))
        for one in (status.live or {}).get("degraded") or ()
    )


def _holder_pid(config: Config, status: DaemonStatus) -> int | None:
    """Return the daemon's process id, from its status, or from the folder's lock if it does not answer."""
    if status.live is not None and isinstance(pid := status.live.get("pid"), int):
        return pid
    holder = live_holder(config.data_dir) if status.state is not DaemonState.DOWN else None
    return holder.pid if holder is not None else None


def _write_error(config: Config, room: FreeRoom | None) -> str | None:
    """Return why writing fails although the disk has room, or None."""
    if room is None:
        return f"{config.data_dir}: its file system does not answer."
    return f"{config.data_dir} is mounted read-only." if room.read_only else None


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
