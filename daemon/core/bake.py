"""Decides during a bake whether the new release does harm, apart from others' troubles. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Final

from daemon.core.deploy_pace import Pace
from daemon.core.printable import counted
from schema.frozen import frozen


@frozen
class Health:
    """What a bake checks. `degraded` is {what: why} as in `status`; `late` names loops without progress."""

    dead_letters: int = 0
    quarantined: int = 0
    spawn_failures: int = 0
    degraded: Mapping[str, str] = field(default_factory=dict[str, str])
    late: tuple[str, ...] = ()
    stuck: int = 0  # agents of this release that made no progress and were ended
    pace: Mapping[str, Pace] = field(default_factory=dict[str, Pace])


_HOSTS: Final = frozenset({"runtime", "disk", "storage"})


def _is_host(what: str) -> bool:
    return what in _HOSTS


def _is_channel(what: str) -> bool:
    return what.startswith("channel ")


def judge(baseline: Health, now: Health) -> tuple[str | None, list[str]]:
    """Return the breach, or None, and what is wrong and not the release's doing.

    A receiver that is down, a full disk and an engine that does not answer are others' troubles, and what they cause is
    not held against the release: it would fail in the same way under the prior one.
    """
    excused = [f"{what}: {why}" for what, why in now.degraded.items() if _is_host(what) or _is_channel(what)]
    if now.late:
        return f"no progress: {', '.join(now.late)}", excused
    for what, why in now.degraded.items():
        if what not in baseline.degraded and not _is_host(what) and not _is_channel(what):
            return f"{what}: {why}", excused
    return _more_failures(raise_baseline(baseline, now), now), excused


def _more_failures(baseline: Health, now: Health) -> str | None:
    if now.quarantined > baseline.quarantined:
        return counted(now.quarantined - baseline.quarantined, "session was", "sessions were") + " quarantined"
    if now.spawn_failures > baseline.spawn_failures:
        return counted(now.spawn_failures - baseline.spawn_failures, "container") + " could not be started"
    if now.stuck > baseline.stuck:
        return counted(now.stuck - baseline.stuck, "agent") + " made no progress and had to be ended"
    if now.dead_letters > baseline.dead_letters:
        return counted(now.dead_letters - baseline.dead_letters, "new dead letter")
    return None


def raise_baseline(baseline: Health, now: Health) -> Health:
    """Return the baseline with what others' troubles may have caused: it stays excused after they have ended."""
    if any(map(_is_host, now.degraded)):
        return replace(
            baseline,
            dead_letters=now.dead_letters,
            quarantined=now.quarantined,
            spawn_failures=now.spawn_failures,
            stuck=now.stuck,
        )
    if any(map(_is_channel, now.degraded)):
        return replace(baseline, dead_letters=now.dead_letters)
    return baseline
