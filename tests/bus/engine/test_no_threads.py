"""A host that can start no thread for a while, as a full pod or a unit at TasksMax=: no loop of the daemon ends over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from daemon.app.registration import Registration
from daemon.config.egress import Egress
from daemon.core.session_key import SessionKey
from daemon.egress.gate import Gate
from daemon.egress.ledger import Ledger
from daemon.engine.progress import Progress
from daemon.maintenance.retention import LastPass
from daemon.monitoring.backlog import BacklogWatch
from daemon.store.registry import Registry
from schema.errors import ClawbusError
from tests.support.bus_kit import BusKit

pytestmark = [pytest.mark.anyio]

Loop = Callable[[BusKit, Any], Awaitable[object]]


async def _registration(kit: BusKit, _: Any) -> None:
    assert not await Registration(kit.bus, Registry(kit.root / "central.db"), None, 0, "i")._attempt(
        lambda: Registration(kit.bus, Registry(kit.root / "central.db"), None, 0, "i")._register()
    )


async def _progress(kit: BusKit, session: Any) -> None:
    await Progress(lambda: [session], lambda: True, lambda _: None, kit.bus.clock).look()


async def _gate(kit: BusKit, _: Any) -> None:
    table = Egress.model_validate({"connect": {"c": {"hosts": ["a.test:443"], "agents": ["*"]}}})
    ledger = Ledger({}, kit.bus.budgets._zone, kit.bus.clock, _Nowhere())
    gate = Gate(table, kit.root / "run" / "egress", kit.bus.clock, ledger, lambda _: None)
    await gate._discard_soon(("a", "b"))


class _Nowhere:
    async def load(self, first_day: str) -> list[Any]:
        return []

    async def write(self, rows: object, before: str) -> None:
        return


async def _clawbus_errors_pass(work: Awaitable[object]) -> None:
    """The loops log these and go on."""
    with suppress(ClawbusError):
        await work


LOOPS: dict[str, Loop] = {
    "full pass": lambda kit, _: _clawbus_errors_pass(kit.bus.sessions.find_lost()),
    "verification": lambda kit, _: _clawbus_errors_pass(kit.bus.verification._verify_page([SessionKey("a", "b")], 0)),
    "retention": lambda kit, _: _clawbus_errors_pass(kit.bus.retention._prune_mailbox(LastPass())),
    "registration": _registration,
    "progress": _progress,
    "typing signs": lambda kit, session: kit.bus.typing._progresses(session.key),
    "lock holders": lambda kit, session: kit.bus.problems._held_files.check(session),
    "metrics": lambda kit, _: BacklogWatch(kit.bus.sessions, kit.root)._ask_disk(),
    "gate": _gate,
}


@pytest.mark.parametrize("name", LOOPS)
async def test_a_loop_goes_on_without_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        session = (await kit.send(message_id="m1")) and await kit.session()

        async def no_thread(*_: object, **__: object) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(anyio.to_thread, "run_sync", no_thread)
            await LOOPS[name](kit, session)
