"""Chooses the command that ends a shortage of the host, or failing writes. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from daemon.core.diagnosis import Choice
from daemon.core.facts import DaemonState, HostFacts, Limit, LockHolder
from schema.frozen import frozen
from schema.instants import file_stamp

ENOUGH_FILES: Final = 65_536
READ_KERNEL_ERRORS: Final = "dmesg --level=emerg,alert,crit,err"
# What a resource may be held by: the limits of the process, the likeliest first. A thread needs room for its stack.
_LIMITS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "files": ("nofile",),
    "memory": ("as", "data"),
    "processes": ("nproc", "as"),
}
_LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "memory": ("memory", "ps -eo pid,rss,comm --sort=-rss"),
    "processes": ("processes and threads", "ps -eo pid,nlwp,user,comm --sort=-nlwp"),
}
_FOR_GOOD: Final[Mapping[str, str]] = {
    "nofile": "LimitNOFILE=",
    "as": "LimitAS=",
    "data": "LimitDATA=",
    "nproc": "LimitNPROC=",
}
_FULL: Final = ("disk is full", "no space", "quota")
# A backup has a manifest beside the data folder's version file.
BACKUPS: Final = Choice(
    "when there is an earlier backup (this lists them; `clawbus restore --replace` restores one)",
    "find / -xdev -name clawbus.version -execdir test -e manifest.json ';' -printf '%h\\n'",
)


@frozen
class Repair:
    """A command, what a person should know before running it, and alternatives."""

    command: str
    evidence: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()


def exhausted_repair(host: HostFacts, resource: str | None) -> Repair:
    """Return the repair that gives this host room again.

    Without a known resource, assume the one that the daemon is nearest to using up.
    """
    if resource == "machine_files":
        more = 2 * max(host.max_machine_files, ENOUGH_FILES)
        return Repair(f"sysctl -w fs.file-max={more}", ("The limit is the whole machine's (fs.file-max).",))
    names = _LIMITS_OF.get(resource or "", tuple(_FOR_GOOD))
    found = [one for name in names for one in host.limits if one.option == name and one.soft >= 0]
    # Every user has a limit of processes, which is seldom what has run out unless the daemon is near it.
    near = [one for one in found if one.tight] or [one for one in found if one.option != "nproc"]
    if near and host.holder_pid is not None:
        return _raise(host, near[0], host.holder_pid)
    return _freed(host, resource)


def _raise(host: HostFacts, limit: Limit, pid: int) -> Repair:
    """Return the command that raises the soft limit as far as the hard one allows; only root may go beyond that."""
    floor = ENOUGH_FILES if limit.option == "nofile" else 1
    rises = limit.hard < 0 or limit.hard > limit.soft
    value = str(limit.hard) if limit.hard > limit.soft else str(2 * max(limit.soft, floor))
    if limit.hard < 0 and limit.option != "nofile":  # files are never unlimited
        value = "unlimited"
    value = f"{value}:" if rises else f"{value}:{value}"
    where = (
        f"{_FOR_GOOD[limit.option]} in the unit {host.unit}"
        if host.unit
        else f"`ulimit` (prlimit --{limit.option}) of its shell"
    )
    evidence = [f"The limit of process {host.holder_pid} is {limit.soft}; raised for good, it is {where}."]
    if not rises:
        evidence.append("Only root may raise the hard limit.")
    return Repair(f"prlimit --pid {pid} --{limit.option}={value}", tuple(evidence))


def _freed(host: HostFacts, resource: str | None) -> Repair:
    what, command = _LISTS.get(resource or "", _LISTS["memory"])
    if host.unit is not None:
        raised = f"systemctl set-property --runtime {host.unit} MemoryMax=infinity TasksMax=infinity"
        lists = Choice(f"when the machine itself has run out of {what}, list what uses them and end one", command)
        return Repair(raised, (f"The unit {host.unit} may be at its MemoryMax= or TasksMax=.",), (lists,))
    said = f"The machine has run out of {what}. End one of the processes that the command lists, or add some."
    return Repair(command, (said,), (restart_choice(host),))


def storage_repair(host: HostFacts) -> Repair:
    """Return what makes the data folder writable again, when it has room."""
    if host.denied is not None:
        return Repair(host.denied, ("The daemon's user may not write there.",))
    if host.mount is not None and host.write_error is not None and "read-only" in host.write_error:
        return Repair(f"mount -o remount,rw {shlex.quote(host.mount)}")
    storage = host.trouble("storage")
    if storage is not None and any(words in storage.why.lower() for words in _FULL):
        said = "The file system has room, so the daemon's user may have used up its quota (`quota`): raise it or make room."
        return Repair(f"df -h {shlex.quote(host.data_dir)}", (said,), (restart_choice(host),))
    said = "Repair or replace the disk that the kernel's log names, or remount its file system; waiting work then continues."
    return Repair(READ_KERNEL_ERRORS, (said,), (restart_choice(host),))


def unlocking(holders: Sequence[LockHolder], file: str | None = None) -> Repair | None:
    """Return what ends a lock on a file, or on any; None when no process is known to hold one."""
    found = [one for one in holders if file in {None, one.file}]
    if not found:
        return None
    evidence = tuple(
        f"Process {one.name} holds a lock on {one.file}. End it, or wait until it releases the lock." for one in found
    )
    return Repair(f"kill {' '.join(str(pid) for pid in sorted({one.pid for one in found}))}", evidence)


def move_away(host: HostFacts, path: str) -> str:
    """Return the command that keeps a broken file under a name that no earlier one has."""
    return f"mv {shlex.quote(path)} {shlex.quote(f'{path}.broken-{file_stamp(host.now)}')}"


def restart_choice(host: HostFacts) -> Choice:
    """Return the way to end a passing trouble: the daemon does it by itself, or its next start does."""
    if host.daemon is DaemonState.DOWN:
        return Choice("once its cause is repaired", host.start)
    return Choice("if it remains after its cause is repaired", host.restart)


def restart_for(host: HostFacts, when: str) -> Choice:
    """Return the restart that a changed configuration needs. A daemon that no service runs is started again by hand."""
    again = " (and start it again)" if host.unit is None and host.holder_pid is not None else ""
    return Choice(f"{when}{again}", host.orderly_restart)


def secret_repair(path: str, uid: int, owner: int | None) -> str:
    """Return the command for a secret file that cannot be used. `owner`: whose it is, if the user `uid` may not read it."""
    name = shlex.quote(path)
    if owner is None:  # from the terminal or a pipe, so that the secret does not get into the shell's history
        return f"(umask 077 && cat > {name})"
    if owner == uid:
        return f"chmod u+r {name}"
    sudo = "sudo " if uid else ""
    return f"{sudo}chown {uid} {name} && {sudo}chmod u+r {name}"
