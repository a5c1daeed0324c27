"""Parts of the commands that are printed for people to copy: a session's name, and how to start the daemon. Pure."""

from __future__ import annotations

import shlex

from schema.ids import is_plain


def two_words(agent: str, session: str) -> str:
    """Return `AGENT SESSION`, or one quoted word where the session's name would be an option or needs quoting."""
    return f"{agent} {session}" if is_plain(session) else one_word(agent, session)


def one_word(agent: str, session: str) -> str:
    """Return `AGENT/SESSION`, quoted where a shell needs that."""
    return shlex.quote(f"{agent}/{session}")


def only_shows(command: str) -> bool:
    """Return whether a command that we print changes nothing: the operator reads what it prints and then chooses."""
    words = shlex.split(command)
    if words[:1] != ["clawbus"]:
        return words[:1] in (["df"], ["du"], ["dmesg"], ["journalctl"])
    return words[1:2] == ["logs"] or words[2:3] in (["show"], ["list"], ["check"])


def start_command(unit: str | None, slot: str | None = None) -> str:
    """Return the command that starts the daemon: systemd's where a unit runs it. `slot`: the one that serves, where slots are used."""
    if unit is not None:
        return f"systemctl start {unit}"
    return f"clawbus serve --slot {slot}" if slot is not None else "clawbus serve"


def restart_command(unit: str | None, pid: int | None, signal: str = "KILL") -> str:
    """Return the command that ends a daemon that runs. Without a unit, `clawbus serve` starts the next one.

    `signal`: KILL for a daemon that hangs, TERM for one that answers.
    """
    if unit is None and pid is not None:
        return f"kill -{signal} {pid}"
    return f"systemctl restart {unit or 'clawbus'}"
