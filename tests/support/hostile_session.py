"""One session whose container may write anything, and the operations that the host runs on its files.

All hostile tests use it. `host_operations` lists what the daemon does with a session's files. No daemon or container runs.
"""

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules
from daemon.core.lifecycle import Container, Policy
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import Collected, collect
from daemon.engine.incarnation_steps import finish_incarnation
from daemon.engine.sweep_steps import Settings, Swept, sweep_files
from daemon.inspect.message_life import read_life
from daemon.inspect.session_detail import read_detail
from daemon.store.session_files import SessionFiles
from schema.layout import OUTBOUND_DB
from schema.plain_file import ReadLimits
from tests.support.clock import MovedClock
from tests.support.session_world import NOW, SessionWorld

SETTINGS: Final = Settings(Policy())
LIVE: Final = "01LIVE0000000000000000000A"
CONTENT_BYTES: Final = 1024**2


def means(*, content_bytes: int = CONTENT_BYTES) -> DeliveryContext:
    return DeliveryContext(
        channels={"local": ChannelRules(deduplicates=True, hold_in_doubt=False)},
        config=Delivery(),
        max_content_bytes=content_bytes,
        held=frozenset(),
        under_way=frozenset(),
        jitter=0.5,
    )


class HostileSession(SessionWorld):
    """A SessionWorld whose container's file may be replaced by anything."""

    def __init__(self, root: Path, limits: ReadLimits | None = None, now: int = NOW) -> None:
        super().__init__(root, now)
        self.files = SessionFiles(root, limits or ReadLimits())
        self.out = self.files.folder.outbox
        self.database = self.out / OUTBOUND_DB

    def write(self, *statements: str, params: tuple[Any, ...] = ()) -> None:
        """Run any SQL on outbound.db, as the container could."""
        connection = sqlite3.connect(self.database, isolation_level=None)
        try:
            for statement in statements:
                connection.execute(statement, params)
        finally:
            connection.close()

    def remake(self, *statements: str) -> None:
        """Replace outbound.db by an empty file and run the statements on it."""
        for path in self.out.glob(OUTBOUND_DB + "*"):
            path.unlink()
        self.write(*statements)

    def collect(self, live: str | None = LIVE) -> Collected:
        return collect(self.files, means(), live, self)

    def sweep(self, *, running: bool = True) -> Swept:
        container = Container(LIVE, self.now - 1000) if running else None
        return sweep_files(self.files, container, self.now, SETTINGS, occupied=False, floor=0)

    def finish(self, incarnation: str = LIVE, reason: str = "crashed") -> Any:
        return finish_incarnation(self.files, incarnation, reason, self.now, SETTINGS)


def host_operations(files: SessionFiles, limits: ReadLimits, now: int) -> dict[str, Callable[[], object]]:
    """Return all that the daemon and the command line do with a session's files, by name: first with a running container."""
    running = Container(LIVE, now - 1000)
    sweep = partial(sweep_files, files, now=now, settings=SETTINGS, occupied=False, floor=0)
    return {
        "collect": partial(collect, files, means(), LIVE, MovedClock(now)),
        "sweep": partial(sweep, container=running),
        "report": partial(read_detail, files.folder, 20, limits),
        "life": partial(read_life, files.folder, "m1", limits),
        "finish": partial(finish_incarnation, files, LIVE, "ceiling", now, SETTINGS),
        "sweep with nothing running": partial(sweep, container=None),
        "collect after": partial(collect, files, means(), None, MovedClock(now)),
    }
