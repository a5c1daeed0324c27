"""Many sessions whose conversations are over, and the records that a daemon makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from daemon.core.session_key import SessionKey
from daemon.maintenance.verification import check_files
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from daemon.store.verified_idle import Verified
from schema.ids import session_path
from schema.plain_file import ReadLimits
from tests.support.forensic_world import AGENT, ForensicWorld


def finished(world: ForensicWorld, names: Collection[str]) -> None:
    """Sessions with one message that was answered and settled, idle in the registry; all but the first are copies of it."""
    first, *others = names
    session = world.session(first)
    session.accept("m0")
    world.claimed(session, "m0", "I0")
    session.ack("completed", "m0", by="I0")
    world.settled(session, "m0", "I0")
    for name in others:
        shutil.copytree(session.root, world.root / "sessions" / AGENT / name)
    world.registry.add_sessions([SessionKey(AGENT, name) for name in others], world.clock.now)
    for name in names:
        idle(world, name)


def idle(world: ForensicWorld, name: str) -> None:
    """The registry says that the session has nothing to do."""
    world.registry.deactivate(SessionKey(AGENT, name), None, 0)


def verify(world: ForensicWorld) -> list[str]:
    """Record the idle sessions as a daemon does: their names."""
    return record(world.registry, world.root / "sessions", world.clock.now)


def record(registry: Registry, sessions_dir: Path, now: int) -> list[str]:
    """Read every session that the registry calls idle, and record those that are."""
    found: list[Verified] = []
    for key in registry.idle_sessions(None, 100_000, now + 1):
        stamp, is_idle = check_files(SessionFiles(session_path(sessions_dir, *key), ReadLimits()), ReadLimits(), now)
        if is_idle and stamp is not None:
            found.append(Verified(*key, now, stamp))
    registry.record_verified(found)
    return [one.session for one in found]
