"""Asks the runtime for this installation's running containers, without a daemon. Starts and stops none.

The runtimes' classes write log events, which do not belong in a command's output. So the events are dropped meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import anyio

from daemon.config.models import Config, Logs
from daemon.core.clock import SystemClock
from daemon.core.errors import ContainerGoneError, ImageError, RuntimeUnavailableError
from daemon.core.facts import Container
from daemon.core.run_evidence import RuntimeContext
from daemon.inspect.central_reading import Key, live_containers, live_runtimes, read_install_id
from daemon.logs.pipeline import configure
from daemon.runtimes.agent_images import agent_images
from daemon.runtimes.engine_identity import another_engine, is_witness
from daemon.runtimes.factory import build_runtime
from daemon.runtimes.protocol import ContainerRuntime
from daemon.store.data_layout import Layout
from daemon.store.install import Install, InstallFile, is_copied
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.os_faults import read_own_file

PATIENCE_S: Final = 5.0  # a person waits for the answer at a terminal


@frozen
class RuntimeSeen:
    """What the runtime reported. `containers` is None when it is unknown which containers run; then `error` says why.

    `image_error`: why the daemon could start no container from one of the configured images.
    """

    containers: tuple[Container, ...] | None
    error: str | None = None
    image_error: str | None = None
    image_repair: str | None = None  # the command that builds that image
    image_others: tuple[tuple[str, str], ...] = ()  # the other unusable images: why, and the command that builds each
    images_checked: bool = False  # every configured image was inspected
    repair: str | None = None  # a command to run when the runtime did not answer
    other_engine: bool = False  # the engine that answered is not the one that the containers run on
    copied_from: str | None = None  # the folder is a copy of this installation, and no daemon has started on it yet
    other_kind: str | None = None  # the runtime that the containers run under, when another one is configured

    @property
    def alive(self) -> frozenset[str] | None:
        """The incarnations whose container runs, or None if that is unknown."""
        return frozenset(one.incarnation for one in self.containers) if self.containers is not None else None


def context_of(
    listing: RuntimeSeen, key: Key, incarnations: Mapping[str, Mapping[str, Any]], now: int, *, synced: bool
) -> RuntimeContext:
    """Return what the listing and central.db's rows of the session's incarnations say about its containers."""
    listed = listing.containers
    return RuntimeContext(
        now,
        synced,
        listing.alive or frozenset(),
        complete=listed is not None,
        born={name: int(row["created_at"]) for name, row in incarnations.items()},
        ended={name: int(row["ended_at"]) for name, row in incarnations.items() if row["ended_at"] is not None},
        occupied=listed is None or any((one.agent, one.session) == key for one in listed),
    )


def look_at_runtime(config: Config, install_id: str | None) -> RuntimeSeen:
    """Ask the configured runtime for this installation's containers, and Docker for its images.

    Never raise for a runtime that does not answer. The result is unknown for a folder without an id, for a copy, and when
    containers run under another runtime than the configured one, which then says nothing about them.
    """
    if install_id is None:
        return RuntimeSeen(None, "this data folder has no installation id, so its containers cannot be recognised.")
    record = _record(config.data_dir)
    if record is not None and is_copied(record, config.data_dir):
        return _copy(record)
    others = live_runtimes(config.data_dir) - {config.runtime.kind}
    if others:
        return _other_runtime(config, min(others))
    pipeline = configure(Logs(), None, None)
    try:
        return anyio.run(_look, config, install_id)
    finally:
        pipeline.close()


def container_output(config: Config, install_id: str, container_id: str, *, max_bytes: int = 65_536) -> str | None:
    """Return the last `max_bytes` of a container's output from its runtime, or None if the runtime has none to give."""
    pipeline = configure(Logs(), None, None)
    try:
        return anyio.run(_output, config, install_id, container_id, max_bytes)
    finally:
        pipeline.close()


def _other_runtime(config: Config, kind: str) -> RuntimeSeen:
    why = (
        f'this configuration has [runtime] kind = "{config.runtime.kind}", and containers of {config.data_dir} run'
        f' under "{kind}": name the configuration with that runtime with --config.'
    )
    return RuntimeSeen(None, why, other_kind=kind)


