"""The root of the tree of commands: its help in sections, and former names, which still work and say the new one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from typer.core import TyperGroup

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

_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "Begin": ("init", "serve", "send", "chat", "mailbox", "question"),
        "See": ("status", "doctor", "top", "session", "run", "agent", "channel", "egress", "logs", "watch"),
        "People": ("route",),
        "Repair": ("message", "delivery", "dead", "sweep"),
        "Host": ("config", "image", "install", "backup", "restore"),
        "Releases": ("release", "source"),
    }
)
_REST: Final = "More"


class RootGroup(TyperGroup):
    """The commands by their names of today; a former name is translated, one of other tools gets an explanation."""

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
        """Write the commands in sections, each with its whole first sentence."""
        placed = {name for names in _SECTIONS.values() for name in names}
        rest = tuple(name for name in self.commands if name not in placed)
        for title, names in (*_SECTIONS.items(), (_REST, rest)):
            shown = [(name, self.commands[name]) for name in names if name in self.commands]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in shown])
