"""Registrations in central.db: one owner for each agent and channel, checked in the claim's transaction."""

from dataclasses import replace
from pathlib import Path

import pytest

from daemon.core.deploy_errors import DuplicateOwnershipError
from daemon.core.session_key import SessionKey
from daemon.store import workers
from daemon.store.incarnations import IncarnationRow
from daemon.store.registry import Registry
from daemon.store.workers import Owned, WorkerRow

OWNED: Owned = frozenset({("agent", "a"), ("agent", "b"), ("channel", "hook")})
OLD = WorkerRow("01OLD", "host", "r1", "d", "blue", "h", 1, 1, 10)
NEW = replace(OLD, id="02NEW", release="r2", registered_at=20)


class Stage:
    """One central.db and a registry for each of two daemons."""

    def __init__(self, root: Path) -> None:
        self.old, self.new = Registry(root / "central.db"), Registry(root / "central.db")

    def register(self, registry: Registry, worker: WorkerRow, owned: Owned = OWNED) -> None:
        registry.with_file(lambda db: workers.register(db, worker, owned))
        registry.claim_as(worker.id)

    def rows(self) -> list[WorkerRow]:
        return self.new.with_file(workers.read_workers)


@pytest.fixture(name="stage")
def _stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def claim(registry: Registry, agent: str, name: str) -> bool:
    return registry.begin_incarnation(IncarnationRow(name, SessionKey(agent, name), "process", "", None, 1))


def test_a_daemon_that_was_replaced_claims_nothing_of_what_its_successor_owns(stage: Stage) -> None:
    """The lock file was removed, and another daemon took the folder: the first one does not know it yet."""
    stage.register(stage.old, OLD)
    assert claim(stage.old, "a", "one")
    stage.register(stage.new, NEW)
    with pytest.raises(DuplicateOwnershipError, match="02NEW"):
        claim(stage.old, "a", "two")
    with pytest.raises(DuplicateOwnershipError):
        stage.old.with_file(lambda db: workers.confirm(db, OLD, OWNED, 30))
    assert claim(stage.new, "a", "two")
    assert [(one.id, one.ended_at, one.end_reason) for one in stage.rows()] == [
        ("02NEW", None, None), ("01OLD", 20, "superseded"),
    ]  # fmt: skip


def test_a_claim_of_what_another_daemon_of_this_host_owns_is_refused(stage: Stage) -> None:
    """The claim's transaction asks, and what it raises leaves no claim behind."""

    def is_ours(agent: str) -> None:
        if agent == "a":
            raise DuplicateOwnershipError("agent 'a' is owned by a daemon with the role cluster.")

    stage.register(stage.old, OLD)
    stage.old.claim_as(OLD.id, is_ours)
    with pytest.raises(DuplicateOwnershipError, match="cluster"):
        claim(stage.old, "a", "one")
    assert stage.old.live_incarnations() == []
    assert claim(stage.old, "b", "two")


def test_the_file_itself_refuses_a_second_owner(stage: Stage) -> None:
    stage.register(stage.old, OLD)
    with pytest.raises(Exception, match="UNIQUE"):
        stage.new.with_file(
            lambda db: db.execute("INSERT INTO registrations(worker, kind, id) VALUES ('x', 'agent', 'a')")
        )


def test_a_registration_is_confirmed_by_reading_it_back(stage: Stage) -> None:
    stage.register(stage.new, NEW)
    assert stage.rows()[0].confirmed_at is None
    less = frozenset({("agent", "a")})
    stage.new.with_file(lambda db: workers.confirm(db, NEW, less, 40))
    assert stage.rows()[0].confirmed_at == 40
    assert stage.new.with_file(lambda db: workers.read_owned(db, NEW.id)) == [("agent", "a")]


def test_a_registry_that_was_replaced_gets_the_registration_again(stage: Stage) -> None:
    stage.new.with_file(lambda db: workers.confirm(db, NEW, OWNED, 40))
    assert [(one.id, one.confirmed_at) for one in stage.rows()] == [("02NEW", 40)]


def test_an_end_frees_what_was_owned_and_old_workers_go(stage: Stage) -> None:
    for number in range(30):
        one = replace(NEW, id=f"{number:03}", registered_at=number)
        stage.register(stage.new, one)
        stage.new.with_file(lambda db, name=one.id: workers.end(db, name, 50))
        stage.new.with_file(lambda db, name=one.id: workers.end(db, name, 60))
    rows = stage.rows()
    assert rows[0].id == "029"
    assert {one.end_reason for one in rows} == {"stopped"}
    assert len(rows) == 21
    assert not stage.new.with_file(lambda db: db.all("SELECT * FROM registrations WHERE ended_at IS NULL"))
