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
        async with room.hold("me", size):
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


async def test_a_receiver_gets_half_and_the_last_quarter_is_for_those_that_hold_nothing() -> None:
    room = FileRoom(100, 0.01)
    async with room.hold("still", 30), room.hold("still", 20):
        with pytest.raises(TransientDeliveryError):
            async with room.hold("still", 1):
                raise AssertionError("more than half")
        async with room.hold("slow", 25):
            with pytest.raises(TransientDeliveryError):
                async with room.hold("slow", 1):
                    raise AssertionError("the last quarter")
            async with room.hold("well", 999):
                pass
            async with room.hold("well", 10), room.hold("fine", 15):
                with pytest.raises(TransientDeliveryError):
                    async with room.hold("one more", 1):
                        raise AssertionError("full")


async def test_a_large_one_is_not_overtaken_for_ever() -> None:
    room, order, holds = FileRoom(10, 30), list[str](), anyio.Event()

    async def send(name: str, size: int) -> None:
        async with room.hold("me", size):
            order.append(name)

    async def holder() -> None:
        async with room.hold("me", 5):
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
    async with room.hold("me", 10):
        with pytest.raises(TransientDeliveryError) as refused:
            async with room.hold("me", 1):
                raise AssertionError("there is no room")
        assert (refused.value.in_doubt, refused.value.retry_after_s) == (False, 0.01)
    async with room.hold("me", 10):  # nothing was lost
        pass
    with anyio.move_on_after(0) as cut:
        async with room.hold("me", 10):
            await anyio.sleep_forever()
    assert cut.cancelled_caught
    with anyio.fail_after(30):
        async with FileRoom(10, 30).hold("me", 10), room.hold("me", 0):
            pass
