"""Decides at start-up whether the data folder is a copy. A copy, or a restored backup, becomes a separate installation.

A copy owns no containers. Those in its records belong to the original and may still run, so the copy never ends, adopts or
removes one. If such a container is proved to be gone, the messages that it had claimed are tried again here; otherwise their
session is quarantined until an operator decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import field, replace

import structlog
from anyio import to_thread

from daemon.core.clock import Clock
from daemon.core.errors import DataFolderError, RuntimeUnavailableError
from daemon.engine.incarnation_steps import disown_incarnation
from daemon.runtimes.protocol import ContainerRuntime
from daemon.runtimes.spec import LABEL_INCARNATION
from daemon.store.data_layout import Layout
from daemon.store.incarnations import IncarnationRow
from daemon.store.install import Install, InstallFile, Origin, is_copied, place_of
from daemon.store.rebuild import agree_on_install_id, write_install_id
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.ids import new_id, session_path
from schema.plain_file import ReadLimits

# Builds a runtime from its kind and an installation's id. Here it is only asked, and starts nothing.
Build = Callable[[str, str], ContainerRuntime]


@frozen
class Start:
    """What the check at start-up works on."""

    folder: Layout
    registry: Registry
    clock: Clock
    limits: ReadLimits

    @property
    def file(self) -> InstallFile:
        """The installation's record, install.json."""
        return InstallFile(self.folder.install_record)


async def settle_install(start: Start, build: Build) -> str:
    """Return this installation's id. A copied or restored folder first becomes a separate installation, with a new id.

    Raise DataFolderError when the copy shares its sessions folder with the original, or lies at the original's path while one
    of the original's containers runs; RuntimeUnavailableError when it is unknown whether one runs; StorageError.
    """
    install_id = await to_thread.run_sync(
        agree_on_install_id, start.registry, start.folder.install_file, start.clock.now_ms()
    )
    found = await to_thread.run_sync(start.file.read)
    if found is not None and await to_thread.run_sync(is_copied, found, start.folder.root):
        return await _become_own(start, found, build)
    await to_thread.run_sync(_note_place, start, found, install_id)
    return install_id


async def _become_own(start: Start, found: Install, build: Build) -> str:
    """Make the copy a separate installation. Its place is recorded last, so that the start after a crash repeats all of it."""
    log = structlog.get_logger("install")
    here = await to_thread.run_sync(place_of, start.folder.root)
    if found.place is not None and here.sessions is not None and found.place.sessions == here.sessions:
        raise DataFolderError(
            f"{start.folder.sessions_dir} is also the sessions folder of the installation at {found.place.path}.",
            hint="Copy the sessions, too; or stop that installation for good, then run `clawbus install renew` here.",
        )
    now = start.clock.now_ms()
    origin = Origin(found.install_id, found.place.path if found.place else found.origin and found.origin.path, now)
    rows = await to_thread.run_sync(start.registry.live_incarnations)
    answer = _Answer({row.id for row in rows}) if found.given_up else await _ask(rows, found, build)
    if origin.path == here.path:
        _refuse_beside_containers(answer, rows, here.path)
    gone = answer.gone
    for row in rows:
        await to_thread.run_sync(_disown, start, row, row.id in gone, origin)
    fresh = new_id(now).lower()
    await to_thread.run_sync(start.registry.begin_install, fresh, now)
    await to_thread.run_sync(write_install_id, start.folder.install_file, fresh)
    await to_thread.run_sync(start.file.write, Install(fresh, here, None, origin))
    log.warning("install_copied", install=fresh, copied_from=origin.install_id, path=origin.path,
                containers_of_the_original=len(rows), ended_for_certain=len(gone))  # fmt: skip
    return fresh


@frozen
class _Answer:
    """What the original's engine reports about the original's containers.

    `gone` are incarnations whose container is proved to be gone. `living` are the ids of containers that run or may start; an
    incarnation's id stands for a container whose id was not recorded. `silence` is why the engine did not answer.
    """

    gone: set[str] = field(default_factory=set[str])
    living: tuple[str, ...] = ()
    silence: ClawbusError | None = None


