"""Ends what a demo's daemon left behind, should it have failed to: never by a name or a bare process id."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

from daemon.runtimes.process_table import Leader, living_members, send_signal


def leader_of(record: Path) -> Leader | None:
    """Whom a record of the process runtime (`run/process/<id>.json`) is about; None if it is no record."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return Leader(int(found["pid"]), int(found["start_ticks"]), str(found["boot_id"]), str(found["incarnation"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def end_processes(folder: Path) -> int:
    """SIGKILL every living process of every recorded agent; returns how many there were."""
    ended = 0
    for record in sorted(folder.glob("*.json")):
        leader = leader_of(record)
        for member in living_members(leader) if leader is not None else []:
            send_signal(member, signal.SIGKILL)
            ended += 1
    return ended


def end_containers(install_id: str) -> int:
    """Remove every container with this installation's label; returns how many there were."""
    label = f"label=clawbus.install={install_id}"
    found = _docker("ps", "--all", "--quiet", "--no-trunc", "--filter", label)
    ids = found.stdout.split()
    if ids:
        _docker("rm", "--force", "--volumes", *ids)
    return len(ids)


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=False)
