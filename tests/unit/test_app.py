"""The whole house in one process: from accept to the mailbox, over a restart, with a channel that fails."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from schema.rows import Address
from tests.support.fake_agent import echo
from tests.support.house_kit import AGENT, SECONDS, HouseKit, text_of

pytestmark = [pytest.mark.anyio]


async def test_a_message_is_answered_into_the_mailbox(tmp_path: Path) -> None:
    kit = HouseKit(tmp_path / "data")
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, echo(kit.clock))
        async with kit.running() as house:
            accepted = await kit.send(text="hi", message_id="m1", address=Address("local", "me"))
            with anyio.fail_after(SECONDS):
                entry = await house.channels.local.wait_reply(AGENT, "main", accepted.message_id, SECONDS)
            assert entry is not None
            assert text_of(entry.content) == "hi"
            await kit.settle()
            assert (await kit.message("m1"))["status"] == "completed"
            assert kit.host.spawns == 1
        machine.cancel_scope.cancel()
