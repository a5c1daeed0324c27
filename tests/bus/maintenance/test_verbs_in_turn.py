"""Verbs that take a session out of service or put it back wait for each other: memory and registry agree afterwards."""

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import QuarantineSession, ReleaseSession, ResetSession
from daemon.core.verb import Verb
from daemon.maintenance import session_repair
from schema.errors import StorageError
from tests.support.bus_kit import AGENT, BusKit, until

pytestmark = pytest.mark.anyio

KEY = SessionKey(AGENT, "main")


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    return BusKit(tmp_path / "data")


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("second", [ReleaseSession(*KEY), QuarantineSession(*KEY)])
async def test_a_verb_during_a_reset_acts_on_what_the_reset_leaves(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch, second: Verb, *, fails: bool
) -> None:
    """A reset that failed late put back what it had found: the session was held in memory, and no list named it."""
    begun, go_on = threading.Event(), threading.Event()
    real = session_repair.reset

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        if fails:
            raise StorageError("the disk is full.")
        return real(*arguments, **options)

    monkeypatch.setattr(session_repair, "reset", slow)
    async with kit.running():
        await kit.send(message_id="m1")
        await kit.operations.execute(QuarantineSession(*KEY))
        await kit.gone()
        session = await kit.session()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_try, kit, ResetSession(*KEY, discard=True))
            await until(begun.is_set)
            tasks.start_soon(_try, kit, second)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        row = await kit.bus.sessions.central(lambda registry: registry.session(KEY))
        assert row is not None
        assert session.quarantined == row.quarantine_reason
        assert (session.quarantined is None) == isinstance(second, ReleaseSession)


async def _try(kit: BusKit, verb: Verb) -> None:
    try:
        await kit.operations.execute(verb)
    except StorageError:
        return
