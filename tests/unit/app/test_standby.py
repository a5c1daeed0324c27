"""The standby on a data folder that a command holds, and its probes, of which there is one at a time."""

import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import daemon.app.standby as module
from daemon.api.server import MAX_PATH_BYTES
from daemon.app import slots
from daemon.app.lease import Lease
from daemon.app.signals import SignalInbox
from daemon.app.standby import Standby
from daemon.config.models import Config
from daemon.core.clock import SystemClock
from daemon.core.errors import ConfigError, SocketPathError
from daemon.core.slot_steps import claim, cut_over, new_deploy, served, stopped
from daemon.core.slots import BLUE, GREEN, SlotState
from daemon.deploy.standby_client import StandbyClient, standby_socket
from daemon.deploy.state_file import read_state, state_path, write_state
from daemon.store.data_folder import DataFolder
from daemon.store.folder_lock import Holder
from daemon.store.registry import Registry
from daemon.store.workers import WorkerRow, register
from daemon.workers.source import Origin
from schema.errors import StorageError
from tests.support.mounts import small_disk

OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Config:
    return Config.model_validate(
        {
            "data_dir": str(tmp_path / "data"),
            "runtime": {"kind": "process"},
            "deploy": {"root": str(tmp_path / "opt"), "cutover_s": 0.01, "unready_s": 0.01},
        }
    )


def standby_of(config: Config, slot: str) -> Standby:
    return Standby(config, slot, Origin(Path("/"), None, ""), SignalInbox(), SystemClock())


def serving() -> SlotState:
    return claim(SlotState(), BLUE, OLD, 1, "boot")


def baking() -> SlotState:
    first = serving()
    moved = cut_over(SlotState(1, BLUE, OLD, new_deploy("D", first, NEW, 2, {}, no_rollback=False)), 3)
    return stopped(served(claim(moved, GREEN, NEW, 4, "boot"), 5))


@pytest.mark.parametrize("state", [serving(), baking()], ids=["it is to serve", "the baking daemon was stopped"])
@pytest.mark.parametrize("is_daemon", [False, True], ids=["a command", "a daemon"])
def test_a_command_on_the_files_is_waited_for_and_a_daemon_that_is_not_ready_is_ended(
    config: Config, monkeypatch: pytest.MonkeyPatch, state: SlotState, is_daemon: bool
) -> None:
    """A backup or a restore with the daemon down takes its time; a slot that is started meanwhile must not kill it."""
    ended: list[int] = []
    with DataFolder.open(config.data_dir, is_daemon=is_daemon):
        write_state(config.data_dir, state)
        standby = standby_of(config, BLUE)
        monkeypatch.setattr(standby.__class__, "_end_holder", lambda _, pid: ended.append(pid))
        monkeypatch.setattr(module, "_READY_LOOK_S", 0.0)
        deadline = SystemClock().monotonic() + (60.0 if is_daemon else 0.3)
        while not ended and SystemClock().monotonic() < deadline:
            assert standby._look_now() is None
    assert set(ended) == ({os.getpid()} if is_daemon else set())
    assert standby._look_now() == ("serve" if state.serving == BLUE else None)


def test_a_holder_that_does_not_say_what_it_is_is_a_daemon() -> None:
    """Earlier releases write none."""
    assert Holder(1, "now").is_daemon


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - a thread sets no event of the loop
        await anyio.sleep(0.01)


class FakeProbe:
    """A probe that runs until it is stopped."""

    running = 0
    most = 0

    def __init__(self, *_: Any) -> None:
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> dict[str, Any]:
        FakeProbe.running += 1
        FakeProbe.most = max(FakeProbe.most, FakeProbe.running)
        assert self._stopped.wait(60)
        FakeProbe.running -= 1
        return {"ok": False}


@pytest.mark.anyio
async def test_a_second_probe_stops_the_first_and_runs_alone(config: Config) -> None:
    """An aborted deploy leaves its probe behind, and both use one folder: the first would end what the second started."""
    standby = standby_of(config, GREEN)
    standby._one_probe = anyio.Lock()
    first, second = FakeProbe(), FakeProbe()
    done: list[object] = []

    async def probe(one: Any) -> None:
        done.append(await standby._probe_alone(one))

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(60):
            tasks.start_soon(probe, first)
            await until(lambda: FakeProbe.running > 0)
            tasks.start_soon(probe, second)
            await until(lambda: bool(done))
            standby._stop_probe()
    assert (len(done), FakeProbe.most) == (2, 1)


def test_an_operator_s_rollback_is_carried_out_where_the_new_daemon_is_gone(config: Config) -> None:
    """It was stopped in order, which is no breach, and does not start any more: nobody else would go back."""
    DataFolder.open(config.data_dir).close()
    write_state(config.data_dir, baking())
    standby = standby_of(config, BLUE)
    assert standby._look_now() is None
    with DataFolder.open(config.data_dir, is_daemon=True):
        assert not standby.ask_rollback("ann")["ok"]
    assert standby.ask_rollback("ann")["ok"]
    assert (standby._look_now(), standby.reason) == ("roll_back", "asked for by ann")
    lease = Lease(config.data_dir, BLUE, OLD, SystemClock(), 1.0, standby.reason)
    lease.take(0)
    state = read_state(config.data_dir)
    assert state.deploy is not None
    assert (state.serving, state.deploy.state, state.deploy.reason) == (BLUE, "rolled_back", "bake: asked for by ann")


