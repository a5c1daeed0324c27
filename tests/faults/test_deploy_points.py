"""A sample of the deaths of a deploy in every run: some steps of the tool, the old and the new daemon.

The whole walk: `python -m tests.faults.deploy_points` (tests/README.md).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.faults.deploy_points import SOMETIMES, judged, steps, unknown_steps
from tests.support.deploy_points import PHASES, Death
from tests.support.deploy_rig import Outcome, Rig

pytestmark = [pytest.mark.faults]

SEED = int(os.environ.get("CLAWBUS_DEPLOY_SEED", "1"))
HOW_MANY = {"tool": 1, "old": 1, "new": 1}


@pytest.fixture(name="rig", scope="module")
def _rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


@pytest.fixture(name="clean", scope="module")
def _clean(rig: Rig) -> Outcome:
    return rig.live("passes")


def sample(names: list[str]) -> list[Death]:
    """Deaths of each process at steps of its own, spread over the deploy."""
    chance, found = random.Random(SEED), list[Death]()
    for who, count in HOW_MANY.items():
        own = [one for one in names if one.startswith(f"{who} ") and one.partition(" ")[2] not in SOMETIMES]
        for number in range(count):
            part = own[len(own) * number // count : len(own) * (number + 1) // count]
            found.append(Death(f"{chance.choice(part)}:{chance.choice(PHASES)}", who))
    return found


def test_every_durable_step_of_a_deploy_is_seen_and_known(clean: Outcome) -> None:
    assert unknown_steps({clean.kind: clean}) == []


def test_a_death_at_a_step_leaves_one_slot_serving_nothing_lost_and_the_next_deploy_passes(
    rig: Rig, clean: Outcome
) -> None:
    order = steps({clean.kind: clean}, clean.kind)
    outcomes = [rig.live(clean.kind, [death]) for death in sample(order)]
    problems = [problem for one in outcomes for problem in judged(one, order)]
    problems += rig.another()  # those before it were each the next one of a death
    assert problems == [], "\n".join(problems)
    assert [str(one) for one in outcomes if not one.fired] == [], "the deaths are the test"
