"""Agents and channels as the configuration has them, with what is open of each: from the files, the daemon up or down.

No secret is read: of an agent's environment the names, of a channel's table the type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from daemon.config.agents import Agent
from daemon.config.models import Config
from daemon.config.policies import claim_max_s
from daemon.core.clock import Clock
from daemon.core.destinations import AGENT_CHANNEL
from daemon.inspect.across_sessions import visit_sessions
from daemon.inspect.agents_now import AgentsNow
from daemon.inspect.bounds import MAX_SESSIONS, PATIENT_BUDGET_S
from daemon.inspect.budget_reading import budgets_report
from daemon.inspect.central_reading import Key, folder_of, idle_sessions, read_central
from daemon.inspect.session_report import sessions_report
from daemon.inspect.trusted_files import open_inbound
from daemon.store.backlog import NOT_CLOSED, Queued, read_answers
from daemon.store.dead_letters import CLOSED_TABLE
from schema.handles import Reader

LOCAL: Final = "local"
_CHANNEL_OF: Final = "substr(destination, 1, instr(destination, char(31)) - 1)"
_NAMED: Final = 50


def agents_report(config: Config, clock: Clock) -> list[dict[str, Any]]:
    """Return every agent that has a table or a session, by name: its configuration, its sessions by state, what is open.

    Raise DataFolderError, RegistryGoneError.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in config.agents}
    today = budgets_report(config, clock.now_ms())
    stopped = {name: one["used_up"] for name, one in today.items() if one["used_up"]}
    agents = AgentsNow(stopped, frozenset(config.agents))
    for one in sessions_report(config.data_dir, clock, limit=MAX_SESSIONS, budget_s=PATIENT_BUDGET_S, agents=agents):
        found.setdefault(one["agent"], []).append(one)
    return [{**_agent(config, name, sessions), "today": today.get(name)} for name, sessions in sorted(found.items())]


def _agent(config: Config, name: str, sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def total(*keys: str) -> int:
        return sum(one[key] or 0 for one in sessions for key in keys)

    needing = [{"session": one["session"], "why": one["explanation"]} for one in sessions if one["explanation"]]
    settings = config.agents.get(name)
    return {
        "agent": name,
        "configured": settings is not None,
        "settings": _settings(config, settings) if settings is not None else None,
        "sessions": {"total": len(sessions), **dict(sorted(Counter(one["state"] for one in sessions).items()))},
        "pending": total("pending"),
        "scheduled": total("scheduled"),
        "undelivered": total("undelivered"),
        "dead_letters": total("failed", "dead"),
        "not_examined": sum(one["pending"] is None and one["error"] is None for one in sessions),
        "attention": needing[:_NAMED],
        "attention_total": len(needing),
    }


def _settings(config: Config, agent: Agent) -> dict[str, Any]:
    """Return what an operator asks about a table. A program's arguments and variables may be secrets: they are counted, or named."""
    in_container = config.runtime.kind != "process"
    return {
        "provider": agent.provider,
        "program": agent.command[0] if agent.command else None,
        "arguments": max(0, len(agent.command) - 1),
        "variables": sorted(agent.env),
        "runtime": config.runtime.kind,
        "image": (agent.image or config.docker.image) if in_container else None,
        "network": (agent.network or config.docker.network) if in_container else None,
        "order": agent.order,
        "timeout_s": agent.timeout_s,
        "claim_max_s": claim_max_s(config, agent),
        "max_containers": agent.max_containers or config.runtime.max_containers,
        "own_runner": bool(agent.runner),
    }


@dataclass(slots=True)
class _Open:
    """What is open on one channel, summed over the sessions."""

    undelivered: int = 0
    scheduled: int = 0
    retrying: int = 0
    dead: int = 0
    oldest_at: int | None = None
    error: str | None = None  # the latest error of an answer that is tried again


def channels_report(
    config: Config, clock: Clock, degraded: Mapping[str, str] | None, *, budget_s: float = PATIENT_BUDGET_S
) -> dict[str, Any]:
    """Return {channels, not_examined, errors}: every channel that is configured or has answers.

    `degraded` comes from the daemon: why a channel does not work, by name; None without a daemon. Raise DataFolderError,
    SchemaTooNewError.
    """
    deadline, now = clock.monotonic() + budget_s, clock.now_ms()
    tables: Mapping[str, Mapping[str, Any]] = {LOCAL: {}, **config.channels}
    found: dict[str, _Open] = {name: _Open() for name in tables}
    idle = idle_sessions(config.data_dir, now)
    keys = [key for key in read_central(config.data_dir).known() if key not in idle]

    def visit(key: Key) -> None:
        with open_inbound(folder_of(config.data_dir, key)) as reader:
            _add(found, reader, now)

    left, errors = visit_sessions(keys, clock, deadline, visit)
    if AGENT_CHANNEL in found:  # it has no table: the daemon brings it
        tables = {**tables, AGENT_CHANNEL: {}}
    channels = [_channel(name, tables.get(name), found[name], degraded) for name in sorted(found)]
    return {"channels": channels, "not_examined": left, "errors": errors}


def _add(found: dict[str, _Open], reader: Reader, now: int) -> None:
    if not reader.columns("delivery_attempts"):
        return
    for queued in read_answers(reader, now):
        _count(found.setdefault(queued.channel, _Open()), queued)
    retried = (
        f"SELECT {_CHANNEL_OF} AS channel, count(*) AS n, max(seq), last_error FROM delivery_attempts"
        " WHERE state = 'retrying' GROUP BY channel LIMIT 1000"
    )
    for row in reader.all(retried):
        one = found.setdefault(str(row["channel"]), _Open())
        one.retrying += row["n"]
        one.error = row["last_error"] or one.error
    closed = NOT_CLOSED.format("message_out_id") if reader.columns(CLOSED_TABLE) else ""
    dead = f"SELECT {_CHANNEL_OF} AS channel, count(*) AS n FROM delivery_attempts WHERE state = 'dead'{closed} GROUP BY channel LIMIT 1000"
    for row in reader.all(dead):
        found.setdefault(str(row["channel"]), _Open()).dead += row["n"]


def _count(one: _Open, queued: Queued) -> None:
    one.undelivered += queued.count
    one.scheduled += queued.scheduled
    if queued.oldest_at is not None:
        one.oldest_at = queued.oldest_at if one.oldest_at is None else min(one.oldest_at, queued.oldest_at)


def _channel(
    name: str, table: Mapping[str, Any] | None, found: _Open, degraded: Mapping[str, str] | None
) -> dict[str, Any]:
    state, why = _state(name, table, degraded)
    return {
        "channel": name,
        "type": str(table.get("type") or name) if table is not None else None,
        "state": state,
        "why": why or found.error,
        "undelivered": found.undelivered,
        "scheduled": found.scheduled,
        "retrying": found.retrying,
        "dead": found.dead,
        "oldest_undelivered_at": found.oldest_at,
    }


def _state(name: str, table: Mapping[str, Any] | None, degraded: Mapping[str, str] | None) -> tuple[str, str | None]:
    if table is None:
        return "missing", f"the configuration has no [channels.{name}] table"
    if table.get("enabled") is False:
        return "off", None
    if degraded is None:
        return "unknown", None
    why = degraded.get(name)
    return ("degraded", why) if why is not None else ("up", None)
