"""`clawbus user list|add|bind|role|revoke|restore`: who may talk to which agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.operator import ReasonOption, user
from daemon.core.people_verbs import AddUser, BindUser, RestoreUser, RevokeUser, SetRole, UserVerb
from daemon.core.printable import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

UserName = Annotated[str, typer.Argument(metavar="NAME", help="The user's name in clawbus.")]
RoleAgent = Annotated[
    str | None, typer.Option("--agent", "-a", metavar="NAME", help="For this agent; default: for all.")
]
ScopeOption = Annotated[
    Literal["any", "direct", "group"], typer.Option("--scope", help="In direct chats, in groups, or anywhere.")
]
RoleName = Annotated[
    Literal["member", "admin", "owner", "none"], typer.Argument(metavar="ROLE", help="member, admin, owner or none.")
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="People who may talk to agents, and what they may do.\n\n\b\nExample:\n  clawbus user list",
        rich_markup_mode=None,
    )
    add(group, "list", list_, path="user")
    add(group, "add", add_, path="user")
    add(group, "bind", bind, path="user")
    add(group, "role", role, path="user")
    add(group, "revoke", revoke, path="user")
    add(group, "restore", restore, path="user")
    add_group(app, group, "user")


def list_(invocation: Invocation) -> Outcome:
    """List the users with their roles and their ids on platforms.

    Use it to see who may talk to an agent.

    \b
    Example:
      clawbus user list
    """
    from daemon.inspect.people_reading import read_users  # noqa: PLC0415

    found = read_users(invocation.place.data_dir)

    def people(console: Console) -> None:
        from daemon.cli.present import table  # noqa: PLC0415

        rows = [
            (
                one["name"],
                _roles(one["roles"]) or None,
                ", ".join(f"{it['channel']}:{it['sender']}" for it in one["identities"]) or None,
                "revoked" if one["revoked_at"] is not None else None,
            )
            for one in found
        ]
        console.print(table(f"{counted(len(found), 'user')}", ("user", "roles", "identities", "state"), rows))

    steps = () if found else (NextAction("clawbus user add --help", "add the first user"),)
    return Outcome({"users": found}, people, steps)


def _roles(found: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{one['role']} of {one['agent'] or 'all agents'}" + (f" ({one['scope']})" if one["scope"] != "any" else "")
        for one in found
    )


def add_(invocation: Invocation, name: UserName) -> Outcome:
    """Add a user. Then bind the person's ids on platforms with `user bind`, and give a role with `user role`.

    Use it for people who should not have to ask first.

    \b
    Example:
      clawbus user add ann && clawbus user bind ann telegram 4711 && clawbus user role ann member --agent coder
    """
    return _done(invocation, AddUser(by=user(), name=name), f"added {name}")


def bind(
    invocation: Invocation,
    name: UserName,
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel's name.")],
    sender: Annotated[str, typer.Argument(metavar="SENDER", help="The person's id on the platform.")],
) -> Outcome:
    """Bind a person's id on a platform to a user.

    Use it after `user add`. An id of another user is refused.

    \b
    Example:
      clawbus user bind ann telegram 4711
    """
    verb = BindUser(by=user(), name=name, channel=channel, sender=sender)
    return _done(invocation, verb, f"{channel}:{sender} is {name}")


def role(
    invocation: Invocation,
    name: UserName,
    role_name: RoleName,
    agent: RoleAgent = None,
    scope: ScopeOption = "any",
) -> Outcome:
    """Give a user a role. The role `none` takes it away.

    A member talks to the agent, an admin also admits members, an owner may do everything. Use it with --agent for one
    agent, without it for all.

    \b
    Example:
      clawbus user role ann admin --agent coder
    """
    given = None if role_name == "none" else role_name
    verb = SetRole(by=user(), name=name, role=given, agent=agent or "", scope=scope)
    return _done(invocation, verb, f"{name}: {role_name} of {agent or 'all agents'}")


def revoke(invocation: Invocation, name: UserName, reason: ReasonOption = None) -> Outcome:
    """Refuse everything that a user says from now on, everywhere, whatever the routes admit.

    Use it when somebody has left. The ids stay bound, so that the person cannot come back as a stranger. Running turns
    continue; `clawbus message cancel ID --kill` ends one.

    \b
    Example:
      clawbus user revoke eve --reason 'left the team'
    """
    return _done(invocation, RevokeUser(by=user(), reason=reason, name=name), f"revoked {name}")


def restore(invocation: Invocation, name: UserName, reason: ReasonOption = None) -> Outcome:
    """Undo a revocation: the user has the same roles again.

    Use it when `revoke` named the wrong user.

    \b
    Example:
      clawbus user restore eve
    """
    return _done(invocation, RestoreUser(by=user(), reason=reason, name=name), f"restored {name}")


def _done(invocation: Invocation, verb: UserVerb, text: str) -> Outcome:
    from daemon.cli.executor import execute  # noqa: PLC0415

    result = execute(invocation, verb)

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(console, text)

    return Outcome(result, people)
