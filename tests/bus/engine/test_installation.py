"""A copied data folder beside its living original: it owns none of the original's containers, and does nothing to them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from daemon.config.policies import read_limits
from daemon.core.errors import DataFolderError, EngineChangedError, RuntimeUnavailableError
from daemon.core.session_key import SessionKey
from daemon.engine.installation import Start, renew, settle_install
from daemon.engine.supervisor.slots import Phase
from daemon.runtimes.engine_identity import EngineGuard
from daemon.runtimes.protocol import ContainerRuntime
from daemon.store.data_layout import Layout
from daemon.store.install import InstallFile
from daemon.store.registry import Registry
from tests.support.bus_kit import AGENT, BusKit, until
from tests.support.fake_runtime import FakeContainer, FakeHost, FakeRuntime

pytestmark = [pytest.mark.anyio]

KEY = SessionKey(AGENT, "main")


class Site:
    """An original with a working agent, and copies of its folder on the same machine."""

    def __init__(self, root: Path) -> None:
        self.kit = BusKit(root / "data")
        self.root = root
        self.host: FakeHost = self.kit.host

    async def work(self) -> FakeContainer:
        """One container has claimed m1; the daemon has ended since, and the container lives."""
        await self.start_install(self.kit.root)
        async with self.kit.running():
            await self.kit.send(message_id="m1")
            await self.kit.started()
            await until(lambda: (slot := self.kit.slot()) is not None and slot.phase is Phase.RUNNING)
            assert self.kit.agent().claim() is not None
            await self.kit.bus.sweeper.tick()
            container = self.host.of_session("main")
            registry = Registry(self.kit.root / "central.db")
            await until(lambda: registry.live_incarnations()[0].container_id is not None)
        return container

    def copy(self, name: str = "copy") -> Path:
        target = self.root / name
        shutil.copytree(self.kit.root, target)
        return target

    async def start_install(self, root: Path, host: FakeHost | None = None) -> str:
        """What a daemon's start does before anything else; the folder's id."""
        root.mkdir(exist_ok=True)
        (root / "sessions").mkdir(exist_ok=True)
        layout = Layout(root)
        start = Start(layout, Registry(layout.central_db), self.kit.clock, read_limits(self.kit.config))

        def build(kind: str, install_id: str) -> ContainerRuntime:
            assert kind == "fake"
            return FakeRuntime(install_id, host or self.host)

        return await settle_install(start, build)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def quarantine(root: Path) -> str | None:
    row = Registry(root / "central.db").session(KEY)
    assert row is not None
    return row.quarantine_reason


def attempts(root: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(root / "sessions" / AGENT / "main" / "in" / "inbound.db") as db:
        return db.execute(
            "SELECT m.id, m.status, m.tries, a.outcome FROM messages_in m LEFT JOIN attempts a ON a.message_id = m.id"
        ).fetchall()


async def test_a_copy_gets_an_id_of_its_own_and_the_original_keeps_its(site: Site) -> None:
    await site.work()
    original = Registry(site.kit.root / "central.db").install_id(0)
    copy = site.copy()
    fresh = await site.start_install(copy)
    assert fresh != original
    assert await site.start_install(copy) == fresh, "once"
    assert await site.start_install(site.kit.root) == original
    found = InstallFile(copy / "install.json").read()
    assert found is not None
    assert found.origin is not None
    assert (found.origin.install_id, found.origin.path) == (original, str(site.kit.root.resolve()))
    assert (copy / "install-id").read_text().strip() == fresh


async def test_a_copy_of_a_working_session_is_held_and_costs_no_try(site: Site) -> None:
    container = await site.work()
    copy = site.copy()
    await site.start_install(copy)
    assert "may be done twice" in (quarantine(copy) or "")
    assert attempts(copy) == [("m1", "pending", 0, "released")]
    assert Registry(copy / "central.db").live_incarnations() == []
    assert container.signals == []
    assert quarantine(site.kit.root) is None
    assert [row.id for row in Registry(site.kit.root / "central.db").live_incarnations()] == [
        container.spec.incarnation
    ]


async def test_what_has_ended_for_certain_is_worked_on_again(site: Site) -> None:
    container = await site.work()
    copy = site.copy()
    site.host.exit_now(container.id, 1)
    await site.start_install(copy)
    assert quarantine(copy) is None
    assert attempts(copy) == [("m1", "pending", 0, "released")]


async def test_another_engines_word_proves_no_end(site: Site) -> None:
    await site.work()
    copy = site.copy()
    elsewhere = FakeHost(site.kit.clock)
    elsewhere.identity = "engine-b"
    await site.start_install(copy, elsewhere)
    assert quarantine(copy) is not None


@pytest.mark.parametrize("lost", ["unanswered", "unrecorded"])
async def test_nobodys_word_proves_no_end_either(site: Site, lost: str) -> None:
    container = await site.work()
    copy = site.copy()
    site.host.exit_now(container.id, 1)
    if lost == "unanswered":
        site.host.available = False
    else:
        file = InstallFile(copy / "install.json")
        found = file.read()
        assert found is not None
        file.write(replace(found, engine=None))
    await site.start_install(copy)
    assert quarantine(copy) is not None


async def test_a_session_with_nothing_in_hand_is_not_held(site: Site) -> None:
    await site.start_install(site.kit.root)
    async with site.kit.running() as bus:
        await bus.supervisor.wake(await bus.sessions.create(KEY))
        await site.kit.started()
        await until(lambda: (slot := site.kit.slot()) is not None and slot.phase is Phase.RUNNING)
        await site.kit.settle()
    copy = site.copy()
    await site.start_install(copy)
    assert quarantine(copy) is None


async def test_a_start_that_is_killed_in_between_begins_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.work()
    original = Registry(site.kit.root / "central.db").install_id(0)
    copy = site.copy()
    for name in ("begin_install", "write"):
        owner: Any = Registry if name == "begin_install" else InstallFile

        def dies(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies)
            with pytest.raises(KeyboardInterrupt):
                await site.start_install(copy)
    await site.start_install(copy)
    assert "may be done twice" in (quarantine(copy) or "")
    assert attempts(copy) == [("m1", "pending", 0, "released")]
    found = InstallFile(copy / "install.json").read()
    assert found is not None
    assert found.origin is not None
    assert found.origin.install_id == original


async def test_a_copy_that_shares_its_sessions_is_refused(site: Site, tmp_path: Path) -> None:
    await site.start_install(site.kit.root)
    shared = tmp_path / "disk"
    (site.kit.root / "sessions").rename(shared)
    (site.kit.root / "sessions").symlink_to(shared)
    await site.start_install(site.kit.root)
    copy = tmp_path / "copy"
    shutil.copytree(site.kit.root, copy, symlinks=True)
    with pytest.raises(DataFolderError, match="also the sessions folder of the installation"):
        await site.start_install(copy)


async def in_the_place_of_the_original(site: Site) -> Path:
    """The original is moved aside, and its copy lies where its containers mount their folders from."""
    copy = site.copy()
    site.kit.root.rename(site.root / "before")
    return copy.rename(site.kit.root)


@pytest.mark.parametrize("on_record", [True, False])
async def test_a_copy_in_the_originals_place_is_refused_while_its_containers_live(site: Site, on_record: bool) -> None:
    container = await site.work()
    root = await in_the_place_of_the_original(site)
    if not on_record:  # a backup that is older than the container
        with sqlite3.connect(root / "central.db") as db:
            db.execute("DELETE FROM incarnations")
    original = (root / "install-id").read_text()
    container.spec = replace(container.spec, install_id=original.strip())
    with pytest.raises(DataFolderError, match=container.id) as refused:
        await site.start_install(root)
    assert f"docker rm -f {container.id}" in (refused.value.hint or "")
    assert (root / "install-id").read_text() == original, "nothing has changed yet"
    assert quarantine(root) is None
    assert container.signals == []
    site.host.exit_now(container.id, 1)
    assert await site.start_install(root) != original.strip()
    assert attempts(root) == [("m1", "pending", 0, "released" if on_record else None)]


async def test_a_container_whose_id_is_not_on_record_is_named_by_its_label(site: Site) -> None:
    container = await site.work()
    root = await in_the_place_of_the_original(site)
    with sqlite3.connect(root / "central.db") as db:
        db.execute("UPDATE incarnations SET container_id = NULL")
    with pytest.raises(DataFolderError) as refused:
        await site.start_install(root)
    found = f"docker ps -aq --filter label=clawbus.incarnation={container.spec.incarnation}"
    assert f"docker rm -f $({found})" in (refused.value.hint or "")


async def test_a_copy_in_the_originals_place_waits_until_the_engine_answers(site: Site) -> None:
    container = await site.work()
    root = await in_the_place_of_the_original(site)
    site.host.exit_now(container.id, 1)
    site.host.available = False
    with pytest.raises(RuntimeUnavailableError, match="it is unknown whether") as refused:
        await site.start_install(root)
    assert "clawbus install renew" in (refused.value.hint or "")
    site.host.available = True
    await site.start_install(root)
    assert quarantine(root) is None
    assert attempts(root) == [("m1", "pending", 0, "released")]


async def test_a_folder_restored_on_another_machine_starts_at_the_originals_path(site: Site) -> None:
    await site.work()
    root = await in_the_place_of_the_original(site)
    elsewhere = FakeHost(site.kit.clock)
    elsewhere.identity = "engine-b"
    await site.start_install(root, elsewhere)
    assert quarantine(root) is not None


async def test_a_moved_folder_stays_the_installation(site: Site, tmp_path: Path) -> None:
    before = await site.start_install(site.kit.root)
    moved = site.kit.root.rename(tmp_path / "moved")
    assert await site.start_install(moved) == before
    found = InstallFile(moved / "install.json").read()
    assert found is not None
    assert found.place is not None
    assert found.place.path == str(moved.resolve())


async def test_an_operator_may_give_up_an_engine_that_is_gone_for_good(site: Site) -> None:
    await site.work()
    before = await site.start_install(site.kit.root)
    layout = Layout(site.kit.root)
    assert renew(layout) is not None
    elsewhere = FakeHost(site.kit.clock)
    elsewhere.identity = "engine-b"
    assert await site.start_install(site.kit.root, elsewhere) != before
    assert quarantine(site.kit.root) is None
    assert attempts(site.kit.root) == [("m1", "pending", 0, "released")]
    assert Registry(layout.central_db).live_incarnations() == []


# --- the engine


def guard(root: Path, runtime: FakeRuntime) -> EngineGuard:
    return EngineGuard(InstallFile(root / "install.json"), "01testinstall", runtime)


async def test_another_engine_is_refused_while_containers_live_on_record(site: Site) -> None:
    await site.work()
    live = Registry(site.kit.root / "central.db").live_incarnations()
    elsewhere = FakeHost(site.kit.clock)
    elsewhere.identity = "engine-b"
    runtime = FakeRuntime("01testinstall", elsewhere)
    with pytest.raises(EngineChangedError, match=r"engine-b.*engine-a"):
        await guard(site.kit.root, runtime).check(live)
    with pytest.raises(EngineChangedError):
        await runtime.list_running()
    runtime.host = site.host
    await guard(site.kit.root, runtime).check(live)
    assert len(await runtime.list_running()) == 1


async def test_another_engine_is_taken_when_nothing_lives_on_record(site: Site) -> None:
    await site.start_install(site.kit.root)
    elsewhere = FakeHost(site.kit.clock)
    runtime = FakeRuntime("01testinstall", elsewhere)
    for identity in ("engine-a", "engine-b"):
        elsewhere.identity = identity
        await guard(site.kit.root, runtime).check([])
        assert await runtime.list_running() == []
    engine = InstallFile(site.kit.root / "install.json").engine()
    assert engine is not None
    assert engine.id == "engine-b"


async def test_an_engine_that_has_the_container_is_the_one_whatever_it_calls_itself(site: Site) -> None:
    await site.work()
    site.host.identity = "engine-a-after-an-upgrade"
    runtime = FakeRuntime("01testinstall", site.host)
    await guard(site.kit.root, runtime).check(Registry(site.kit.root / "central.db").live_incarnations())
    assert len(await runtime.list_running()) == 1


def swap(runtime: FakeRuntime, host: FakeHost) -> Callable[[], None]:
    """Another engine behind the same address; returns what brings the first one back."""
    before = runtime.host
    runtime.host = host
    before.notify()

    def back() -> None:
        runtime.host = before
        host.notify()

    return back


async def test_a_running_daemon_believes_no_other_engine_and_goes_on_with_its_own(site: Site) -> None:
    kit = site.kit
    await site.start_install(kit.root)
    async with kit.running() as bus:
        await kit.send(message_id="m1")
        await kit.started()
        await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
        assert kit.agent().claim() is not None
        container = site.host.of_session("main")
        elsewhere = FakeHost(kit.clock)
        elsewhere.identity = "engine-b"
        back = swap(kit.runtime, elsewhere)
        await until(lambda: bus.supervisor.unavailable is not None)
        assert "engine-b" in str(bus.problems.degraded())
        await kit.send("second")
        await bus.sweeper.tick()
        with anyio.move_on_after(0.2):
            await kit.gone()
        slot = kit.slot()
        assert slot is not None
        assert slot.container_id == container.id
        assert elsewhere.containers == {}, "nothing was started there"
        assert (await kit.message("m1"))["tries"] == 0
        back()
        await until(lambda: bus.supervisor.unavailable is None)
        await kit.started("second")
        assert container.exit is None
        assert bus.problems.degraded() == []


async def test_a_session_with_a_chats_name_is_held_too(site: Site) -> None:
    name = "!room:server"
    await site.start_install(site.kit.root)
    async with site.kit.running():
        await site.kit.send(name, message_id="m1")
        await site.kit.started(name)
        await until(lambda: (slot := site.kit.slot(name)) is not None and slot.phase is Phase.RUNNING)
        assert site.kit.agent(name).claim() is not None
        await site.kit.bus.sweeper.tick()
    copy = site.copy()
    await site.start_install(copy)
    row = Registry(copy / "central.db").session(SessionKey(AGENT, name))
    assert row is not None
    assert "may be done twice" in (row.quarantine_reason or "")
