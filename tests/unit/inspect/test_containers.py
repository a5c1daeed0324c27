"""Which containers live: the configured runtime is no witness for what another one started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.config.models import Config
from daemon.core.clock import SystemClock
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import PreviewStale
from daemon.core.stale_plan import MIN_OLDER_THAN_MS
from daemon.inspect.containers import RuntimeSeen, look_at_runtime
from daemon.maintenance.offline import offline_executor
from daemon.runtimes import process_table
from daemon.runtimes.process_records import Record, RecordStore
from tests.support.forensic_world import AGENT, ForensicWorld
from tests.support.session_world import NOW

INSTALL = "install"


@pytest.fixture
def world(tmp_path: Path) -> ForensicWorld:
    return ForensicWorld(tmp_path / "d")


def config(world: ForensicWorld, kind: str) -> Config:
    return Config(data_dir=world.root, runtime={"kind": kind})  # pyright: ignore[reportArgumentType]


def test_what_another_runtime_started_is_unknown_and_not_gone(world: ForensicWorld) -> None:
    world.session()
    world.incarnation("s", "I1")  # under docker
    seen = look_at_runtime(config(world, "process"), INSTALL)
    assert (seen.containers, seen.alive, seen.other_kind) == (None, None, "docker")
    assert seen.error is not None
    assert all(word in seen.error for word in ('"process"', '"docker"', "--config"))


def test_what_has_ended_under_another_runtime_hinders_nothing(world: ForensicWorld) -> None:
    world.session()
    world.incarnation("s", "I1")
    world.registry.end_incarnation("I1", NOW, 0, "idle")
    assert look_at_runtime(config(world, "process"), INSTALL) == RuntimeSeen(())


def test_plain_processes_are_seen_without_a_record_in_the_registry(world: ForensicWorld) -> None:
    store = RecordStore(world.root / "run" / "process")
    store.ensure()
    own = process_table.read_stat(os.getpid())
    assert own is not None
    store.write(
        Record("I1", INSTALL, "n", AGENT, "s", "I1", "f", NOW, own.pid, own.start_ticks, process_table.boot_id(), "", 0)
    )
    assert look_at_runtime(config(world, "docker"), INSTALL).other_kind == "process"


def test_a_sweep_with_the_wrong_configuration_ends_and_recovers_nothing(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    world.incarnation("s", "I1")
    world.claimed(session, "m1", "I1")
    key = SessionKey(AGENT, "s")
    (session.files.folder.outbound_db.with_name("outbound.db-journal")).touch()
    (world.root / "install-id").write_text(str(world.registry.install_id(NOW)) + "\n", encoding="ascii")
    with offline_executor(config(world, "process"), SystemClock(), recover=True) as access:
        report = access.execute(PreviewStale(*key, older_than_ms=MIN_OLDER_THAN_MS, max_runs=1))
        assert access._context(key).occupied, "what may take a message is not gone because nobody was asked"
    assert report["runs"] == []
    assert [one["life"] for one in report["running"]] == ["unknown"]
    assert session.files.has_journal(), "its writer may live"


def test_the_doctor_names_the_configuration_and_not_the_sessions(world: ForensicWorld) -> None:
    from daemon.core.daemon_status import DaemonStatus  # noqa: PLC0415
    from daemon.inspect.doctor import Doctor  # noqa: PLC0415

    session = world.session()
    session.accept("m1")
    world.incarnation("s", "I1")
    world.claimed(session, "m1", "I1")
    world.up()
    doctor = Doctor(config(world, "process"), world.clock, lambda: DaemonStatus(world.state, world.live))
    found = doctor.examine(pause=lambda _: None).diagnoses
    assert [one.code for one in found] == ["RUNTIME_CHANGED"]
