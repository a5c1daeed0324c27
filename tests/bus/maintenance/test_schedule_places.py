"""What no channel can send to, or no file hold, is refused where a schedule is made: not after the work of each occurrence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.channels.protocol import Incoming
from daemon.config.schedules import ScheduleTable, schedule_faults
from daemon.core.errors import ContentError, MessageError, ScheduleError, UnknownSessionError
from daemon.core.schedule_verbs import PutSchedule
from daemon.core.session_key import SessionKey
from schema.rows import Address
from tests.support.bus_kit import AGENT, BusKit

pytestmark = pytest.mark.anyio
NOWHERE: dict[str, dict[str, Any]] = {
    "a line in a mailbox's name": {"place": "a\nb"},
    "too long for a mailbox": {"place": "m" * 201},
    "half a character in the place": {"channel": "fake", "place": "r\ud83d"},
    "half a character in the thread": {"thread": "\udc80"},
    "half a character in the channel": {"channel": "\ud800"},
}


@pytest.mark.parametrize("keys", NOWHERE.values(), ids=NOWHERE)
async def test_a_schedule_that_nobody_could_read_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running() as bus:
        for session in ("s", "s"):  # a new session, and one that is there
            with pytest.raises(MessageError):
                await kit.operations.executor.execute(
                    PutSchedule(AGENT, session, id="k", text="t", every_ms=60_000, **keys)
                )
            await bus.sessions.create(SessionKey(AGENT, session))


async def test_a_channel_that_does_not_exist_is_refused_before_the_work(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running() as bus:
        incoming = Incoming(AGENT, "s", {"text": "t"}, address=Address("webhok", "alerts"))
        with pytest.raises(MessageError, match="no channel 'webhok' is configured"):
            await kit.operations.accept(incoming)
        with pytest.raises(UnknownSessionError):
            await bus.sessions.get(SessionKey(AGENT, "s"))
        await kit.operations.accept(replace(incoming, address=Address("fake", "alerts")))


@pytest.mark.parametrize("keys", [{"text": "paid \ud83d"}, {"text": "t", "check": "echo \ud83d"}])
async def test_half_a_character_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        with pytest.raises(ContentError, match=list(keys)[-1]):
            await kit.operations.executor.execute(PutSchedule(AGENT, "s", id="k", every_ms=60_000, **keys))


async def test_a_check_that_no_shell_could_run_is_refused(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        with pytest.raises(ScheduleError, match="NUL"):
            await kit.operations.executor.execute(
                PutSchedule(AGENT, "s", id="k", text="t", every_ms=60_000, check="echo a\0b")
            )


@pytest.mark.parametrize("keys", [{"place": "a\nb"}, {"place": "m" * 201}, {"thread": "x" * 1001}])
def test_the_configuration_is_told_the_same(keys: dict[str, Any]) -> None:
    table = ScheduleTable(agent="a", text="t", every_s=60, **keys)
    (fault,) = schedule_faults({"k": table}, "UTC", {"a"}, {"local"})
    assert fault.startswith("schedules.k.place: ")
    assert not list(
        schedule_faults({"k": table.model_copy(update={"place": "m", "thread": None})}, "UTC", {"a"}, {"local"})
    )
