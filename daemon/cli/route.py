"""`clawbus route list|add|remove|test|log`: which place talks to which agent, and why an event went nowhere."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.operator import AgentFilter, ReasonOption, user
from daemon.core.agent_verbs import AddRoute, RemoveRoute
from daemon.core.clock import SystemClock
from daemon.core.printable import counted
from daemon.core.routing import EventKind, PlaceEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

Name = Annotated[str, typer.Argument(metavar="NAME", help="The route's own name.")]
ChannelOption = Annotated[str, typer.Option("--channel", metavar="NAME", help="The channel that the place is on.")]
PlaceOption = Annotated[str, typer.Option("--place", metavar="PLACE", help="The channel's name for the place.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Routes: which place talks to which agent.\n\n\b\nExample:\n  clawbus route list", rich_markup_mode=None
    )
    add(group, "list", list_, path="route")
    add(group, "add", add_, path="route")
    add(group, "remove", remove, path="route")
    add(group, "test", try_, path="route")
    add(group, "log", log, path="route")
    add_group(app, group, "route")


def list_(invocation: Invocation, agent: AgentFilter = None) -> Outcome:
    """List the routes of the configuration and those that were added by command, with what is wrong with one.

    Use it to see which place talks to which agent.

    \b
    Example:
      clawbus route list --agent coder
    """
    from daemon.inspect.routing_reading import read_routes  # noqa: PLC0415

    found = [one for one in read_routes(invocation.config).listed if agent is None or one["agent"] == agent]
    steps = () if found else (NextAction("clawbus route add --help", "make the first one"),)

    def people(console: Console) -> None:
        from daemon.cli.present import WIDE, say, table  # noqa: PLC0415

        columns = _COLUMNS if console.width >= WIDE else _COLUMNS[:_NARROW]
        rows = [[_cell(one, column) for column in columns] for one in found]
        console.print(table(counted(len(rows), "route"), columns, rows))
        for one in found:
            if one["fault"]:
                say(console, f"{one['name']}: {one['fault']}")
            elif one["shadowed_by"]:
                say(console, f"{one['name']}: no event reaches it: the route {one['shadowed_by']} decides first")

    return Outcome({"routes": found}, people, steps)


_COLUMNS: Final = (
    "name", "place", "agent", "wakes on", "admits", "state",
    "otherwise", "strangers", "session", "priority", "from", "added by",
)  # fmt: skip
_NARROW: Final = 6  # those that fit a terminal of 80


def _cell(one: Mapping[str, Any], column: str) -> object:
    match column:
        case "place":
            return f"{one['channel']} {one['place']}"
        case "wakes on":
            return _engage(one)
        case "admits":
            return one["senders"]
        case "strangers":
            return one["unknown"]
        case "from":
            return one["source"]
        case "added by":
            return one.get("added_by")
        case _:
            return one[column]


def _engage(one: Mapping[str, Any]) -> str:
    return f"/{one['pattern']}/" if one["engage"] == "pattern" else str(one["engage"])


def add_(
    invocation: Invocation,
    name: Name,
    channel: ChannelOption,
    place: PlaceOption,
    agent: Annotated[str, typer.Option("--agent", "-a", metavar="NAME", help="The agent that it goes to.")],
    engage: Annotated[
        Literal["always", "mention", "mention-sticky", "pattern"],
        typer.Option("--engage", help="What wakes the agent."),
    ] = "always",
    pattern: Annotated[
        str | None, typer.Option("--pattern", metavar="REGEX", help="With --engage pattern: what the text must match.")
    ] = None,
    otherwise: Annotated[
        Literal["ignore", "context"], typer.Option("--otherwise", help="What becomes of the rest.")
    ] = "ignore",
    senders: Annotated[
        Literal["anyone", "known", "admin", "owner"], typer.Option("--senders", help="Whom it admits.")
    ] = "known",
    unknown: Annotated[
        Literal["refuse", "ask", "admit"], typer.Option("--unknown", help="What becomes of strangers.")
    ] = "refuse",
    session_name: Annotated[
        str, typer.Option("--session-name", metavar="RULE", help="shared, per-thread, per-sender, or a template.")
    ] = "per-thread",
    priority: Annotated[int, typer.Option("--priority", help="Of two routes to one agent the higher decides.")] = 0,
    reason: ReasonOption = None,
) -> Outcome:
    """Add a route. It counts at once, and is kept in the data folder.

    Use it for a place that should not be in the configuration file. A place that ends in `*` covers every place that begins so. docs/configuration.md explains each choice.

    \b
    Example:
      clawbus route add team --channel telegram --place -100123 --agent coder --engage mention-sticky
    """
    from daemon.cli.executor import execute  # noqa: PLC0415

    keys: dict[str, Any] = {
        "name": name, "channel": channel, "place": place, "agent": agent, "engage": engage, "otherwise": otherwise,
        "senders": senders, "unknown": unknown, "session": session_name, "priority": priority,
    }  # fmt: skip
    if pattern is not None:
        keys["pattern"] = pattern
    done = execute(invocation, AddRoute(by=user(), reason=reason, keys=keys))
    event = shlex.join(["--channel", channel, f"--place={place}", "hello"])
    steps = (NextAction(f"clawbus route test {event}", "see what an event does"),)
    return Outcome(done, lambda console: _say(console, f"added {name}"), steps)


def remove(invocation: Invocation, name: Name, reason: ReasonOption = None) -> Outcome:
    """Remove a route that was added by command. Sessions and messages stay.

    Use it when a place should no longer reach an agent.

    \b
    Example:
      clawbus route remove team --reason 'the chat was closed'
    """
    from daemon.cli.executor import execute  # noqa: PLC0415

    done = execute(invocation, RemoveRoute(by=user(), reason=reason, name=name))
    return Outcome(done, lambda console: _say(console, f"removed {name}"))


def try_(
    invocation: Invocation,
    channel: ChannelOption,
    place: PlaceOption,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the event says.")] = "",
    thread: Annotated[str | None, typer.Option("--thread", metavar="THREAD", help="The thread in the place.")] = None,
    sender: Annotated[str | None, typer.Option("--sender", metavar="ID", help="The platform's id of a person.")] = None,
    direct: Annotated[bool, typer.Option("--direct", help="A conversation with one person.")] = False,
    mention: Annotated[bool, typer.Option("--mention", help="The agent is mentioned.")] = False,
    kind: Annotated[
        Literal["message", "edit", "reaction", "command"], typer.Option("--kind", help="What happened.")
    ] = "message",
    body: Annotated[
        str | None, typer.Option("--body", metavar="JSON", help="A webhook's body, for session templates.")
    ] = None,
) -> Outcome:
    """Explain what an event would do: which agents, which session, woken or not, and why not. Stores nothing.

    Use it before a route goes live, and when an event did something else than expected.

    \b
    Example:
      clawbus route test --channel webhook --place github --sender octocat 'please review'
    """
    from daemon.inspect.routing_reading import explain  # noqa: PLC0415

    _check_channel(invocation, channel)
    fields = {"body": _parsed(body)} if body is not None else {}
    event = PlaceEvent(
        channel, place, "test", text, EventKind(kind), thread, sender, direct=direct, mention=mention, fields=fields
    )
    found = explain(invocation.config, event)

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        for one in found["targets"]:
            what = "wakes" if one["wakes"] else "is context for"
            say(console, f"{what} {one['agent']}/{one['session']} (route {one['route']}: {one['why']})")
        for one in found["refusals"]:
            who = f"not {one['agent']} (route {one['route']})" if one["agent"] else "nobody"
            say(console, f"{who}: {one['reason']}: {one['why']}")

    steps = () if found["targets"] else (NextAction("clawbus route list", "the routes that there are"),)
    return Outcome(found, people, steps)


def _check_channel(invocation: Invocation, channel: str) -> None:
    """Raise a usage error for a channel that neither the configuration nor a route has: no event can come from it."""
    from daemon.cli.suggestions import nearest  # noqa: PLC0415
    from daemon.inspect.routing_reading import read_routes  # noqa: PLC0415

    config = invocation.config
    known = {"local", *config.channels, *(one.channel for one in read_routes(config).directory.table.routes.values())}
    if channel not in known:
        close = nearest(channel, known)
        meant = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}."
        raise typer.BadParameter(f"--channel: there is no channel {channel!r}; {meant}")


def _parsed(body: str) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"--body is not JSON: {error}.") from error


def log(
    invocation: Invocation,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")] = 50,
) -> Outcome:
    """List the events that reached no agent, with the reason and how often: the ones that happened last.

    Use it when somebody says that the agent does not answer.

    \b
    Example:
      clawbus route log
    """
    from daemon.inspect.routing_reading import read_refused  # noqa: PLC0415

    found = read_refused(invocation.config.data_dir, limit)

    def people(console: Console) -> None:
        from daemon.cli.present import say, table, when  # noqa: PLC0415

        now = SystemClock().now_ms()
        if not found:
            say(console, "no event was refused")
            return
        rows = [
            (when(one["last_at"], now), one["times"], f"{one['channel']} {one['place']}", one["agent"] or None,
             one["reason"], one["why"])
            for one in found
        ]  # fmt: skip
        console.print(table("refused events", ("last", "times", "place", "agent", "reason", "why"), rows))

    return Outcome({"refused": found}, people)


def _say(console: Console, text: str) -> None:
    from daemon.cli.present import say  # noqa: PLC0415

    say(console, text)
