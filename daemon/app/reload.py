"""Applies a changed configuration to the running daemon: agents, routes and the log level. All else needs a restart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
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

_RETRY_S: Final = 2.0  # then twice as long each time, because each try logs its failure
_LONGEST_RETRY_S: Final = 60.0


def reload_as_asked(
    bus: Bus, pipeline: LogPipeline, notifier: Notifier, reload: Callable[[], Config] | None
) -> Reloaded:
    """Reload for a client that waits for the outcome. Raise as `reload_config` does."""
    notifier.reloading()
    try:
        return reload_config(bus, pipeline, reload or (lambda: bus.config))
    finally:
        notifier.ready(bus.status_line())


def reload_at_signal(bus: Bus, pipeline: LogPipeline, reload: Callable[[], Config] | None) -> None:
    """Reload at SIGHUP. The result goes to the log, because no client waits for it. Try again what this host cannot do now."""
    if reload is not None and not _reloaded(bus, pipeline, reload):
        bus.background.later(partial(_reload_until_done, bus, pipeline, reload))


async def _reload_until_done(bus: Bus, pipeline: LogPipeline, reload: Callable[[], Config]) -> None:
    wait_s = _RETRY_S
    while True:
        await anyio.sleep(wait_s)
        if _reloaded(bus, pipeline, reload):
            return
        wait_s = min(2 * wait_s, _LONGEST_RETRY_S)


def _reloaded(bus: Bus, pipeline: LogPipeline, reload: Callable[[], Config]) -> bool:
    """Return False if it is worth another try. A failed reload changes nothing, and is logged."""
    try:
        reload_config(bus, pipeline, reload)
    except (ConfigUnreadableError, StorageError):
        return False
    except Exception:  # noqa: BLE001 - nobody waits for it, and another try would fail as well
        return True
    return True


def reload_config(bus: Bus, pipeline: LogPipeline, reload: Callable[[], Config]) -> Reloaded:
    """Apply agents, routes and the log level. Raise ClawbusError for a broken configuration; then nothing has changed."""
    log = structlog.get_logger("daemon")
    try:
        config, ownership = _own_part(reload(), bus)
        if bus.registration is not None:
            bus.registration.hold(config.agents, ownership)
    except ClawbusError as error:
        log.error("reload_refused", error=str(error), hint=error.hint)
        raise
    except Exception:
        log.exception("reload_raised")
        raise
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
