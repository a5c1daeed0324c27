"""Commands of people through a whole daemon: answered by the bus, by role, once, and never read by the agent."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from daemon.channels.protocol import PlaceMessage, Routed
from daemon.config.agents import Agent
from daemon.config.routes import RouteTable
from daemon.config.user_commands import CommandTable
from daemon.core.errors import UserRefusedError
from daemon.core.people_verbs import AddUser, BindUser, SetRole
from daemon.core.routing import PlaceEvent
from daemon.core.session_verbs import DeleteSession
from daemon.engine.sessions import Sessions
from daemon.maintenance import message_repair
from daemon.store import conversations
from schema.errors import StorageError
from schema.handles import Writer
from schema.rows import Address
from tests.support.bus_kit import AGENT, BusKit, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    made = BusKit(tmp_path / "data")
    routes = (RouteTable(name="r", channel="fake", place="*", agent=AGENT, unknown="admit"),
              RouteTable(name="s", channel="fake", place="asking", agent="other", unknown="ask"))  # fmt: skip
    commands = {"digest": CommandTable(text="Sum up {arguments}", senders="anyone")}
    made.config = made.config.model_copy(update={"routes": routes, "commands": commands})
    return made


async def people(kit: BusKit) -> None:
    for name, role in (("ann", "member"), ("max", "admin")):
        await kit.operations.execute(AddUser(name=name))
        await kit.operations.execute(BindUser(name=name, channel="fake", sender=name))
        await kit.operations.execute(SetRole(name=name, role=role))


async def write(kit: BusKit, text: str, sender: str = "ann", identity: str = "", place: str = "room") -> Routed:
    kit.clock.advance(0.001)
    event = PlaceEvent("fake", place, identity or str(kit.clock.now_ms()), text, sender=sender)
    return await kit.bus.router.event(PlaceMessage(event, {"text": text}, Address("fake", place)))


async def answers(kit: BusKit, count: int) -> list[str]:
    """The texts that people got, once there are so many."""
    await until(lambda: len(kit.fake.sent) >= count)
    await kit.settle()
    return [json.loads(one.content)["text"] for one in kit.fake.sent]


async def test_a_role_for_an_agent_that_is_not_there_points_to_the_agents(kit: BusKit) -> None:
    async with kit.running():
        await people(kit)
        with pytest.raises(UserRefusedError) as refused:
            await kit.operations.execute(SetRole(name="ann", role="member", agent="nope"))
    assert "clawbus agent list" in refused.value.hint


async def test_a_command_is_answered_by_the_bus_once(kit: BusKit) -> None:
    async with kit.running():
        await people(kit)
        first = await write(kit, "/status", identity="1")
        again = await write(kit, "/status", identity="1")
        assert [one.duplicate for one in (*first.accepted, *again.accepted)] == [False, True]
        assert await answers(kit, 1) == ["The agent is resting."]
        (row,) = await kit.inbound("SELECT status, trigger FROM messages_in", session="fake:room")
        assert (row["status"], row["trigger"]) == ("completed", 0)
        history = await kit.inbound("SELECT event FROM message_history ORDER BY id", session="fake:room")
        assert [one["event"] for one in history] == ["accepted", "completed"]
        assert kit.slot("fake:room") is None


async def test_the_status_says_that_the_limit_of_the_day_is_reached(kit: BusKit) -> None:
    kit.config.agents[AGENT] = Agent(turns_per_day=0)
    async with kit.running():
        await people(kit)
        await write(kit, "/status")
        assert await answers(kit, 1) == ["The limit for today is reached. The agent is resting."]


@pytest.mark.parametrize("otherwise", ["context", "ignore"])
async def test_a_command_needs_no_mention(kit: BusKit, otherwise: Literal["context", "ignore"]) -> None:
    route = RouteTable(name="m", channel="fake", place="room", agent=AGENT, engage="mention", otherwise=otherwise)
    kit.config = kit.config.model_copy(update={"routes": (route,)})
    async with kit.running():
        await people(kit)
        await write(kit, "/status")
        assert await answers(kit, 1) == ["The agent is resting."]
        unknown = await write(kit, "/etc/passwd is what I mean")
        assert len(unknown.accepted) == (1 if otherwise == "context" else 0)


async def test_a_role_is_needed(kit: BusKit) -> None:
    async with kit.running():
        await people(kit)
        await write(kit, "/new", sender="stranger")
        await write(kit, "/approve X", sender="ann")
        assert await answers(kit, 2) == ["/new needs another role here.", "/approve needs another role here."]


async def test_stop_ends_what_the_agent_works_on(kit: BusKit) -> None:
    async with kit.running():
        await people(kit)
        (accepted,) = (await write(kit, "a long job")).accepted
        await kit.started("fake:room")
        kit.agent("fake:room").claim()
        kit.bus.sweeper.poke((await kit.session("fake:room")).key)
        await kit.settle()
        await write(kit, "/stop")
        assert "Stopped." in await answers(kit, 2)  # beside the notice about the message itself
        assert (await kit.message(accepted.message_id, "fake:room"))["status"] == "cancelled"
        await write(kit, "/stop")
        assert (await answers(kit, 3))[-1] == "The agent is not working on anything."


async def test_a_stop_that_cannot_be_stored_now_is_handed_in_again(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> object:
        raise StorageError("/var/lib/clawbus: the disk is full")

    async with kit.running():
        await people(kit)
        (accepted,) = (await write(kit, "a long job")).accepted
        with monkeypatch.context() as patched:
            patched.setattr(message_repair, "cancel", full)
            with pytest.raises(StorageError):
                await write(kit, "/stop", identity="x")
        await write(kit, "/stop", identity="x")
        assert "Stopped." in await answers(kit, 2)
        assert (await kit.message(accepted.message_id, "fake:room"))["status"] == "cancelled"


async def test_a_stop_says_what_it_left(kit: BusKit) -> None:
    async with kit.running():
        await people(kit)
        for _ in range(103):
            await write(kit, "a long job")
        await write(kit, "/stop")
        assert "Stopped 100 messages; 3 more wait. Write /stop again to stop them too." in await answers(kit, 101)


async def test_new_begins_another_session_once_for_each_event(kit: BusKit) -> None:
    async with kit.running():
        await people(kit)
        await write(kit, "hello")
        for _ in range(2):
            await write(kit, "/new", identity="n1")
        assert (await write(kit, "again")).accepted[0].session == "fake:room~2"
    async with kit.running():
        await write(kit, "/new", identity="n1")
        assert (await write(kit, "and again")).accepted[0].session == "fake:room~2"
        await write(kit, "/new", identity="n2")
        assert (await write(kit, "third")).accepted[0].session == "fake:room~3"


class Crash(BaseException):
    """The daemon ends here."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_between_effect_and_answer_loses_and_doubles_nothing(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    change = Sessions.change

    async def crashing(self: Sessions, session: Any, work: Any) -> Any:
        if after:
            await change(self, session, work)
        raise Crash

    async with kit.running():
        await people(kit)
        monkeypatch.setattr(Sessions, "change", crashing)
        with pytest.raises(Crash):
            await write(kit, "/new", identity="n1")
        monkeypatch.undo()
        kit.crash()
    async with kit.running():
        await write(kit, "/new", identity="n1")
        assert (await write(kit, "hello")).accepted[0].session == "fake:room~2"
        assert await answers(kit, 1) == ["A new conversation begins with your next message."]


