"""Applies a changed configuration to the running daemon: agents, routes and the log level. All else needs a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
import structlog

from daemon.api.reloading import Reloaded
from daemon.app.bus import Bus
from daemon.config.models import Config
from daemon.config.ownership import owned, ownership_of
from daemon.core.errors import ConfigUnreadableError
from daemon.core.ownership import Ownership
from daemon.logs.pipeline import LogPipeline
from daemon.systemd.notify import Notifier
from schema.errors import ClawbusError, StorageError

_READ_S: Final = 10.0
_RETRY_S: Final = 2.0  # then twice as long each time, because each try logs its failure
_LONGEST_RETRY_S: Final = 60.0


class Reloader:
    """Applies changed configurations, one at a time. `reread` reads the configuration; None: there is nothing to read again."""

    def __init__(
        self, bus: Bus, pipeline: LogPipeline, notifier: Notifier, reread: Callable[[], Config] | None
    ) -> None:
        self._bus = bus
        self._pipeline = pipeline
        self._notifier = notifier
        self._reread = reread
        self._lock = anyio.Lock()
        self._reading = False  # a thread reads, or hangs in it

    async def as_asked(self) -> Reloaded:
        """Reload for a client that waits for the outcome. Raise ClawbusError for a broken configuration."""
        self._notifier.reloading()
        try:
            return await self._reload()
        finally:
            self._notifier.ready(self._bus.status_line())

    async def at_signal(self) -> None:
        """Reload at SIGHUP. The result goes to the log, because no client waits for it. Try again what this host cannot do now."""
        self._notifier.reloading()
        try:
            if self._reread is not None and not await self._reloaded():
                self._bus.background.later(self._until_done)
        finally:
            self._notifier.ready(self._bus.status_line())

    async def _until_done(self) -> None:
        wait_s = _RETRY_S
        while True:
            await anyio.sleep(wait_s)
            if await self._reloaded():
                return
            wait_s = min(2 * wait_s, _LONGEST_RETRY_S)

    async def _reloaded(self) -> bool:
        """Return False if it is worth another try. A failed reload changes nothing, and is logged."""
        try:
            await self._reload()
        except (ConfigUnreadableError, StorageError):
            return False
        except Exception:  # noqa: BLE001 - nobody waits for it, and another try would fail as well
            return True
        return True

    async def _reload(self) -> Reloaded:
        """Apply agents, routes and the log level. Raise ClawbusError for a broken configuration; then nothing has changed."""
        log = structlog.get_logger("daemon")
        bus = self._bus
        async with self._lock:
            try:
                config, ownership = _own_part(await self._read(), bus)
                if bus.registration is not None:
                    bus.registration.hold(config.agents, ownership)
            except ClawbusError as error:
                log.error("reload_refused", error=str(error), hint=error.hint)
                raise
            except Exception:
                log.exception("reload_raised")
                raise
            return _apply(config, ownership, bus, self._pipeline)

    async def _read(self) -> Config:
        """Read in a thread: the file, or a path that an agent mounts, may be on a disk or mount that hangs."""
        reread = self._reread
        if reread is None:
            return self._bus.config

        def work() -> Config:
            self._reading = True
            try:
                return reread()
            finally:
                self._reading = False

        try:
            if not self._reading:
                with anyio.fail_after(_READ_S):
                    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        except TimeoutError:
            pass
        raise ConfigUnreadableError(f"the configuration was not read within {_READ_S:g} s: a disk or mount hangs.")


def _apply(config: Config, ownership: Ownership, bus: Bus, pipeline: LogPipeline) -> Reloaded:
    log = structlog.get_logger("daemon")
    pipeline.set_level(config.logs.level)
    bus.agents.clear()
    bus.agents.update(config.agents)
    bus.ownership = ownership
    bus.elsewhere.clear()
    bus.elsewhere.update(ownership.elsewhere)
    if bus.registration is not None:
        bus.registration.poke()
    bus.router.reload_later(config.routes)
    bus.budgets.reconsider()
    taken_over = {"agents": True, "logs": {"level"}, "routes": True, "ownership": True}
    old = bus.config.model_dump(exclude=taken_over)
    restart = sorted(key for key, value in config.model_dump(exclude=taken_over).items() if value != old[key])
    # Warn about changes that need a restart: the operator may believe that they took effect.
    say = log.warning if restart else log.info
    say("config_reloaded", agents=sorted(bus.agents), level=config.logs.level, restart_needed_for=restart)
    return Reloaded(tuple(sorted(bus.agents)), config.logs.level, tuple(restart))


def _own_part(config: Config, bus: Bus) -> tuple[Config, Ownership]:
    """Return the part of the configuration that this daemon owns. Keep the present role: a new one needs a restart."""
    found = ownership_of(config.model_copy(update={"role": bus.ownership.role}))
    return owned(config, found), found
