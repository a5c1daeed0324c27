"""A sample of the errno walk in every run: each operation of daemon and runner that matters, with some of twelve errnos.

The whole walk: `python -m tests.faults.errnos` (tests/README.md).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.faults.errnos import Trial, Walk, plan
from tests.support.daemon import eventually
from tests.support.errnos.control import DAEMON, ERRNOS, RUNNER, Site, compiler

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        compiler() is None, reason="needs a C compiler (`cc`): the calls fail beneath Python and SQLite"
    ),
]

SECONDS = 18.0
SEED = int(os.environ.get("CLAWBUS_ERRNO_SEED", "1"))
# Without these the recording no longer sees what it is for.
EXPECTED = {
    *(Site(DAEMON, operation, name) for operation, name in (
        ("accept4", "-"), ("pipe2", "-"), ("spawn", "-"),
        ("open", "out"), ("open", "outbound.db"), ("open", "inbound.db"), ("open", "inbound.db.new"), ("open", "central.db"),
        ("open", "mailbox.db"), ("open", "container.log"), ("open", "*.json"), ("open", "*.draft"),
        ("opendir", "out"), ("stat", "outbound.db"), ("stat", "outbound.db-wal"), ("stat", "mailbox.db"),
        ("mkdir", "in"), ("rename", "inbound.db"), ("rename", "*.json"), ("unlink", "inbound.db-journal"),
        ("fsync", "inbound.db"), ("fsync", "in"), ("read", "outbound.db"), ("write", "inbound.db"),
        ("mkdir", ".partial"), ("fsync", "given.txt"), ("rename", "m*"), ("open", "made.txt"), ("fsync", "made.txt"),
        ("write", "inbound.db-journal"), ("lock", "inbound.db"), ("utime", ".bell"), ("write", "clawbus.log"),
    )),
    *(Site(RUNNER, operation, name) for operation, name in (
        ("fork", "-"), ("pipe2", "-"), ("open", "outbound.db"), ("open", "inbound.db"), ("open", ".heartbeat"),
        ("read", "inbound.db"), ("write", "outbound.db"), ("fsync", "outbound.db"), ("fsync", "out"),
        ("unlink", "outbound.db-journal"), ("lock", "outbound.db"), ("utime", ".heartbeat"),
    )),
}  # fmt: skip


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    with Walk() as walk:
        yield walk


@pytest.fixture(scope="module")
def sites(walk: Walk) -> dict[tuple[Site, str], int]:
    return walk.sites()


def test_the_recording_sees_every_operation_that_matters(sites: dict[tuple[Site, str], int]) -> None:
    assert EXPECTED - {site for site, _ in sites} == set()


def test_the_hosts_own_trouble_quarantines_nobody_costs_no_try_fails_no_message_and_heals(
    walk: Walk, sites: dict[tuple[Site, str], int]
) -> None:
    trials = plan(sites, ERRNOS)
    random.Random(SEED).shuffle(trials)
    # The named ones first, each once, then whatever there is time for.
    trials.sort(key=lambda trial: trial[0] not in EXPECTED or trial[3])
    done: list[Trial] = []
    seen: set[Site] = set()
    spent = 0.0
    for site, number, piece, spell, skip in trials:
        if site in seen:
            continue
        if spent > SECONDS:
            break
        seen.add(site)
        done.append(walk.run(site, number, piece, spell=spell, skip=skip))
        spent += done[-1].seconds
    problems = [f"{trial}: {trial.problems}" for trial in done if trial.problems]
    assert not problems, "\n".join(problems)
    assert sum(bool(trial.fired) for trial in done) > len(done) // 2, "the faults are the test"
    assert walk.verdict() == []


@pytest.mark.parametrize("number", ["EMFILE", "EIO"])
def test_a_reload_that_cannot_read_the_file_now_comes_later(walk: Walk, number: str) -> None:
    """Nobody sends the signal again."""
    done, refused = len(walk.daemon.events("config_reloaded")), len(walk.daemon.events("reload_refused"))
    walk.control.arm(Site(DAEMON, "open", "/clawbus.toml"), number, count=10**9)
    try:
        walk.daemon.reload()
        eventually("it was refused", lambda: len(walk.daemon.events("reload_refused")) > refused)
    finally:
        walk.control.disarm()
    assert "cannot be read" in walk.daemon.events("reload_refused")[-1]["error"]
    eventually("it was done", lambda: len(walk.daemon.events("config_reloaded")) > done)


def test_short_of_descriptors_doctor_and_status_name_it_while_it_lasts(walk: Walk) -> None:
    walk.until_degraded(None)  # what the trials before have left would pass for this shortage
    walk.control.arm(Site(DAEMON, "open", "outbound.db"), "EMFILE", count=10**9)
    try:
        message_id = walk.daemon.post("hello", agent="echo", session="warm")
        walk.until_degraded("storage")
        found = walk.daemon.cli("doctor")
        assert not found.ok
        assert {"HOST_TROUBLE", "STORAGE_FAILING"} & {one["code"] for one in found.envelope["result"]["diagnoses"]}
    finally:
        walk.control.disarm()
    assert walk.daemon.answer(message_id, agent="echo", session="warm")
    walk.until_degraded(None)
    assert walk.daemon.cli("doctor").ok