async def test_an_admin_lets_a_stranger_in_from_the_chat(kit: BusKit) -> None:
    async with kit.running():
        await people(kit)
        code = next(one.code for one in (await write(kit, "hi", "tom", place="asking")).refusals if one.code)
        await write(kit, f"/approve {code}", sender="max")
        await write(kit, f"/approve {code}", sender="max")
        told = await answers(kit, 2)
        assert "tom is now tom." in told
        assert any("was approved by max" in one for one in told)
        assert "other" in [one.agent for one in (await write(kit, "hi", "tom", place="asking")).accepted]


async def test_an_approval_that_cannot_be_stored_now_is_handed_in_again(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> object:
        raise StorageError("/var/lib/clawbus/central.db: the disk is full")

    async with kit.running():
        await people(kit)
        code = next(one.code for one in (await write(kit, "hi", "tom", place="asking")).refusals if one.code)
        await write(kit, "/status", sender="max")
        with monkeypatch.context() as patched:
            patched.setattr(Sessions, "central", full)
            with pytest.raises(StorageError):
                await write(kit, f"/approve {code}", sender="max", identity="a")
        await write(kit, f"/approve {code}", sender="max", identity="a")
        assert await answers(kit, 2) == ["The agent is resting.", "tom is now tom."]


async def test_an_operator_s_command_becomes_a_message(kit: BusKit) -> None:
    async with kit.running():
        (accepted,) = (await write(kit, "/digest today", sender="stranger")).accepted
        row = await kit.message(accepted.message_id, "fake:room")
        assert json.loads(row["content"])["text"] == "Sum up today"
        (accepted,) = (await write(kit, "/usr/bin is full", sender="stranger")).accepted
        assert (await kit.message(accepted.message_id, "fake:room"))["trigger"] == 1


async def test_what_came_before_a_new_beginning_and_is_handed_in_again_is_done_once(kit: BusKit) -> None:
    """A platform that got no answer repeats an event minutes later, and its sender may have begun anew meanwhile."""
    async with kit.running():
        await people(kit)
        await write(kit, "pay the bill", identity="pay")
        await write(kit, "/stop", identity="stop")
        await write(kit, "/new", identity="new")
        await write(kit, "write a poem", identity="poem")
        (again,) = (await write(kit, "pay the bill", identity="pay")).accepted
        assert (again.session, again.duplicate) == ("fake:room", True)
        (again,) = (await write(kit, "/stop", identity="stop")).accepted
        assert again.duplicate
        (again,) = (await write(kit, "/new", identity="new")).accepted
        assert again.duplicate
        rows = await kit.inbound("SELECT content, status FROM messages_in", session="fake:room~2")
        assert [(json.loads(row["content"])["text"], row["status"]) for row in rows] == [("write a poem", "pending")]
        await write(kit, "/new", identity="once more")
        (again,) = (await write(kit, "pay the bill", identity="pay")).accepted
        assert (again.session, again.duplicate) == ("fake:room", True)
        (fresh,) = (await write(kit, "and another", identity="fresh")).accepted
        assert fresh.session == "fake:room~3"


async def test_a_conversation_without_sessions_is_forgotten_in_time(kit: BusKit) -> None:
    async with kit.running() as bus:
        await people(kit)
        await write(kit, "/new")
        await write(kit, "hello")
        for name in ("fake:room", "fake:room~2"):
            assert await conversations_left(kit) == 1
            await kit.operations.execute(DeleteSession(AGENT, name, by="root", force=True))
            await bus.retention.prune()
        assert await conversations_left(kit) == 1, "an event from before it began may still come again"
        kit.clock.advance(31 * 86_400)
        await bus.retention.prune()
        assert await conversations_left(kit) == 0
        assert (await write(kit, "hello again")).accepted[0].session == "fake:room"
        await write(kit, "/new")
        assert (await write(kit, "anew")).accepted[0].session == "fake:room~2"


async def test_new_leads_to_no_older_conversation_after_the_registry_was_lost(kit: BusKit) -> None:
    async with kit.running():
        await people(kit)
        await write(kit, "/new")
        assert (await write(kit, "my secret is 7")).accepted[0].session == "fake:room~2"
        await kit.bus.sessions.central(lambda registry: registry.with_file(forget_conversations))
        await kit.bus.router.load()
        await write(kit, "/new")
        assert (await write(kit, "what is my secret?")).accepted[0].session == "fake:room~3"


def forget_conversations(db: Writer) -> None:
    """What a rebuilt central.db does not know."""
    with db.transaction():
        db.execute("DELETE FROM conversations")


async def conversations_left(kit: BusKit) -> int:
    return len(await kit.bus.sessions.central(lambda registry: registry.with_file(conversations.generations)))