def test_a_stop_and_a_start_in_the_bake_on_a_full_disk_are_no_breach(config: Config) -> None:
    """A full disk is not the release's fault: the old one took the folder back, and the healthy one was in its cooldown."""

    def take() -> None:
        Lease(config.data_dir, GREEN, NEW, SystemClock(), 1.0).take(0)

    with small_disk(config.data_dir, 1024) as disk:
        DataFolder.open(config.data_dir).close()
        write_state(config.data_dir, SlotState(1, BLUE, OLD))
        state = baking()
        assert state.deploy is not None
        write_state(config.data_dir, replace(state, deploy=replace(state.deploy, boot="", stopped=False)))
        take()
        before = read_state(config.data_dir)
        disk.fill()
        Lease(config.data_dir, GREEN, NEW, SystemClock(), 1.0).note_stop()
        held = standby_of(config, BLUE)
        assert held._look_now() is None
        held._watching.free_since = 1.0
        assert held._look_now() is None, "it was stopped on purpose"
        take()
        assert read_state(config.data_dir) == before
        disk.make_room()
        take()
        after = read_state(config.data_dir).deploy
        assert after is not None
        assert (after.state, "ended and was started again" in after.reason) == ("unhealthy", True), (
            "nobody asked for it"
        )


@pytest.mark.parametrize(("slot", "state"), [(GREEN, baking()), (BLUE, serving())], ids=["the new slot", "no deploy"])
def test_a_rollback_that_is_not_a_standby_s_is_refused(config: Config, slot: str, state: SlotState) -> None:
    DataFolder.open(config.data_dir).close()
    write_state(config.data_dir, state)
    standby = standby_of(config, slot)
    assert not standby.ask_rollback("ann")["ok"]


def test_a_state_that_cannot_be_read_is_said_once(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    DataFolder.open(config.data_dir).close()
    write_state(config.data_dir, baking())
    standby = standby_of(config, BLUE)
    standby._process = "p"
    state_path(config.data_dir).write_text("{")
    for _ in range(3):
        assert anyio.run(standby._look) is None
    assert capsys.readouterr().err.count("standby_blind") == 1


def test_where_the_record_is_gone_the_slot_that_served_last_goes_on(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other slot has an older release, as a rule. It serves where nobody waits in that one."""
    answers: list[dict[str, Any] | None] = [{}]
    monkeypatch.setattr(StandbyClient, "look", lambda _: answers[-1])
    with DataFolder.open(config.data_dir) as folder:
        worker = WorkerRow("w", "", OLD, "", GREEN, "host", 1, 1, 1)
        Registry(folder.central_db).with_file(lambda db: register(db, worker, frozenset()))
    blue, green = standby_of(config, BLUE), standby_of(config, GREEN)
    assert (blue._look_now(), green._look_now()) == (None, "serve")
    answers.append(None)
    assert blue._alone_since is not None
    blue._alone_since -= 1
    assert blue._look_now() == "serve"
    write_state(config.data_dir, serving())
    answers.append({})
    assert blue._look_now() == "serve", "it is recorded"


def test_a_host_that_cannot_read_the_links_now_ends_no_standby(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a deploy its end would count as the new release's own."""
    DataFolder.open(config.data_dir).close()
    standby = standby_of(config, BLUE)
    standby._process = "p"

    def no_descriptor(_: Standby) -> bool:
        raise StorageError("slots/blue cannot be read: Too many open files.")

    monkeypatch.setattr(Standby, "_is_relinked", no_descriptor)
    assert anyio.run(standby._look) is None
    assert "Too many open files" in capsys.readouterr().err


def test_whoever_takes_over_has_the_configuration_of_now(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standby may have waited for weeks, and the daemon that served has read its configuration again."""
    fresh = config.model_copy(update={"timezone": "Europe/Vienna"})
    taken: list[Config] = []
    monkeypatch.setattr(slots.main, "run", lambda one, *_: taken.append(one) or 0)
    monkeypatch.setattr(Standby, "run", serve_at_once)

    def broken() -> Config:
        raise ConfigError("unknown key")

    elsewhere = config.model_copy(update={"data_dir": config.data_dir / "other"})
    for reload in (lambda: fresh, broken, lambda: elsewhere, None):
        assert slots.run_slot(config, reload, SignalInbox(), Origin(Path("/"), None, ""), BLUE) == 0
    assert taken == [fresh, config, config, config]


async def serve_at_once(_: Standby) -> str:
    return "serve"


def test_a_slot_whose_standby_could_not_listen_is_refused_at_its_start(tmp_path: Path) -> None:
    data = tmp_path / "d".ljust(107 - len(os.fsencode(tmp_path)) - len("//control.sock") - 3, "d")
    config = Config.model_validate({"data_dir": str(data), "deploy": {"root": str(tmp_path / "root")}})
    with pytest.raises(SocketPathError, match=r"standby-green\.sock") as caught:
        slots.run_slot(config, None, SignalInbox(), Origin(Path("/"), None, ""), BLUE)
    [bound] = re.findall(r"at most (\d+) bytes", caught.value.hint)
    fits = str(data)[: int(bound)]
    assert len(os.fsencode(standby_socket(Path(fits), GREEN))) == MAX_PATH_BYTES
