"""Events through a whole daemon: stored once for each agent, whatever crashes in between, and refused with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.channels.protocol import Incoming, PlaceMessage, Routed
from daemon.config.routes import RouteTable
from daemon.core.agent_verbs import AddRoute, RemoveRoute
from daemon.core.attachments import Attachment
from daemon.core.routing import PlaceEvent
from daemon.engine.ingress import Ingress
from daemon.store import routes as store
from daemon.store.registry import Registry
from schema.errors import ClawbusError, StorageError
from schema.rows import Address
from tests.support.bus_kit import AGENT, BusKit

pytestmark = pytest.mark.anyio

ROUTES = (
    RouteTable(name="all", channel="fake", place="room", agent=AGENT, senders="anyone", engage="mention-sticky"),
    RouteTable(name="too", channel="fake", place="room", agent="other", senders="anyone"),
)


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    made = BusKit(tmp_path / "data")
    made.config = made.config.model_copy(update={"routes": ROUTES})
    return made


async def happen(kit: BusKit, identity: str = "1", **values: Any) -> Routed:
    event = PlaceEvent("fake", "room", identity, "hello", **values)
    return await kit.bus.router.event(PlaceMessage(event, {"text": "hello"}, Address("fake", "room", event.thread)))


def reached(routed: Routed) -> list[tuple[str, str, bool]]:
    return [(one.agent, one.session, one.duplicate) for one in routed.accepted]


async def test_an_event_is_stored_once_for_each_agent(kit: BusKit) -> None:
    async with kit.running():
        first = await happen(kit, mention=True, thread="t")
        again = await happen(kit, mention=True, thread="t")
        (row,) = await kit.inbound("SELECT * FROM messages_in", session="fake:room:t")
        (history,) = await kit.inbound(
            "SELECT detail FROM message_history WHERE event = 'accepted'", session="fake:room:t"
        )
    assert reached(first) == [(AGENT, "fake:room:t", False), ("other", "fake:room:t", False)]
    assert [one.duplicate for one in again.accepted] == [True, True]
    assert (row["platform_id"], row["thread_id"]) == ("room", "t")
    assert json.loads(history["detail"])["route"] == "all"


async def test_a_text_with_a_file_is_a_message_and_answers_no_question(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer to a question could not keep the file."""
    taken: list[Incoming] = []
    real = Ingress.accept

    async def accept(self: Ingress, incoming: Incoming) -> Any:
        taken.append(incoming)
        return await real(self, incoming)

    monkeypatch.setattr(Ingress, "accept", accept)
    async with kit.running():
        for number, files in enumerate(((), (Attachment("a.txt", b"1"),))):
            event = PlaceEvent("fake", "room", str(number), "yes", mention=True)
            await kit.bus.router.event(PlaceMessage(event, {"text": "yes"}, Address("fake", "room"), files=files))
    assert [one.plain for one in taken] == ["yes", "yes", None, None]


async def test_what_follows_a_mention_reaches_the_agent_after_a_restart_too(kit: BusKit) -> None:
    async with kit.running():
        assert len((await happen(kit, "1", thread="t")).accepted) == 1
        await happen(kit, "2", mention=True, thread="t")
    async with kit.running():
        assert len((await happen(kit, "3", thread="t")).accepted) == 2
        assert len((await happen(kit, "4", thread="u")).accepted) == 1


async def test_a_refusal_is_counted_where_an_operator_finds_it(kit: BusKit) -> None:
    async with kit.running():
        for number in range(3):
            await happen(kit, str(number))
        await kit.bus.router.flush()
        rows = await kit.bus.sessions.central(
            lambda registry: registry.with_file(lambda db: list(store.refused_events(db, 10)))
        )
    assert [(row["agent"], row["route"], row["reason"], row["times"]) for row in rows] == [
        (AGENT, "all", "NOT_ENGAGED", 3)
    ]


