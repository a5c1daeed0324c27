"""Takes over a configuration that was read again: agents, routes and the log level. Everything else needs a restart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import structlog

from daemon.api.reloading import Reloaded
from daemon.app.bus import Bus
from daemon.config.models import Config
from daemon.config.ownership import owned, ownership_of
from daemon.core.ownership import Ownership
from daemon.logs.pipeline import LogPipeline
from daemon.systemd.notify import Notifier
from schema.errors import ClawbusError


def reload_as_asked(
    bus: Bus, pipeline: LogPipeline, notifier: Notifier, reload: Callable[[], Config] | None
) -> Reloaded:
    """Reload for a client that waits for the outcome. Raise what refused it."""
    notifier.reloading()
    try:
        return reload_config(bus, pipeline, reload or (lambda: bus.config))
    finally:
        notifier.ready(bus.status_line())


def reload_at_signal(bus: Bus, pipeline: LogPipeline, reload: Callable[[], Config] | None) -> None:
    """Reload at SIGHUP. The result goes to the log, because no client waits for it."""
    with suppress(Exception):  # a reload that fails changes nothing, and the daemon goes on
        if reload is not None:
            reload_config(bus, pipeline, reload)


def reload_config(bus: Bus, pipeline: LogPipeline, reload: Callable[[], Config]) -> Reloaded:
    """Take over agents, routes and the log level; everything else needs a restart. A broken file changes nothing, and is raised."""
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
    # Warn about changes that need a restart: the operator believes that they are in force.
    say = log.warning if restart else log.info
    say("config_reloaded", agents=sorted(bus.agents), level=config.logs.level, restart_needed_for=restart)
    return Reloaded(tuple(sorted(bus.agents)), config.logs.level, tuple(restart))


def _own_part(config: Config, bus: Bus) -> tuple[Config, Ownership]:
    """Return the part of the configuration that this daemon owns. A changed role needs a restart, as a moved channel does."""
    found = ownership_of(config.model_copy(update={"role": bus.ownership.role}))
    return owned(config, found), found
