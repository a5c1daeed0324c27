"""Where the simulation reaches into the product: every seam in one place, put back afterwards.

Nothing here changes what the code decides; only where time, chance, threads, files' failures and file events come from.
"""

from __future__ import annotations

import asyncio
import traceback
import types
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import anyio.to_thread
import structlog

import container_runner.file_work
import container_runner.loop
import container_runner.store
import container_runner.turn_end
import container_runner.watch
import daemon.app.bus
import daemon.engine.watch
import daemon.engine.watch_portable
import daemon.maintenance.folder_backup
import daemon.maintenance.offline
import daemon.runtimes.factory
import daemon.store.session_files
import schema.connect
import schema.ids
import schema.lockfree
from daemon.channels.protocol import ChannelContext
from daemon.store.session_files import SessionFiles
from schema.outbound_file import recover_outbound_journal
from tests.simulation.disk import Disk, Threads
from tests.simulation.loop import PROCESS
from tests.simulation.receivers import TRAITS, Receivers, SimChannel, SimChannels
from tests.simulation.world import World

_DEFECTS = ("_raised", "_crashed")  # how the product's events for a surprise end
_EXPECTED = ("channel_raised", "provider_crashed")  # ours are among the faults


def _no_inotify() -> Any:
    raise OSError("simulated events only")


def watcher(world: World) -> Any:
    """watchfiles.awatch over simulated file events."""

    async def awatch(*folders: Any, stop_event: Any, **_: Any) -> AsyncGenerator[set[tuple[int, str]], None]:
        changed = asyncio.Event()
        names = [str(folder) for folder in folders]
        for name in names:
            world.watchers.setdefault(name, []).append(changed)

        async def stop() -> None:
            await stop_event.wait()
            changed.set()

        stopper = asyncio.ensure_future(stop())
        try:
            while True:
                await changed.wait()
                changed.clear()
                if stop_event.is_set():
                    return
                # Which file it was is not remembered: an event is a hint, and the look costs the same.
                yield {(2, f"{name}/x") for name in names}
        finally:
            stopper.cancel()
            for name in names:
                world.watchers[name].remove(changed)

    return awatch


class FakeTime:
    """Time for whoever waits in its own thread until nobody writes: it passes at once, for nobody does."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        """Seconds that were slept."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Pass them."""
        self._now += seconds


@contextmanager
def patched(world: World, disk: Disk, receivers: Receivers) -> Generator[None]:
    """The product in the simulation's hands, for one run."""
    random_bytes = Random(f"ids {world.seed}")
    threads = Threads(world)
    awatch = watcher(world)

    def build_channels(config: Any, clock: Any, _: Any = None) -> SimChannels:
        return SimChannels(
            {
                name: SimChannel(ChannelContext(name, receivers, world.root, clock, config.limits.max_content_bytes))
                for name in TRAITS
            }
        )

    def recover(folder: Path, *options: Any) -> bool:
        process = PROCESS.get()
        if process is not None:
            disk._guard(folder / "outbound.db", "recovered the journal of")
            world.counts["recoveries"] += 1
        return recover_outbound_journal(folder, *options)

    def build_runtime(*arguments: Any) -> Any:
        process = PROCESS.get()
        program = next(one for one in world.programs if one.process is process)
        return program.runtime(*arguments)

    seeded = Random(f"daemon {world.seed}")
    with (
        mock.patch.object(schema.ids, "os", types.SimpleNamespace(urandom=random_bytes.randbytes)),
        mock.patch.object(schema.connect, "_connect", disk.connect),
        mock.patch.object(schema.lockfree, "time", real_time := FakeTime()),
        mock.patch.object(daemon.maintenance.folder_backup, "time", real_time),
        mock.patch.object(daemon.maintenance.offline, "build_runtime", build_runtime),
        mock.patch.object(daemon.store.session_files, "recover_outbound_journal", recover),
        mock.patch.object(anyio.to_thread, "run_sync", threads.run_sync),
        mock.patch.object(container_runner.loop, "run_in_thread", threads.run_sync),
        mock.patch.object(container_runner.loop, "run_here", threads.run_sync),
        mock.patch.object(container_runner.file_work, "run_here", threads.run_sync),
        mock.patch.object(container_runner.turn_end, "run_here", threads.run_sync),
        mock.patch.object(container_runner.watch, "awatch", awatch),
        mock.patch.object(daemon.engine.watch_portable, "awatch", awatch),
        mock.patch.dict(
            daemon.engine.watch.Watch.__init__.__kwdefaults__ or {},
            poll_s=world.rng.choice((2.0, 10.0, 30.0)),
            open_events=_no_inotify,
        ),
        mock.patch.dict(container_runner.watch.InboundWatch.__init__.__kwdefaults__ or {}, open_events=_no_inotify),
        mock.patch.object(SessionFiles, "outbound_mark", lambda files: world.version(files.folder.outbound_db)),
        mock.patch.object(
            container_runner.watch.InboundWatch,
            "_look_at_file",
            lambda watch: world.version(watch._folder / "inbound.db"),
        ),
        mock.patch.object(daemon.app.bus, "build_channels", build_channels),
        mock.patch.object(daemon.app.bus, "random", types.SimpleNamespace(Random=lambda: seeded)),
        mock.patch.object(daemon.runtimes.factory, "source_digest", lambda: "simulated"),
    ):
        yield


def configure_logs(world: World) -> None:
    """Log events become lines of the trace; a logged defect is a finding."""

    def processor(_: Any, level: str, event: dict[str, Any]) -> Any:
        process = PROCESS.get()
        name = event.pop("event", "")
        if name.endswith(_DEFECTS) and name not in _EXPECTED:
            text = traceback.format_exc(limit=-3)
            world.broken(f"{name}: {text.strip()}")
        if world.tracing:
            fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("exc_info", "hint"))
            world.trace(process.name if process else "world", f"{level}: {name} {fields}")
        raise structlog.DropEvent

    structlog.configure(
        processors=[processor],  # pyright: ignore[reportArgumentType]
        wrapper_class=structlog.make_filtering_bound_logger("DEBUG" if world.tracing else "ERROR"),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
