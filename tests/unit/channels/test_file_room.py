"""Room for files in memory: bounded, in the order of arrival, and never lost."""

import anyio
import anyio.lowlevel
import pytest

from daemon.channels.file_room import FileRoom
from daemon.core.errors import TransientDeliveryError

pytestmark = pytest.mark.anyio


async def test_no_more_than_the_limit_is_held_and_one_larger_than_it_goes_alone() -> None:
    room, now, most = FileRoom(10, 30), 0, 0

    async def send(size: int) -> None:
        nonlocal now, most
        async with room.hold(size):
            now += size
            most = max(most, now)
            await anyio.lowlevel.checkpoint()
            now -= size

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for size in (4, 4, 4, 10, 1, 9, 0) * 20:
                tasks.start_soon(send, size)
        assert most == 10
        await send(99)
    assert most == 99


async def test_a_large_one_is_not_overtaken_for_ever() -> None:
    room, order, holds = FileRoom(10, 30), list[str](), anyio.Event()

    async def send(name: str, size: int) -> None:
        async with room.hold(size):
            order.append(name)

    async def holder() -> None:
        async with room.hold(5):
            await holds.wait()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(send, "large", 9)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(send, "small", 1)
            await anyio.wait_all_tasks_blocked()
            assert order == []
            holds.set()
    assert order == ["large", "small"]


async def test_who_waits_too_long_is_tried_again_and_is_not_in_doubt() -> None:
    room = FileRoom(10, 0.01)
    async with room.hold(10):
        with pytest.raises(TransientDeliveryError) as refused:
            async with room.hold(1):
                raise AssertionError("there is no room")
        assert (refused.value.in_doubt, refused.value.retry_after_s) == (False, 0.01)
    async with room.hold(10):  # nothing was lost
        pass
    with anyio.move_on_after(0) as cut:
        async with room.hold(10):
            await anyio.sleep_forever()
    assert cut.cancelled_caught
    with anyio.fail_after(30):
        async with FileRoom(10, 30).hold(10), room.hold(0):
            pass