async def test_the_table_of_refusals_is_bounded(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_REFUSED", 5)
    async with kit.running():
        for number in range(12):
            kit.clock.advance(1)
            await kit.bus.router.event(
                PlaceMessage(PlaceEvent("fake", f"room {number}", "1"), {}, Address("fake", f"room {number}"))
            )
            await kit.bus.router.flush()
        rows = await kit.bus.sessions.central(
            lambda registry: registry.with_file(lambda db: list(store.refused_events(db, 100)))
        )
    assert len(rows) <= 6
    assert rows[0]["place"] == "room 11"


async def test_a_route_by_command_counts_at_once_and_after_a_restart(kit: BusKit) -> None:
    keys = {
        "name": "third",
        "channel": "fake",
        "place": "room",
        "agent": "third",
        "senders": "anyone",
        "session": "main",
    }
    async with kit.running():
        await kit.operations.execute(AddRoute(keys=keys))
        assert ("third", "main", False) in reached(await happen(kit))
    async with kit.running():
        assert ("third", "main", True) in reached(await happen(kit))
        await kit.operations.execute(RemoveRoute(name="third"))
        assert "third" not in [one.agent for one in (await happen(kit, "2")).accepted]


class Crash(BaseException):
    """The daemon ends here."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", ["mentioned", "first", "second"])
async def test_a_crash_at_a_durable_step_loses_and_doubles_nothing(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch, point: str, *, after: bool
) -> None:
    """The platform hands the event in again until it is acknowledged, as it does to a daemon that was killed."""
    calls: list[str] = []

    def crash_at(name: str) -> None:
        calls.append(name)
        if name == point:
            raise Crash

    with_file, accept = Registry.with_file, Ingress.accept

    def central(self: Registry, work: Any) -> Any:
        name = "mentioned" if "note_mentioned" in repr(work) and "mentioned" not in calls else ""
        if name and not after:
            crash_at(name)
        done = with_file(self, work)
        if name and after:
            crash_at(name)
        return done

    async def ingress(self: Ingress, incoming: Any) -> Any:
        name = {0: "first", 1: "second"}.get(sum(one in ("first", "second") for one in calls), "")
        if name and not after:
            crash_at(name)
        done = await accept(self, incoming)
        if name and after:
            crash_at(name)
        return done

    monkeypatch.setattr(Registry, "with_file", central)
    monkeypatch.setattr(Ingress, "accept", ingress)
    async with kit.running():
        with pytest.raises(Crash):
            await happen(kit, mention=True, thread="t")
        kit.crash()
    async with kit.running():
        assert sorted(one.agent for one in (await happen(kit, mention=True, thread="t")).accepted) == [AGENT, "other"]
        for agent in (AGENT, "other"):
            assert len(await kit.inbound("SELECT 1 FROM messages_in", session="fake:room:t", agent=agent)) == 1
        assert len((await happen(kit, "2", thread="t")).accepted) == 2


async def test_one_agent_s_trouble_keeps_nothing_from_the_others(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    accept = Ingress.accept

    async def ingress(self: Ingress, incoming: Any) -> Any:
        if incoming.agent == AGENT:
            raise StorageError("no room.")
        return await accept(self, incoming)

    async with kit.running():
        monkeypatch.setattr(Ingress, "accept", ingress)
        with pytest.raises(ClawbusError, match="no room"):
            await happen(kit, mention=True)
        assert len(await kit.inbound("SELECT 1 FROM messages_in", session="fake:room", agent="other")) == 1


async def test_what_is_kept_of_strangers_and_mentions_has_an_end(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.engine.router.MAX_WAITING", 2)
    monkeypatch.setattr(store, "MAX_MENTIONED", 3)
    asks = RouteTable(name="asks", channel="fake", place="room", agent="third", unknown="ask")
    kit.config = kit.config.model_copy(update={"routes": (ROUTES[0], asks)})
    async with kit.running() as bus:
        for number in range(12):
            await happen(kit, str(number), mention=True, thread=f"t{number}", sender=f"stranger-{number}")
            kit.advance(25 * 3600)
        assert 0 < len(bus.router._pairings) <= 5
        await kit.settle()
        assert 0 < len(bus.router._mentioned) <= 7
        again = await happen(kit, "last", thread="t11", sender="x")
        assert [one.agent for one in again.accepted] == [AGENT], "the newest mentions count on"
