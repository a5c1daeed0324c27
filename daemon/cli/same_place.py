"""Adds the global options of one run to the commands that it prints, so that they name the same installation. Pure."""

from __future__ import annotations

import re
import shlex
from typing import Final

from daemon.cli.global_options import Globals

_OURS: Final = re.compile(r"^clawbus(?= )")  # the command itself, not a path of that name
_CHAIN: Final = " && "


def operand(value: str) -> str:
    """Return a value as the last argument of a command for a shell. Many chats' ids begin with a dash, as options do."""
    return f"-- {shlex.quote(value)}" if value.startswith("-") else shlex.quote(value)


def in_place(command: str, options: Globals) -> str:
    """Add the options that say which installation is meant to each command of ours in a chain."""
    if _CHAIN in command:
        return _CHAIN.join(in_place(one, options) for one in command.split(_CHAIN))
    place = ""
    if options.config is not None and "--config" not in command:
        place += f" --config {shlex.quote(str(options.config))}"
    if options.data is not None and "--data" not in command and "--config" not in command:
        place += f" --data {shlex.quote(str(options.data))}"
    return _OURS.sub(lambda found: found.group() + place, command)
