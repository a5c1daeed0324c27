"""`clawbus completion SHELL`, and what a shell is offered: commands, options, agents, sessions and ids. Reads files only."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from typer.completion import (
    completion_init,  # pyright: ignore[reportPrivateImportUsage]
    get_completion_script,  # pyright: ignore[reportPrivateImportUsage]
)

from daemon.cli.arguments import ID_PARAMETERS
from daemon.cli.command import add
from daemon.cli.envelope import Outcome
from daemon.cli.global_options import Globals
from daemon.cli.invocation import Invocation
from daemon.core.slots import SLOTS

if TYPE_CHECKING:
    from daemon.inspect.central_reading import Key

_SESSIONS: Final = 50  # whose ids are offered; a shell waits for the answer
_IDS: Final = 20  # of each


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "completion", completion)


def completion(
    invocation: Invocation,
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> Outcome:
    """Print the script that makes a shell complete commands, options, agents, sessions and ids.

    Use it in the shell's start-up file; sessions and ids are read from the data folder at each completion.

    \b
    Example:
      source <(clawbus completion bash)
      clawbus completion fish > ~/.config/fish/completions/clawbus.fish
    """
    script = get_completion_script(prog_name="clawbus", complete_var="_CLAWBUS_COMPLETE", shell=shell)
    return Outcome({"shell": shell, "script": script}, text=script)


def prepare() -> None:
    """Teach the parser the shells' ways to ask."""
    completion_init()


def offer_names(command_or_group: Any) -> None:
    """Make every parameter below that takes an agent, a session or an id offer those that there are."""
    for command in _leaves(command_or_group):
        for parameter in command.params:
            offered = _offered(parameter, {one.name for one in command.params})
            if offered is not None:
                parameter._custom_shell_complete = offered  # noqa: SLF001 - the parser's own place for it


def _leaves(command: Any) -> Iterable[Any]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield command
    for child in children.values():
        yield from _leaves(child)


def _offered(parameter: Any, beside: set[str]) -> Callable[[Any, Any, str], list[str]] | None:
    if parameter.name in ID_PARAMETERS:
        return lambda ctx, _, begun: _fitting(begun, lambda: _ids(ctx))
    argument = parameter.param_type_name == "argument"
    if parameter.name == "session" and "mailbox" in beside:  # of a message to send
        return lambda ctx, _, begun: _fitting(begun, lambda: _addresses(ctx))
    if parameter.name == "session" and not argument:
        return lambda ctx, _, begun: _fitting(begun, lambda: ["/".join(key) for key in _sessions(ctx)])
    if parameter.name == "agent" and argument and "session" in beside:
        return lambda ctx, _, begun: _fitting(begun, lambda: ["/".join(key) for key in _sessions(ctx)])
    if parameter.name == "release" and argument:
        return lambda ctx, _, begun: _fitting(begun, lambda: _releases(ctx))
    if parameter.name == "slot":
        return lambda _ctx, _parameter, begun: _fitting(begun, lambda: SLOTS)
    if parameter.name == "key" and "text" not in beside:
        return lambda ctx, _, begun: _fitting(begun, lambda: _schedules(ctx))
    if parameter.name == "agent":
        return lambda ctx, _, begun: _fitting(begun, lambda: list(_invocation(ctx).config.agents))
    if parameter.name == "session":
        return lambda ctx, _, begun: _fitting(
            begun, lambda: [name for agent, name in _sessions(ctx) if ctx.params.get("agent") in (None, agent)]
        )
    return None


def _fitting(begun: str, names: Callable[[], Iterable[str]]) -> list[str]:
    """Return the names that begin so and need no quoting; none where they cannot be read: a shell shows no errors."""
    try:
        return sorted({name for name in names() if name.startswith(begun) and shlex.quote(name) == name})
    except Exception:  # noqa: BLE001 - whatever it is, the command itself will say it
        return []


def _invocation(ctx: Any) -> Invocation:
    """Return an invocation with the places that were typed before what is completed."""
    options = Globals()
    while ctx is not None:
        config, data = (ctx.params.get(name) for name in ("config", "data"))
        options = options.over(Globals(None, Path(config) if config else None, Path(data) if data else None))
        ctx = ctx.parent
    return Invocation("completion", options)


def _sessions(ctx: Any) -> list[Key]:
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415

    return read_central(_invocation(ctx).place.data_dir).known()


def _addresses(ctx: Any) -> list[str]:
    """Return sessions by their names where the agent is typed, else as AGENT/SESSION."""
    wanted = ctx.params.get("agent")
    return ["/".join(key) if wanted is None else key[1] for key in _sessions(ctx) if wanted in (None, key[0])]


def _ids(ctx: Any) -> list[str]:
    from daemon.inspect.finding import newest_ids  # noqa: PLC0415

    return newest_ids(_invocation(ctx).place.data_dir, _sessions(ctx)[:_SESSIONS], _IDS)


def _releases(ctx: Any) -> list[str]:
    from daemon.deploy.releases import Releases  # noqa: PLC0415

    return Releases(_invocation(ctx).config.deploy.root).names()


def _schedules(ctx: Any) -> list[str]:
    from daemon.core.clock import SystemClock  # noqa: PLC0415
    from daemon.inspect.schedule_list import schedules_report  # noqa: PLC0415

    return [one["key"] for one in schedules_report(_invocation(ctx).place.data_dir, SystemClock())["schedules"]]