def _record(data_dir: Path) -> Install | None:
    try:
        return InstallFile(Layout(data_dir).install_record).read() if data_dir.is_dir() else None
    except ClawbusError:
        return None


def _copy(record: Install) -> RuntimeSeen:
    path = record.place.path if record.place is not None else record.origin and record.origin.path
    where = path or f"installation {record.install_id}"
    why = f"this data folder is a copy of {where}, whose containers are not its own. Its first start gives it an id of its own."
    return RuntimeSeen(None, why, copied_from=where)


async def _look(config: Config, install_id: str) -> RuntimeSeen:
    if config.runtime.kind != "process" and await _processes_live(config, install_id):
        return _other_runtime(config, "process")
    runtime = _runtime(config, install_id)
    try:
        identity = await runtime.identity()
        listed = await runtime.list_running()
        known = record.engine if (record := _record(config.data_dir)) is not None else None
        recorded = live_containers(config.data_dir, runtime.name)
        if known is not None and not is_witness(
            known, runtime.name, identity, recorded, [one.container_id for one in listed]
        ):
            return RuntimeSeen(None, str(another_engine(known, identity, runtime.address)), other_engine=True)
        found = tuple(
            Container(
                one.container_id, one.agent, one.session, one.incarnation, one.started_at, one.restarts, one.paused
            )
            for one in listed
        )
        return replace(_images_seen(config), containers=found)
    except RuntimeUnavailableError as error:
        return RuntimeSeen(None, str(error), repair=error.command)
    finally:
        await runtime.aclose()


async def _processes_live(config: Config, install_id: str) -> bool:
    """Return whether agents run as plain processes, also when the registry was lost and has no record of them."""
    runtime = _runtime(config, install_id, "process")
    try:
        return bool(await runtime.list_running())
    except RuntimeUnavailableError:
        return False  # central.db has no live process either, or look_at_runtime would have reported it
    finally:
        await runtime.aclose()


async def _output(config: Config, install_id: str, container_id: str, max_bytes: int) -> str | None:
    runtime = _runtime(config, install_id)
    try:
        return await runtime.logs(container_id, max_bytes=max_bytes)
    except (RuntimeUnavailableError, ContainerGoneError):
        return None
    finally:
        await runtime.aclose()


def _runtime(config: Config, install_id: str, kind: str | None = None) -> ContainerRuntime:
    return build_runtime(config, Layout(config.data_dir), install_id, SystemClock(), kind, patience_s=PATIENCE_S)


def _images_seen(config: Config) -> RuntimeSeen:
    """Return which configured images are unusable and why, where each is configured, and the command that builds it."""
    if config.runtime.kind == "process":
        return RuntimeSeen(None)
    from daemon.runtimes.docker_client import engine_client  # noqa: PLC0415
    from daemon.runtimes.docker_image import usable_image  # noqa: PLC0415
    from daemon.runtimes.image_source import source_digest  # noqa: PLC0415

    client: Any
    timeout_s = min(config.docker.timeout_s, PATIENCE_S)
    unusable: list[tuple[str, str]] = []
    with closing(engine_client(config, timeout_s)) as client:
        for one in agent_images(config):
            try:
                usable_image(client, one.image, source_digest())
            except ImageError as error:
                unusable.append((f"{one.where}: {error}", one.build))
            except ClawbusError:
                return RuntimeSeen(None)  # Docker no longer answers, which the next command reports
    if not unusable:
        return RuntimeSeen(None, images_checked=True)
    (why, build), *others = unusable
    return RuntimeSeen(None, image_error=why, image_repair=build, image_others=tuple(others))


def install_id_of(data_dir: Path, recorded: str | None) -> str | None:
    """Return the installation's id: `recorded` (central.db's), else the one in the file install-id, else None."""
    if recorded is not None:
        return recorded
    try:
        text = read_own_file(Layout(data_dir).install_file).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text or None


def recorded_install_id(data_dir: Path) -> str | None:
    """Return the installation id of a data folder or a backup, or None if none can be read."""
    return install_id_of(data_dir, read_install_id(data_dir))