async def _ask(rows: Sequence[IncarnationRow], found: Install, build: Build) -> _Answer:
    """Ask the engine that the original used which containers still exist. Another engine's answer would prove nothing."""
    engine = found.engine
    if engine is None or not engine.id:
        return _Answer()
    gone: set[str] = set()
    living: set[str] = set()
    try:
        async with aclosing(build(engine.kind, found.install_id)) as runtime:
            if await runtime.identity() != engine.id:
                return _Answer()
            # The original may have started containers after the copy was made.
            living |= {one.container_id for one in await runtime.list_running()}
            for row in (row for row in rows if row.runtime == engine.kind):
                if await runtime.may_live(row.id):
                    living.add(row.container_id or row.id)
                elif row.container_id is not None:
                    # Without a recorded container id nothing is proved: the original was about to start the container.
                    gone.add(row.id)
    except ClawbusError as error:
        return _Answer(gone, tuple(sorted(living)), error)
    return _Answer(gone, tuple(sorted(living)))


def _refuse_beside_containers(answer: _Answer, rows: Sequence[IncarnationRow], path: str) -> None:
    """Raise unless the original's containers are gone.

    They mount the path of this folder, so one that is restarted would write here without this installation knowing.
    """
    if answer.living:
        names = ", ".join(answer.living)
        incarnations = {row.id for row in rows}
        by_id = [one for one in answer.living if one not in incarnations]
        # A container whose id was not recorded is found by its label.
        by_label = [
            f"$(docker ps -aq --filter label={LABEL_INCARNATION}={one})" for one in answer.living if one in incarnations
        ]
        raise DataFolderError(
            f"{path} replaced an installation whose containers still run, or may start again: {names}."
            " They and the new containers would write to the same sessions.",
            hint=f"End them and start again. With Docker: `docker rm -f {' '.join([*by_id, *by_label])}`.",
        )
    if answer.silence is not None and rows:
        raise RuntimeUnavailableError(
            f"{path} replaced an installation, and it is unknown whether that one's containers still run: {answer.silence}",
            hint="Start the engine that ran them. If it is gone for good: `clawbus install renew`.",
        )


def _disown(start: Start, row: IncarnationRow, gone: bool, origin: Origin) -> None:
    """Release the messages that the original's container had claimed, without charging a try.

    Quarantine the session if the container may still work on one.
    """
    log = structlog.get_logger("install").bind(agent=row.key.agent, session=row.key.session, incarnation=row.id)
    files = SessionFiles(session_path(start.folder.sessions_dir, *row.key), start.limits)
    try:
        in_hand = disown_incarnation(files, row.id, start.clock.now_ms())
    except ClawbusError as error:  # the sweep handles a file that cannot be read
        log.warning("disown_failed", code=error.code, error=str(error))
        return
    if in_hand and not gone:
        where = f" at {origin.path}" if origin.path else ""
        reason = (
            f"This folder is a copy. When it was made, a container of the original{where} was working on {in_hand} messages"
            " of this session, and it is unknown whether it still is. Release the session when the original is gone, or when"
            " the work may be done twice."
        )
        start.registry.quarantine(row.key, reason, start.clock.now_ms())
        log.warning("session_held", reason=reason)


def _note_place(start: Start, found: Install | None, install_id: str) -> None:
    here = place_of(start.folder.root)
    if found is None:
        start.file.write(Install(install_id, here))
    elif (found.install_id, found.place) != (install_id, here):
        if found.place is not None and found.place.path != here.path:
            structlog.get_logger("install").info("install_moved", before=found.place.path, path=here.path)
        start.file.write(replace(found, install_id=install_id, place=here))


def renew(folder: Layout) -> Install | None:
    """Make the next start create a new installation, as from a copy whose original's containers are gone for good.

    The caller holds the folder's lock. Return the old record, or None if the folder has none. Raise StorageError.
    """
    file = InstallFile(folder.install_record)
    found = file.read()
    if found is not None:
        origin = Origin(found.install_id, str(folder.root), 0)
        file.write(replace(found, place=None, origin=origin, given_up=True))
    return found
