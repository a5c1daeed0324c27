"""The root of the tree of commands: its help in sections, and former names, which still work and say the new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

import typer
from typer.core import TyperGroup

from daemon.cli.catalogue import COMMANDS
from daemon.cli.output import progress

_RENAMED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"runs": ("run", "list"), "sessions": ("session", "list")}
)
_ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "start": "`clawbus serve` starts the daemon in the foreground, `systemctl start clawbus` as a service.",
        "stop": "Ctrl-C or `systemctl stop clawbus` ends the daemon; `clawbus session stop` or `kill` ends an agent.",
        "restart": "`systemctl restart clawbus` restarts a service; in a terminal Ctrl-C and `clawbus serve`.",
        "ps": "`clawbus session list` lists the sessions, `clawbus run list --status running` what they work on.",
    }
)


class LazyCommands(dict[str, Any]):
    """The commands by name, each made from its module when it is first asked for. `made` is called with each new one."""

    def __init__(self, made: Callable[[Any], object] = lambda _: None) -> None:
        super().__init__(dict.fromkeys(COMMANDS))
        self._made = made

    def __getitem__(self, name: str) -> Any:
        if super().__getitem__(name) is None:
            app = typer.Typer(rich_markup_mode=None)
            import_module(f"daemon.cli.{COMMANDS[name].module}").register(app)
            for found, command in typer.main.get_group(app).commands.items():
                self[found] = command
                self._made(command)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """See dict."""
        return self[name] if name in self else default  # noqa: SIM401 - that is this method

    def items(self) -> Any:
        """Return every command by its name, each made."""
        return {name: self[name] for name in self}.items()

    def values(self) -> Any:
        """Return every command, each made."""
        return [self[name] for name in self]


class RootGroup(TyperGroup):
    """The commands by their names of today; a former name is translated, one of other tools gets an explanation."""

    commands: Any

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.commands = LazyCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help. Imports none of the commands."""
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of the first word."""
        word = args[0]
        if word in _RENAMED:
            now = _RENAMED[word]
            progress(f"note: `clawbus {word}` is `clawbus {' '.join(now)}` now.")
            args = [*now, *args[1:]]
        elif word in _ELSEWHERE:
            ctx.fail(f"There is no command {word!r}. {_ELSEWHERE[word]}")
        elif not word.strip():
            ctx.fail("The command is empty (is a variable empty?).")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands in sections, each with its whole first sentence. Imports none of them."""
        for title in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(title):
                formatter.write_dl([(name, one.summary) for name, one in COMMANDS.items() if one.section == title])
