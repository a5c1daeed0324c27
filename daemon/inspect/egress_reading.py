"""The gate's routes, hosts and budgets with what agents used of them: from the configuration and central.db, the daemon up or down.

No secret is kept or shown: only whether its file can be read, by the user who asks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from daemon.config.egress import is_for
from daemon.config.models import Config
from daemon.config.secret_files import read_secret_file
from daemon.core.egress_usage import EVERY_AGENT, UsageRow, day_of, days_before
from daemon.core.host_repairs import READ_KERNEL_ERRORS, secret_repair
from daemon.core.zones import zone
from daemon.inspect.central_reading import ask
from daemon.store.egress_usage import read_days
from schema.errors import StorageError

_LOOK_S: Final = 2.0  # how long all secret files together may take to be read
_SUMS = ("requests", "refused", "failed", "tokens_in", "tokens_out", "estimated", "bytes_up", "bytes_down")


def usage_of(config: Config, now: int, days: int = 1) -> list[UsageRow]:
    """Return the rows of the last `days` days, this one included; none when central.db cannot be read. `now` is epoch ms."""
    first = days_before(day_of(now, zone(config.timezone)), days - 1)
    return ask(config.data_dir, lambda reader: read_days(reader, first), [])


def secret_errors(config: Config) -> tuple[tuple[str, str], ...]:
    """Return (why, repair) for each secret file of a route that cannot be used."""
    return tuple(_unusable(config).values())


def unusable_secrets(config: Config) -> Mapping[str, str]:
    """Return why for the path of each secret file of a route that cannot be used."""
    return {path: why for path, (why, _) in _unusable(config).items()}


def _unusable(config: Config) -> dict[str, tuple[str, str]]:
    """Return (why, repair) by path. A file that hangs keeps a thread, and is reported as such."""
    looks = {
        route.secret_file: _Look(route.secret_file) for route in config.egress.routes.values() if route.secret_file
    }
    for look in looks.values():
        look.begin()
    until = time.monotonic() + _LOOK_S
    found = {str(path): look.result(until) for path, look in looks.items()}
    return {path: bad for path, bad in found.items() if bad is not None}


class _Look:
    """Reads one secret file in a thread, which does not keep the process from ending."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bad: tuple[str, str] | None = None
        self._thread = threading.Thread(target=self._read, name="secret", daemon=True)

    def begin(self) -> None:
        """Start the thread. Without room for one, read at once."""
        try:
            self._thread.start()
        except RuntimeError:
            self._read()

    def result(self, until: float) -> tuple[str, str] | None:
        """Return why the file cannot be used, and the repair; None if it can be. Wait until this monotonic second."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
            if self._thread.is_alive():
                why = f"the secret file {self._path} was not read within {_LOOK_S:g} s: its disk or mount hangs."
                return why, READ_KERNEL_ERRORS
        return self._bad

    def _read(self) -> None:
        try:
            read_secret_file(self._path)
        except (ValueError, StorageError) as error:
            self._bad = str(error), secret_repair(str(self._path), os.geteuid(), _withheld(self._path))


def _withheld(path: Path) -> int | None:
    """Return the owner of a file that this user may not read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return None if os.access(path, os.R_OK, effective_ids=True) else found.st_uid


def budgets_used_up(config: Config, now: int) -> tuple[tuple[str, str], ...]:
    """Return (agent, what of what) for each budget of this day that is used up."""
    if not config.egress.budgets:
        return ()
    return tuple((one["agent"], one["used_up"]) for one in _budgets(config, usage_of(config, now)) if one["used_up"])


def egress_report(config: Config, now: int, days: int) -> dict[str, Any]:
    """Return routes, hosts and budgets, each with what was used in the last `days` days. `now` is epoch ms."""
    rows = usage_of(config, now, days)
    today = day_of(now, zone(config.timezone))
    bad = unusable_secrets(config)
    routes = [
        {
            "name": name, "kind": "route", "targets": [route.upstream], "agents": list(route.agents),
            "paths": list(route.paths), "api": route.api, "header": route.header or None,
            "secret_file": str(route.secret_file) if route.secret_file is not None else None,
            "secret_error": bad.get(str(route.secret_file)), "variables": sorted(route.env),
            **_sum(row for row in rows if row.route == name),
        }
        for name, route in config.egress.routes.items()
    ]  # fmt: skip
    hosts = [
        {
            "name": name, "kind": "connect", "targets": list(table.hosts), "agents": list(table.agents),
            "paths": [], "api": None, "header": None, "secret_file": None, "secret_error": None, "variables": [],
            **_sum(row for row in rows if row.route == name),
        }
        for name, table in config.egress.connect.items()
    ]  # fmt: skip
    return {
        "days": days,
        "today": today,
        "timezone": config.timezone,
        "ways": [*routes, *hosts],
        "refused_elsewhere": sum(row.refused for row in rows if not row.route),
        "budgets": _budgets(config, [row for row in rows if row.day == today]),
    }


def usage_by(rows: Sequence[UsageRow], *names: str) -> list[dict[str, Any]]:
    """Return the sums of the rows that agree in these fields, in the rows' order."""
    groups: dict[tuple[str, ...], list[UsageRow]] = {}
    for row in rows:
        groups.setdefault(tuple(str(getattr(row, name)) for name in names), []).append(row)
    return [{**dict(zip(names, key, strict=True)), **_sum(group)} for key, group in groups.items()]


def _budgets(config: Config, today: Sequence[UsageRow]) -> list[dict[str, Any]]:
    """Return each agent that uses the gate or has a budget, with what it used of this day's."""
    budgets = config.egress.daily()
    found: list[dict[str, Any]] = []
    for agent in sorted({*(row.agent for row in today), *(name for name in budgets if name != EVERY_AGENT)}):
        rows = [row for row in today if row.agent == agent]
        budget = budgets.get(agent) or budgets.get(EVERY_AGENT)
        sums = _sum(rows)
        found.append(
            {
                "agent": agent,
                **sums,
                "requests_per_day": budget.requests if budget is not None else None,
                "tokens_per_day": budget.tokens if budget is not None else None,
                "used_up": budget.exceeded(rows) if budget is not None else None,
                "ways": [
                    name
                    for name, table in (*config.egress.routes.items(), *config.egress.connect.items())
                    if is_for(table.agents, agent)
                ],
            }
        )
    return found


def _sum(rows: Iterable[UsageRow]) -> dict[str, int]:
    listed = list(rows)
    return {name: sum(int(getattr(row, name)) for row in listed) for name in _SUMS}
