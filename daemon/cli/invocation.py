"""One run of one command: its options, and what they lead to: the configuration, the daemon's client, the terminal.

Configuration and the HTTP client are imported when a command first needs them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli.envelope import to_json
from daemon.cli.global_options import Globals
from daemon.cli.output import Output, progress
from daemon.cli.same_place import in_place
from daemon.config.place import Place, place_of, quick_place
from daemon.core.command_words import start_command
from daemon.systemd.service import serving_slot, unit_of
from schema.errors import ClawbusError

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.api.client import ControlClient
    from daemon.config.models import Config


@dataclass
class Invocation:
    """One run of one command."""

    command: str
    options: Globals = field(default_factory=Globals)
    context: Any = None  # the parser's context, if a parser read the command line

    @property
    def json(self) -> bool:
        """Whether to answer with an envelope."""
        return self.options.form == "json"

    @property
    def config_file(self) -> Path | None:
        """The file that `config` reads; None when there is none."""
        from daemon.config.sources import find_config  # noqa: PLC0415

        return find_config(self.options.config)

    @cached_property
    def config(self) -> Config:
        """The checked configuration. Raise ConfigError."""
        from daemon.config.loading import load_config  # noqa: PLC0415

        return load_config(self.config_file, data_dir=self.options.data, warn=self._warn)

    @cached_property
    def place(self) -> Place:
        """Where the daemon is. Enough to ask a running one, and much quicker than `config`. Raises ConfigError."""
        known = self.__dict__.get("config")
        if known is None:
            found = quick_place(self.config_file, self.options.data, os.environ)
            if found is not None:
                return found
        return place_of(known or self.config)

    @staticmethod
    def _warn(fault: str) -> None:
        progress(f"warning: {fault.rstrip('.')}; `clawbus serve` refuses it")

    @cached_property
    def strict_config(self) -> Config:
        """`config` for a command that starts the daemon: an environment variable that names no key is an error. Raise ConfigError."""
        from daemon.config.loading import load_config  # noqa: PLC0415

        return load_config(self.config_file, data_dir=self.options.data)

    @cached_property
    def unit(self) -> str | None:
        """The systemd unit that runs the daemon of this data folder, or None."""
        try:
            return unit_of(self.place.data_dir)
        except ClawbusError:  # a configuration that cannot be read names no folder
            return None

    @cached_property
    def start(self) -> str:
        """The command that starts the daemon of this data folder."""
        try:
            slot = serving_slot(self.place.data_dir)
        except ClawbusError:
            slot = None
        return start_command(self.unit, slot)

    def here(self, command: str) -> str:
        """Return the command with this one's --config and --data, so that it can be copied and run."""
        return in_place(command, self.options)

    def client(self, *, answer_s: float = 30.0) -> ControlClient:
        """Return a client of the configured daemon; the caller closes it. It waits `answer_s` seconds for an answer."""
        from daemon.api.client import ControlClient  # noqa: PLC0415

        return ControlClient(self.place.control_socket, answer_s=answer_s)

    def silent_daemon(self) -> str | None:
        """Return a sentence if a process holds the data folder although no daemon answers, else None."""
        from daemon.store.folder_lock import live_holder  # noqa: PLC0415

        holder = live_holder(self.place.data_dir)
        if holder is None:
            return None
        return (
            f"process {holder.pid} has held {self.place.data_dir} since {holder.since}"
            f" but does not answer on {self.place.control_socket}."
        )

    def emit(self, value: object) -> None:
        """Write one line of JSON, for a stream (`--follow`)."""
        output = Output()
        output.write(to_json(value) + "\n")
        output.flush()

    def console(self) -> Console:
        """Return the terminal's console, for text."""
        from daemon.cli.present import make_console  # noqa: PLC0415

        return make_console(wide=self.options.form == "wide")
