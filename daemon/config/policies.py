"""Translates the configuration into the limits and policies of the parts, in their own units. Pure."""

from __future__ import annotations

from typing import Final

from daemon.config.agents import Agent
from daemon.config.models import Config, EngineKind
from daemon.core.attachments import IntakeLimits
from daemon.core.lifecycle import Policy
from daemon.core.message_fate import Fate
from daemon.core.schedule_limits import ScheduleLimits
from schema.plain_file import ReadLimits

_NO_LIMIT_S: Final = 366 * 86400.0
_CANCEL_GRACE_S: Final = 15.0
_SCHEDULE_FAILURES: Final = 5
_UNCLAIMED_S: Final = 60.0  # how long a runner on a busy machine may take until its first poll


def read_limits(config: Config) -> ReadLimits:
    """Return the limits of one read of a container's file."""
    return ReadLimits(
        max_file_bytes=config.limits.max_outbound_file_bytes,
        max_row_bytes=4 * config.limits.max_content_bytes + 64 * 1024,
        deadline_s=config.limits.read_deadline_s,
    )


def intake_limits(config: Config) -> IntakeLimits:
    """Return what one message may bring, and what the files of answers may take."""
    limits = config.limits
    return IntakeLimits(
        limits.max_content_bytes, limits.max_attachments, limits.max_attachment_bytes, limits.max_sent_bytes
    )


def fate_of(agent: Agent | None, config: Config) -> Fate:
    """Return the rules for an agent's messages; the default ones for an agent that is no longer configured."""
    base = int(config.sweep.backoff_base_s * 1000)
    if agent is None:
        return Fate(later_base=base)
    return Fate(strict=agent.order == "strict", later_for=int(agent.later_for_s * 1000), later_base=base)


def schedule_limits_of(agent: Agent | None, config: Config) -> ScheduleLimits:
    """Return what an agent may ask for with schedules of its own; nothing for one that is no longer configured."""
    if agent is None:
        return ScheduleLimits(most=0, timezone=config.timezone)
    return ScheduleLimits(agent.max_schedules, _ms(agent.min_schedule_s), config.timezone)


def agent_policy(config: Config, agent: Agent | None) -> Policy:
    """Return the sweep's policy for one agent's sessions, in milliseconds."""
    stuck = config.sweep.claim_stuck_s
    turn = agent.timeout_s if agent is not None and agent.ends_turns else config.sweep.ceiling_s
    return Policy(
        ceiling=_ms(config.sweep.ceiling_s),
        claim_stuck=_ms(stuck),
        claim_max=_ms(claim_max_s(config, agent)),
        turn=_ms(turn + stuck),
        cancel_grace=_ms(agent.cancel_grace_s if agent is not None else _CANCEL_GRACE_S),
        unclaimed=_ms(max(stuck, _UNCLAIMED_S)),
        max_declared=_ms(config.sweep.max_declared_s),
        max_tries=config.sweep.max_tries,
        schedule_failures=agent.pause_schedules_after if agent is not None else _SCHEDULE_FAILURES,
        backoff_base=_ms(config.sweep.backoff_base_s),
        idle_stop=_ms(config.runtime.idle_stop_s),
    )


def turn_limit_s(agent: Agent) -> float:
    """Return the seconds after which the runner ends a turn; for acp without a timeout_s, longer than any turn."""
    return agent.timeout_s if agent.ends_turns or agent.provider != "acp" else _NO_LIMIT_S


def claim_max_s(config: Config, agent: Agent | None) -> float:
    """Return the longest time of a claim in seconds: the agent's, the sweep's, or what follows from the time-outs."""
    own = agent.claim_max_s if agent is not None else None
    if own is not None or config.sweep.claim_max_s > 0:
        return own if own is not None else config.sweep.claim_max_s
    if agent is not None and agent.ends_turns:
        return 2 * agent.timeout_s + config.sweep.claim_stuck_s
    return config.sweep.max_declared_s + config.sweep.ceiling_s


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def engine_of(config: Config, kind: str | None = None) -> tuple[EngineKind, str | None]:
    """Return which container engine `kind` (default: runtime.kind) is, and its configured address; None if there is none.

    With the runtime `process` it is Docker: `clawbus image build` may be run before the change to it.
    """
    if (kind or config.runtime.kind) == "podman":
        return "podman", config.podman.host or None
    return "docker", config.docker.host or None
