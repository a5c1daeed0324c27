"""`clawbus backup` and `clawbus restore`: a whole data folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from daemon.cli.command import add
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.output import progress
from daemon.core.clock import SystemClock
from daemon.core.printable import counted

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.inspect.containers import RuntimeSeen
    from daemon.maintenance.folder_backup import FolderLimits, Tell

_NAMED: Final = 20  # an error is read by a person; `clawbus doctor` has them all


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, "backup", backup)
    add(app, "restore", restore)


def backup(
    invocation: Invocation,
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is not there yet.")],
) -> Outcome:
    """Back a data folder up, while the daemon runs or while it is down. Every file is verified before it counts.

    Use it every night, and before an upgrade. Each file is copied at one instant, a session's two files one after the
    other. Logs are not copied.

    \b
    Example:
      clawbus backup /backup/clawbus-2026-11-21
    """
    from daemon.inspect.central_reading import check_data_folder  # noqa: PLC0415
    from daemon.maintenance.folder_backup import back_up_folder  # noqa: PLC0415
    from daemon.store.data_folder import DataFolder  # noqa: PLC0415
    from daemon.store.folder_lock import live_holder  # noqa: PLC0415

    config, clock = invocation.config, SystemClock()
    check_data_folder(config.data_dir)
    limits, tell = _limits(invocation), _teller(invocation)
    if live_holder(config.data_dir) is not None:
        done = back_up_folder(config.data_dir, target, limits, clock.now_ms(), tell)
    else:
        with DataFolder.open(config.data_dir, clock):  # no daemon starts meanwhile
            done = back_up_folder(config.data_dir, target, limits, clock.now_ms(), tell, owner=True)
    result = done.report()

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(
            console,
            f"{result['path']}: {counted(result['sessions'], 'session')}, {counted(result['files'], 'file')}, {counted(result['bytes'], 'byte')}",
        )
        say(console, *(f"copied as it is, not verified: {one}" for one in done.unverified))
        say(console, *(f"left out: {one}" for one in done.left_out[:20]))

    step = NextAction(f"clawbus restore {shlex.quote(str(target))} --data FOLDER", "make a data folder from it")
    return Outcome(result, people, (step,))


def restore(
    invocation: Invocation,
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder that `clawbus backup` made.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Move the data folder that is there aside; nothing of it is deleted.")
    ] = False,
) -> Outcome:
    """Make the data folder from a backup, with the daemon down. The backup is verified before anything is touched.

    Use it when the data folder is lost or spoilt. What was accepted after the backup is not in it, and what was answered after it is sent again, under the same ids.

    \b
    Example:
      clawbus restore /backup/clawbus-2026-11-21 --replace
    """
    from contextlib import ExitStack  # noqa: PLC0415

    from daemon.maintenance.folder_restore import read_manifest, restore_folder  # noqa: PLC0415
    from daemon.store.data_folder import DataFolder  # noqa: PLC0415

    config, clock = invocation.config, SystemClock()
    read_manifest(source)  # a mistyped name is said before anybody is asked to end what runs
    with ExitStack() as held:
        if config.data_dir.is_dir() and any(config.data_dir.iterdir()) and replace:
            held.enter_context(DataFolder.open(config.data_dir, clock))
        _refuse_running(invocation, source)
        result = restore_folder(source, config.data_dir, clock.now_ms(), _teller(invocation), replace=replace)

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(
            console,
            f"{result['data_dir']}: {counted(result['sessions'], 'session')}, {counted(result['files'], 'file')} restored",
        )
        if result["before"] is not None:
            say(console, f"What was there before is in {result['before']}.")

    return Outcome(result, people, (NextAction("clawbus serve", "start the daemon on it"),))


def _refuse_running(invocation: Invocation, backup: Path) -> None:
    """Refuse while a container runs: it would go on writing into the folder that is moved aside, or was lost.

    Asked for the installation of the folder that is replaced, and for the backup's if that was this very folder. A backup
    that is restored elsewhere becomes a separate installation, and leaves the original's containers alone.
    """
    from daemon.core.repair_errors import RestoreRefusedError  # noqa: PLC0415
    from daemon.inspect.containers import look_at_runtime, recorded_install_id  # noqa: PLC0415
    from daemon.store.data_layout import INSTALL_RECORD  # noqa: PLC0415
    from daemon.store.install import InstallFile  # noqa: PLC0415

    config = invocation.config
    record = InstallFile(backup / INSTALL_RECORD).read()
    place = record.place.path if record is not None and record.place is not None else None
    here = place is None or place == os.path.realpath(config.data_dir)
    ids = {recorded_install_id(config.data_dir), recorded_install_id(backup) if here else None}
    # Without an id no container can be known as the installation's.
    for install_id in sorted(ids - {None}, key=str):
        found = look_at_runtime(config, install_id)
        if found.copied_from is not None:
            continue  # a copy that no daemon has started on has no containers
        if found.containers is None:
            other = f'Use the configuration with kind = "{found.other_kind}" (--config)'
            raise RestoreRefusedError(
                f"it is unknown whether containers of this installation run: {found.error}",
                hint=f"{other if found.other_kind else _how_to_ask(found)}, then repeat.",
            )
        if found.containers:
            names = ", ".join(
                f"{one.agent}/{one.session} ({one.container_id[:12]})" for one in found.containers[:_NAMED]
            )
            more = f" and {len(found.containers) - _NAMED} more" if len(found.containers) > _NAMED else ""
            raise RestoreRefusedError(
                f"{counted(len(found.containers), 'container')} of this installation still run: {names}{more}.",
                hint=_how_to_end(own=install_id == recorded_install_id(config.data_dir)),
            )


def _how_to_ask(found: RuntimeSeen) -> str:
    if found.other_engine:
        return "Name the engine that has them (docker.host, podman.host)"
    return "Start the container runtime"


def _how_to_end(*, own: bool) -> str:
    if not own:
        return "They belong to the backup's installation, not to this folder: `docker rm -f ID`, then repeat."
    return "Stop the daemon and end them with `clawbus session kill --all`, then repeat."


def _limits(invocation: Invocation) -> FolderLimits:
    from daemon.config.policies import read_limits  # noqa: PLC0415
    from daemon.maintenance.folder_backup import FolderLimits  # noqa: PLC0415

    limits = invocation.config.limits
    return FolderLimits(
        read_limits(invocation.config),
        limits.max_out_folder_bytes,
        limits.max_out_folder_files,
        limits.max_home_folder_bytes,
        limits.max_home_folder_files,
    )


def _teller(invocation: Invocation) -> Tell:
    """Return a function that prints progress on standard error."""
    if invocation.json:
        return lambda _what, _done, _total: None
    return lambda what, done, total: progress(f"{done}/{total} {what}")
