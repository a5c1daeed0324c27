"""SIGKILL between every two durable steps of a real daemon and of a real runner, and of both at once.

A scenario is lived once to learn its points, then once for each point, with the death there; each time the rest must
heal by itself with nothing lost, nothing doubled that was not in doubt, and every invariant of the files kept. In torn
transactions the death leaves a genuine hot journal. CLAWBUS_CRASH_POINTS=all takes every point; without it every step
is taken once, and every third transaction is torn.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from schema.connect import open_reader
from schema.errors import ReadRaceError
from tests.faults.scenario import Crash, Life, Trial, live

pytestmark = [pytest.mark.faults]

PARALLEL = 2
EVERY = os.environ.get("CLAWBUS_CRASH_POINTS") == "all"
# Steps whose absence would mean that the enumeration no longer sees what it is for.
EXPECTED = {
    "daemon": {
        "registry.activate", "make.inbound", "ingress.store", "registry.begin_incarnation", "ProcessRuntime._launch",
        "RecordStore.write", "registry.incarnation_started", "delivery_steps.collect", "LocalChannel.deliver_inline",
        "mailbox.put_many", "WebhookChannel.deliver", "outcome_steps.record_outcomes", "ProcessRuntime._kill",
        "SessionFiles.recover", "incarnation_steps.finish_incarnation", "RecordStore.remove", "registry.end_incarnation",
        "SessionFiles.create", "Making.make_whole", "Making.make_empty", "Making.sync_folder", "Making.prepare",
        "make.outbound", "Path.mkdir", "Path.chmod", "Path.replace",
    },
    "runner": {"store.start", "store.claim", "EchoProvider.run", "store.finish", "Heartbeat.touch"},
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded() -> Life:
    """The scenario without a crash: sound, and the source of all points."""
    life = live(None)
    assert life.check() == []
    return life


def chosen(recorded: Life, party: str) -> list[str]:
    """The points to die at: each once, in order; for the bounded run every first occurrence, after the step or torn."""
    points = list(dict.fromkeys(recorded.points[party]))
    torn = [point.removesuffix(":before") + ":torn" for point in points if _is_transaction(point)]
    if EVERY:
        return points + torn
    # Bounded: between each step and the next, and some transactions in the middle.
    return [point for point in points if point.endswith("#1:after")] + [point for point in torn if "#1:" in point][::3]


def _is_transaction(point: str) -> bool:
    """The labels of transactions are module.function; those of methods begin with a capital."""
    return point.endswith(":before") and not point[0].isupper() and not point.startswith("make.")


def lived(crashes: Sequence[Crash]) -> list[Life]:
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(live, crashes))


def test_the_enumeration_sees_every_durable_step(recorded: Life) -> None:
    for party, expected in EXPECTED.items():
        seen = {point.partition("#")[0] for point in recorded.points[party]}
        assert expected <= seen, f"{party}: {expected - seen}"


@pytest.mark.parametrize("both", [False, True], ids=["alone", "with-the-other"])
@pytest.mark.parametrize("party", ["daemon", "runner"])
def test_a_death_at_any_point_heals_and_nothing_is_lost_or_doubled(recorded: Life, party: str, both: bool) -> None:
    points = chosen(recorded, party)
    if both and not EVERY:
        points = points[::3]
    lives = lived([Crash(party, point, both) for point in points])
    problems = [problem for life in lives for problem in life.check()]
    assert not problems, "\n".join(problems)
    # A point may be passed by (nothing to tear, another order of events), but not often: the deaths are the test.
    missed = [str(life.crash) for life in lives if not life.fired]
    assert len(missed) <= len(lives) // 5, missed


def test_a_torn_transaction_leaves_a_hot_journal_that_the_next_start_heals() -> None:
    with Trial(Crash("daemon", "ingress.store#1:torn")) as trial:
        trial.driver.ensure()
        trial.accept_until_death()
        inbound = trial.daemon.folder("echo", "s") / "in" / "inbound.db"
        with pytest.raises(ReadRaceError), open_reader(inbound) as db:
            db.all("SELECT * FROM messages_in")
        trial.run()
        trial.look()
    assert trial.life.fired
    assert trial.life.check() == []
