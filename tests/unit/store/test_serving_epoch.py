"""The epoch of the serving slot, in the transaction of every claim."""

from pathlib import Path

import pytest

from daemon.app.lease import Lease
from daemon.core.clock import SystemClock
from daemon.core.deploy_errors import FencedError
from daemon.core.session_key import SessionKey
from daemon.deploy.state_file import read_state, state_path
from daemon.store.data_folder import DataFolder
from daemon.store.incarnations import IncarnationRow
from daemon.store.registry import Registry
from tests.support.mounts import small_disk


def claim(registry: Registry, name: str) -> bool:
    return registry.begin_incarnation(IncarnationRow(name, SessionKey("a", name), "process", "", None, 1))


def test_a_daemon_of_an_earlier_epoch_claims_nothing(tmp_path: Path) -> None:
    old, new = Registry(tmp_path / "central.db"), Registry(tmp_path / "central.db")
    old.take_epoch(1)
    assert claim(old, "one")
    new.take_epoch(2)
    for refused in (lambda: claim(old, "two"), old.confirm_epoch, lambda: old.take_epoch(1)):
        with pytest.raises(FencedError):
            refused()
    assert claim(new, "two")
    new.confirm_epoch()


def test_a_daemon_without_a_slot_claims_in_the_last_epoch(tmp_path: Path) -> None:
    """Whoever goes back to a plain installation holds the folder's lock, so nobody else claims."""
    Registry(tmp_path / "central.db").take_epoch(3)
    plain = Registry(tmp_path / "central.db")
    plain.take_epoch(None)
    assert claim(plain, "one")


def test_a_lost_state_file_ends_no_slot(tmp_path: Path) -> None:
    lease = Lease(tmp_path, "blue", "r", SystemClock(), 0.0)
    lease.take(0)
    state_path(tmp_path).unlink()
    again = Lease(tmp_path, "green", "r", SystemClock(), 0.0)
    again.take(7)
    assert (again.epoch, read_state(tmp_path).serving) == (7, "green")
    Registry(tmp_path / "central.db").take_epoch(again.epoch)


def test_a_slot_s_daemon_starts_again_on_a_full_disk_as_one_without_slots_does(tmp_path: Path) -> None:
    """It says there what is full, adopts its agents and goes on by itself once there is room."""
    data = tmp_path / "d"

    def start() -> int:
        with DataFolder.open(data, is_daemon=True) as folder:
            registry = Registry(folder.central_db)
            lease = Lease(data, "blue", "r", SystemClock(), 0.0)
            lease.take(registry.last_epoch() if folder.central_db.exists() else 0)
            registry.take_epoch(lease.epoch)
            return lease.epoch

    with small_disk(data, 2048) as disk:
        assert start() == 1
        disk.fill()
        assert start() == 1
