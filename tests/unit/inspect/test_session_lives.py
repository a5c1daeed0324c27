"""What the doctor says of containers that others restarted, paused, made again or gave a restart policy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.core.diagnoses import diagnose_session
from daemon.core.facts import Container, DaemonState, Failing, HostFacts, LiveRecord, LockHolder, SessionFacts
from daemon.core.run_state import Life

NOW = 1_800_000_000_000
HOST = HostFacts(now=NOW, data_dir="/data")
OWN = Container("c1c1c1c1c1c1c1c1", "helper", "main", "01A", NOW - 5000)
LIVE = LiveRecord("01A", OWN.container_id, NOW - 6000, OWN.started_at, Life.ALIVE)
CALM = SessionFacts("helper", "main", live=LIVE, container=OWN)


def told(session: SessionFacts, host: HostFacts = HOST) -> dict[str, str]:
    return {one.code: one.command for one in diagnose_session(host, session)}


def test_a_container_in_its_first_life_is_no_finding() -> None:
    assert told(CALM) == {}


@pytest.mark.parametrize(
    ("daemon", "command"),
    [(DaemonState.UP, "clawbus session kill helper main"), (DaemonState.DOWN, "clawbus serve")],
)
def test_a_restarted_container_is_named(daemon: DaemonState, command: str) -> None:
    again = replace(CALM, container=replace(OWN, started_at=NOW - 1000))
    assert told(again, replace(HOST, daemon=daemon)) == {"CONTAINER_RESTARTED": command}


def test_a_start_that_is_not_recorded_yet_is_no_restart() -> None:
    assert told(replace(CALM, live=replace(LIVE, started_at=None))) == {}


def test_a_restart_policy_is_named_also_on_a_container_that_nobody_supervises() -> None:
    command = "docker update --restart=no c1c1c1c1c1c1"
    assert told(replace(CALM, container=replace(OWN, restarts=True))) == {"RESTART_POLICY": command}
    stray = replace(CALM, live=None, container=None, containers=(replace(OWN, restarts=True),))
    assert told(stray)["RESTART_POLICY"] == command


def test_a_paused_container_is_named() -> None:
    assert told(replace(CALM, container=replace(OWN, paused=True))) == {
        "CONTAINER_PAUSED": "docker unpause c1c1c1c1c1c1"
    }


def test_podman_s_containers_are_repaired_with_podman() -> None:
    host = replace(HOST, runtime="podman")
    restarts, paused = (replace(CALM, container=replace(OWN, **{one: True})) for one in ("restarts", "paused"))
    assert told(restarts, host) == {"RESTART_POLICY": "podman update --restart=no c1c1c1c1c1c1"}
    assert told(paused, host) == {"CONTAINER_PAUSED": "podman unpause c1c1c1c1c1c1"}
    changed = replace(HOST, runtime="docker", other_runtime="podman")
    assert told(paused, changed) == {"CONTAINER_PAUSED": "podman unpause c1c1c1c1c1c1"}


def test_a_start_that_fails_behind_another_container_is_repaired_by_ending_that_one() -> None:
    failing = SessionFacts(
        "helper", "main", spawn_failures=3, last_spawn_error="still runs", due=1, oldest_due_at=NOW, containers=(OWN,)
    )
    assert told(failing)["SPAWN_FAILING"] == "clawbus session kill helper main"
    assert told(replace(failing, containers=()))["SPAWN_FAILING"] == "clawbus session show helper main"
    image = replace(HOST, image_error="the image x is missing.")
    assert told(replace(failing, containers=()), image)["SPAWN_FAILING"] == "clawbus image build"


def test_a_container_that_takes_nothing_after_others_failed_is_named_while_it_runs() -> None:
    """Otherwise `doctor` is silent for most of the time: each of them is ended after a minute, and the next one starts."""
    hangs = replace(
        CALM, spawn_failures=3, last_spawn_error="took none of its messages", due=1, oldest_due_at=NOW - 600_000
    )
    assert hangs.live is not None
    since = replace(hangs.live, started_at=NOW - 20_000)
    assert told(replace(hangs, live=since))["SPAWN_FAILING"] == "clawbus session show helper main"
    young = replace(since, started_at=NOW - 1_000)  # it may be about to take them
    for fine in (
        replace(hangs, live=young),
        replace(hangs, live=since, claimed=True),
        replace(hangs, spawn_failures=0),
    ):
        assert "SPAWN_FAILING" not in told(fine)


def test_a_lock_of_another_process_is_not_repaired_by_killing_the_container() -> None:
    busy = Failing("FILE_BUSY", "Its sweep fails.", NOW - 600_000, 9)
    assert told(replace(CALM, failing=(busy,))) == {"SESSION_FAILING": "clawbus session kill helper main"}
    foreign = replace(CALM, failing=(busy,), lock_holders=(LockHolder(4711, "4711 (sqlite3)", "inbound.db"),))
    found = diagnose_session(HOST, foreign)
    assert [(one.code, one.command) for one in found] == [("SESSION_FAILING", "kill 4711")]
    assert any("4711 (sqlite3)" in line and "inbound.db" in line for line in found[0].evidence)
