"""`clawbus install show|renew`: which installation a data folder is, and a new one after its engine is gone for good."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Show which installation a data folder is, or make it a new one.\n\n\b\nExample:\n  clawbus install show",
        rich_markup_mode=None,
    )
    add(group, "show", show, path="install")
    add(group, "renew", renew, path="install")
    add_group(app, group, "install")


def show(invocation: Invocation) -> Outcome:
    """Show the installation's id, where it lies, and the engine that its containers run on.

    Use it when RUNTIME_CHANGED or COPIED_FOLDER is reported.

    \b
    Example:
      clawbus install show
    """
    from daemon.inspect.central_reading import check_data_folder  # noqa: PLC0415
    from daemon.store.data_layout import Layout  # noqa: PLC0415
    from daemon.store.install import InstallFile, is_copied  # noqa: PLC0415

    root = invocation.config.data_dir
    check_data_folder(root)
    found = InstallFile(Layout(root).install_record).read()
    result = {**asdict(found), "copied": is_copied(found, root)} if found is not None else {"install_id": None}

    def people(console: Console) -> None:
        from daemon.cli.present import pairs, say  # noqa: PLC0415

        if found is None:
            say(console, f"{root}: no daemon of this version has started on it")
            return
        facts: dict[str, object] = {"install": found.install_id}
        if is_copied(found, root):
            facts["state"] = "a copy; its first start gives it its own installation id"
        facts["place"] = found.place.path if found.place is not None else "not started since it was restored"
        engine = found.engine
        facts["engine"] = f"{engine.kind} {engine.id} at {engine.host}" if engine is not None else "not known yet"
        if found.origin is not None:
            facts["copied from"] = f"{found.origin.install_id} at {found.origin.path or 'an unknown place'}"
        pairs(console, facts)

    return Outcome(result, people)


def renew(invocation: Invocation) -> Outcome:
    """Make this data folder a new installation, because its engine and containers are gone for good.

    Use it while the daemon is down, after RUNTIME_CHANGED, and only when nothing of the old engine can still run: messages
    that its containers had in hand are worked on again.

    \b
    Example:
      clawbus install renew
    """
    from daemon.core.errors import DataFolderError  # noqa: PLC0415
    from daemon.engine.installation import renew as renew_install  # noqa: PLC0415
    from daemon.inspect.central_reading import check_data_folder  # noqa: PLC0415
    from daemon.store.data_folder import DataFolder  # noqa: PLC0415

    root = invocation.config.data_dir
    check_data_folder(root)
    with DataFolder.open(root, SystemClock()) as folder:
        found = renew_install(folder)
    if found is None:
        raise DataFolderError(f"no daemon of this version has started on {root}.", hint="Start it: `clawbus serve`.")

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(console, f"{root} is no longer {found.install_id}; its next start gives it a new id")

    step = NextAction("clawbus serve", "start the daemon")
    return Outcome({"data_dir": str(root), "was": found.install_id}, people, (step,))
