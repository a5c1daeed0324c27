"""What `session kill --all` does while no daemon runs, on a fake machine, and what the command says of it."""

from collections.abc import Callable
from dataclasses import replace

import anyio
import pytest
import typer

from daemon.cli.kill_all import outcome_of
from daemon.cli.session import kill
from daemon.config.models import Config
from daemon.core.errors import NotConfirmedError, RuntimeUnavailableError
from daemon.core.facts import Container
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import ResetSession
from daemon.engine.supervisor.slots import Phase
from daemon.inspect.containers import RuntimeSeen
from daemon.maintenance import offline
from daemon.maintenance.container_ends import KilledAgent
from daemon.store.dead_letters import Operator
from tests.support.bus_kit import AGENT, INSTALL, BusKit, until
from tests.support.fake_runtime import FakeRuntime

ADA = Operator("ada", "a test")


@pytest.fixture
async def kit(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> BusKit:
    """A folder whose daemon is gone and whose sessions `one` and `two` still have a container each."""
    kit = BusKit(tmp_path_factory.mktemp("data"))
    async with kit.running():
        for session in ("one", "two"):
            await kit.send(session)
        await until(lambda: [slot.phase for slot in kit.bus.supervisor.slots()] == [Phase.RUNNING] * 2)
        await kit.settle()
    assert [one.exit for one in kit.host.containers.values()] == [None, None]
    monkeypatch.setattr(offline, "build_runtime", lambda *_: FakeRuntime(INSTALL, kit.host))
    return kit


def listed(kit: BusKit) -> RuntimeSeen:
    return RuntimeSeen(
        tuple(
            Container(one.id, one.spec.agent, one.spec.session, one.spec.incarnation, one.started_at)
            for one in kit.host.containers.values()
            if one.exit is None
        )
    )


async def kill_all(kit: BusKit, look: Callable[[Config, str | None], RuntimeSeen] | None = None) -> list[KilledAgent]:
    """In a thread, as the command does it: the executor has its own event loop."""

    def work() -> list[KilledAgent]:
        with offline.offline_executor(
            kit.config, kit.clock, recover=True, look=look or (lambda *_: listed(kit))
        ) as executor:
            return executor.kill_all(ADA)

    return await anyio.to_thread.run_sync(work)


def by_session(killed: list[KilledAgent]) -> dict[str, tuple[int | None, type[Exception] | None]]:
    return {one.session: (one.exit_code, type(one.error) if one.error is not None else None) for one in killed}


@pytest.mark.anyio
async def test_every_container_is_killed_and_the_next_daemon_goes_on(kit: BusKit) -> None:
    assert by_session(await kill_all(kit)) == {"one": (137, None), "two": (137, None)}
    assert [one.signals for one in kit.host.containers.values()] == [["KILL"], ["KILL"]]
    async with kit.running():
        for session in ("one", "two"):
            row = await kit.row(session)
            assert row.quarantine_reason is None


@pytest.mark.anyio
async def test_what_a_dead_daemon_had_asked_for_and_began_after_the_listing_is_killed(kit: BusKit) -> None:
    looks = [RuntimeSeen(())]
    killed = await kill_all(kit, lambda *_: looks.pop() if looks else listed(kit))
    assert by_session(killed) == {"one": (137, None), "two": (137, None)}


@pytest.mark.anyio
async def test_no_session_is_reset_while_a_container_begins_that_a_dead_daemon_asked_for(kit: BusKit) -> None:
    looks = [RuntimeSeen(())]

    def work() -> None:
        with offline.offline_executor(
            kit.config, kit.clock, recover=True, look=lambda *_: looks.pop() if looks else listed(kit)
        ) as executor:
            executor.execute(ResetSession(AGENT, "one", discard=True))

    await anyio.to_thread.run_sync(work)
    assert {one.spec.session: one.signals for one in kit.host.containers.values()} == {"one": ["KILL"], "two": []}


@pytest.mark.anyio
async def test_one_that_does_not_end_keeps_no_other_alive(kit: BusKit) -> None:
    kit.host.unkillable.add("one")
    assert by_session(await kill_all(kit)) == {"one": (None, NotConfirmedError), "two": (137, None)}


@pytest.mark.anyio
async def test_one_that_is_restarted_by_others_is_not_called_killed(kit: BusKit) -> None:
    (first, _) = kit.host.containers.values()
    seen = RuntimeSeen(
        (Container(first.id, AGENT, first.spec.session, first.spec.incarnation, first.started_at),)
    )  # the listing before and after
    (killed,) = await kill_all(kit, lambda *_: seen)
    assert isinstance(killed.error, NotConfirmedError)
    assert "runs again" in str(killed.error)


@pytest.mark.anyio
async def test_a_container_of_a_session_that_is_gone_is_killed(kit: BusKit) -> None:
    container = kit.host.of_session("one")
    container.spec = replace(container.spec, session="nobody-knows")
    assert by_session(await kill_all(kit)) == {"nobody-knows": (137, None), "two": (137, None)}
    assert not (kit.root / "sessions" / AGENT / "nobody-knows").exists()


@pytest.mark.anyio
async def test_a_runtime_that_does_not_answer_is_not_taken_for_an_empty_one(kit: BusKit) -> None:
    with pytest.raises(RuntimeUnavailableError, match="whether agents run cannot be determined: it is away"):
        await kill_all(kit, lambda *_: RuntimeSeen(None, "it is away."))
    assert [one.exit for one in kit.host.containers.values()] == [None, None]


@pytest.mark.anyio
async def test_a_copy_of_a_folder_kills_none_of_the_original_s(kit: BusKit) -> None:
    seen = RuntimeSeen(None, "this data folder is a copy of another.", copied_from="/elsewhere")
    with pytest.raises(RuntimeUnavailableError, match="is a copy"):
        await kill_all(kit, lambda *_: seen)
    assert [one.exit for one in kit.host.containers.values()] == [None, None]


KEYS = (SessionKey("a", "one"), SessionKey("a", "two"))


def test_the_command_fails_and_names_each_agent_that_may_live() -> None:
    killed = [
        KilledAgent(*KEYS[0], "I1", error=NotConfirmedError("not confirmed.", hint="Do this.")),
        KilledAgent(*KEYS[1], "I2", exit_code=137),
    ]
    outcome = outcome_of(killed, "files")
    assert outcome.code == 1
    assert outcome.problem is not None
    assert (outcome.problem.code, outcome.problem.fix) == ("EXIT_NOT_CONFIRMED", "Do this.")
    assert "1 of 2 agents may still run: a/one." in outcome.problem.message
    assert outcome.result is not None
    assert (outcome.result["killed"], [one["killed"] for one in outcome.result["agents"]]) == (1, [False, True])
    assert outcome_of(killed[1:], "files").code == 0


@pytest.mark.parametrize(("agent", "every"), [(None, False), ("echo", True)])
def test_either_one_session_is_named_or_all(agent: str | None, every: bool) -> None:
    with pytest.raises(typer.BadParameter, match="--all"):
        kill(None, agent, every=every)  # pyright: ignore[reportArgumentType]
