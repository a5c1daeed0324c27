"""Strangers, approvers and revoked users, through a whole daemon: who decides is checked, and once is once."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daemon.channels.protocol import PlaceMessage, Routed
from daemon.config.routes import RouteTable
from daemon.core.pairing import ASK_FOR_MS, MAX_WAITING, REFUSED_FOR_MS
from daemon.core.people_verbs import AddUser, BindUser, DecidePairing, RestoreUser, RevokeUser, SetRole
from daemon.core.routing import PlaceEvent
from daemon.core.verb import HostVerb
from daemon.store import people
from daemon.store.registry import Registry
from schema.errors import ClawbusError
from schema.rows import Address
from tests.support.bus_kit import AGENT, BusKit

pytestmark = pytest.mark.anyio


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    made = BusKit(tmp_path / "data")
    routes = (RouteTable(name="r", channel="fake", place="*", agent=AGENT, unknown="ask"),)
    made.config = made.config.model_copy(update={"routes": routes})
    return made


async def say(kit: BusKit, sender: str, **values: Any) -> Routed:
    event = PlaceEvent("fake", "room", f"{sender}{kit.clock.now_ms()}", "hello", sender=sender, **values)
    kit.clock.advance(0.001)
    return await kit.bus.router.event(PlaceMessage(event, {"text": "hello"}, Address("fake", "room")))


async def ask(kit: BusKit, sender: str, **values: Any) -> str:
    (refusal,) = (await say(kit, sender, **values)).refusals
    assert refusal.reason == "APPROVAL_PENDING"
    assert refusal.code is not None
    return refusal.code


async def outcome(kit: BusKit, verb: HostVerb) -> str:
    try:
        await kit.operations.execute(verb)
    except ClawbusError as error:
        return error.code
    return "done"


async def reason(kit: BusKit, sender: str, **values: Any) -> str:
    routed = await say(kit, sender, **values)
    return routed.refusals[0].reason.value if routed.refusals else "reached"


async def test_a_stranger_is_let_in_where_he_asked_and_nowhere_else(kit: BusKit) -> None:
    async with kit.running():
        code = await ask(kit, "tom!", direct=True)
        assert await ask(kit, "tom!", direct=True) == code
    async with kit.running():
        assert await ask(kit, "tom!", direct=True) == code  # after a restart too
        done = await kit.operations.execute(DecidePairing(code=code.lower(), approve=True))
        assert (done["name"], done["scope"]) == ("tom", "direct")
        assert await reason(kit, "tom!", direct=True) == "reached"
        assert await reason(kit, "tom!") == "ROLE_TOO_LOW"
        assert await outcome(kit, DecidePairing(code=code, approve=True)) == "PAIRING_CLOSED"


async def test_a_refused_stranger_is_asked_about_again_after_a_week(kit: BusKit) -> None:
    async with kit.running():
        code = await ask(kit, "tom")
        await kit.operations.execute(DecidePairing(code=code, approve=False))
        assert await reason(kit, "tom") == "UNKNOWN_SENDER"
        kit.clock.advance(REFUSED_FOR_MS / 1000)
        assert await ask(kit, "tom") != code


async def test_a_code_expires(kit: BusKit) -> None:
    async with kit.running():
        code = await ask(kit, "tom")
        kit.clock.advance(ASK_FOR_MS / 1000)
        assert await outcome(kit, DecidePairing(code=code, approve=True)) == "PAIRING_CLOSED"
        assert await ask(kit, "tom") != code


async def test_a_clock_that_is_a_year_ahead_for_a_moment_loses_no_request(kit: BusKit) -> None:
    async with kit.running():
        code, year_s = await ask(kit, "tom"), 366 * 86_400
        kit.clock.jump(year_s)
        await ask(kit, "eve")
        kit.clock.jump(-year_s)
        assert await outcome(kit, DecidePairing(by="root", code=code, approve=True)) == "done"
        assert await reason(kit, "tom") == "reached"


async def test_the_approver_is_checked_when_he_decides(kit: BusKit) -> None:
    async with kit.running():
        for name, role in (("ann", "member"), ("max", "admin"), ("bob", "admin")):
            await kit.operations.execute(AddUser(name=name))
            await kit.operations.execute(SetRole(name=name, role=role, agent="other" if name == "bob" else AGENT))
        code = await ask(kit, "tom")
        for approver in ("ann", "bob", "nobody"):
            assert await outcome(kit, DecidePairing(code=code, approve=True, approver=approver)) == "NOT_AN_APPROVER"
        await kit.operations.execute(RevokeUser(name="max"))
        assert await outcome(kit, DecidePairing(code=code, approve=True, approver="max")) == "NOT_AN_APPROVER"
        await kit.operations.execute(RestoreUser(name="max"))
        assert await outcome(kit, DecidePairing(code=code, approve=True, approver="max")) == "done"


async def test_a_revoked_user_stays_out_under_every_id(kit: BusKit) -> None:
    async with kit.running():
        await kit.operations.execute(AddUser(name="eve"))
        for sender in ("e1", "e2"):
            await kit.operations.execute(BindUser(name="eve", channel="fake", sender=sender))
        await kit.operations.execute(SetRole(name="eve", role="owner"))
        assert await reason(kit, "e1") == "reached"
        await kit.operations.execute(RevokeUser(name="eve"))
        assert [await reason(kit, sender) for sender in ("e1", "e2")] == ["SENDER_REVOKED"] * 2
        assert await outcome(kit, AddUser(name="eve")) == "USER_REFUSED"
        await kit.operations.execute(AddUser(name="adam"))
        assert await outcome(kit, BindUser(name="adam", channel="fake", sender="e1")) == "USER_REFUSED"


async def test_a_request_of_somebody_who_was_revoked_meanwhile_is_not_called_approved(kit: BusKit) -> None:
    async with kit.running():
        here, direct = await ask(kit, "eve"), await ask(kit, "eve", direct=True)
        await kit.operations.execute(DecidePairing(code=direct, approve=True))
        await kit.operations.execute(RevokeUser(name="eve"))
        assert await outcome(kit, DecidePairing(code=here, approve=True)) == "USER_REFUSED"
        assert await outcome(kit, DecidePairing(code=here, approve=True, user="eve")) == "USER_REFUSED"
        await kit.operations.execute(RestoreUser(name="eve"))
        assert await outcome(kit, DecidePairing(code=here, approve=True)) == "done"
        assert await reason(kit, "eve") == "reached"


async def test_strangers_cannot_fill_the_table(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_WAITING <= 1_000
    monkeypatch.setattr("daemon.store.people.MAX_WAITING", 3)
    async with kit.running():
        for number in range(3):
            await ask(kit, f"tom{number}")
        assert await reason(kit, "one too many") == "UNKNOWN_SENDER"
        registry, now = Registry(kit.root / "central.db"), kit.clock.now_ms()
        [first, *_] = registry.with_file(lambda db: people.open_pairings(db, now))
        elsewhere = replace(first, code="ELSEWHERE", channel="another")
        assert registry.with_file(partial(people.ask, wanted=elsewhere)) == elsewhere, (
            "its strangers do not wait for these"
        )


class Crash(BaseException):
    """The daemon ends here."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["ask", "approve"])
async def test_a_crash_around_a_step_leaves_all_of_it_or_nothing(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool
) -> None:
    with_file = Registry.with_file
    armed = False

    def crashing(self: Registry, work: Any) -> Any:
        nonlocal armed
        if armed and not after:
            armed = False
            raise Crash
        done = with_file(self, work)
        if armed:
            armed = False
            raise Crash
        return done

    monkeypatch.setattr(Registry, "with_file", crashing)
    async with kit.running():
        code = await ask(kit, "tom") if step == "approve" else ""
        armed = True
        with pytest.raises(Crash):
            await (kit.operations.execute(DecidePairing(code=code, approve=True)) if code else say(kit, "tom"))
        kit.crash()
    async with kit.running():
        if step == "approve" and after:
            assert await reason(kit, "tom") == "reached"
            return
        again = await ask(kit, "tom")
        assert await ask(kit, "tom") == again
        assert not code or again == code
        assert await outcome(kit, DecidePairing(code=again, approve=True)) == "done"
        assert await reason(kit, "tom") == "reached"
