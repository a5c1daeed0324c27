"""The tool, the old and the new daemon killed before and after every durable step of a deploy, with real releases.

Deploys are lived once without a death: one that passes, one that an operator takes back in its bake, one that is aborted,
and two whose new daemon dies or hangs in its bake. Their steps are the enumeration (tests/support/deploy_points.py); a
step that this file does not know fails. Then each of the three is killed before and after each step. Every time one slot
serves, the other stands by, no message is lost or doubled, no agent was ended, `verify-runtime` tells the truth, and
another deploy passes.

    .venv/bin/python -m tests.faults.deploy_points                  the whole walk
    .venv/bin/python -m tests.faults.deploy_points --only cutover   the deaths with this in their name
    .venv/bin/python -m tests.faults.deploy_points --skip 120       go on after the first 120
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final

from tests.support.deploy_points import PHASES, VICTIMS, Death
from tests.support.deploy_rig import KINDS, Outcome, Rig

ROOT: Final = Path(__file__).parents[2]


def states(*names: str) -> set[str]:
    return {f"{name}.{status}" for name in names for status in ("running", "pass")}


# The steps of a deploy by who makes them; of all but the first kind those that only it has. Deaths happen at what is
# found, not at what is listed here: a new step is killed at as soon as it is seen, and fails until it is named.
START: Final = frozenset({
    "data_folder.take_lock", "data_folder.write_holder", "registry.install_id", "registry.take_epoch", "workers.register",
    "workers.confirm",
})  # fmt: skip
LEAVE: Final = frozenset({"workers.end", "data_folder.close"})
PASSES: Final = {
    "tool": {"releases.link"},
    "old": {"begun", *states("preflight", "warm", "callback_probe", "drain"), "cutover.running", *LEAVE},
    "new": {*START, "take.cutover.running", "bake.running", "passed", "passed.reported"},
}
BACK: Final = {"old": {*START, "take.rolled_back", "rolled_back.reported"}}
EXPECTED: Final = {
    "passes": PASSES,
    "is taken back": {**BACK, "new": {"rolled_back", *LEAVE}},
    "is aborted": {"old": {"aborted", "aborted.reported"}},
    "its new daemon dies": {**BACK, "new": {"take.rolled_back", "data_folder.close"}},
    "its new daemon hangs": BACK,
}
# Made only when there is something to note, or when their time has come.
SOMETIMES: Final = frozenset({"workers.note_turns", "workers.confirm"})


def is_ordinary(step: str) -> bool:
    """Whether the bus makes this step anyway: a transaction or a file of its engine, stores or log, but for those above."""
    module = step.partition(".")[0]
    if step in START | LEAVE | SOMETIMES or module in {"workers", "data_folder"}:
        return False
    homes = {path.parent.name for path in [*ROOT.glob(f"daemon/**/{module}.py"), *ROOT.glob(f"schema/{module}.py")]}
    return module == "make" or bool(homes & {"engine", "supervisor", "store", "maintenance", "logs", "schema"})


def own_steps(outcome: Outcome) -> list[str]:
    """The steps of this deploy, `WHO NAME`, in the order in which each came first."""
    found = [one.rpartition(":")[0] for one in outcome.passed if one.endswith((":before", ":after"))]
    return [one for one in dict.fromkeys(found) if not is_ordinary(one.partition(" ")[2])]


def steps(recorded: Mapping[str, Outcome], kind: str) -> list[str]:
    """The steps of a kind, `WHO NAME`, in their order; of all but the first kind those that only it has."""
    found = own_steps(recorded[kind])
    known = set(steps(recorded, "passes")) if kind != "passes" else set[str]()
    return [one for one in found if one not in known]


def unknown_steps(recorded: Mapping[str, Outcome]) -> list[str]:
    """What is wrong with the deploys without a further death, and each step that was not seen or is not known."""
    problems: list[str] = []
    for kind, outcome in recorded.items():
        problems += outcome.problems
        if (outcome.state, outcome.fired) != (KINDS[kind].state, len(KINDS[kind].deaths)):
            problems.append(f"{outcome}, {outcome.fired} deaths")
        found = set(steps(recorded, kind))
        expected = {f"{who} {name}" for who, names in EXPECTED[kind].items() for name in names}
        sometimes = {f"{who} {name}" for who in VICTIMS for name in SOMETIMES}
        problems += [f"{kind}: no step {one}" for one in sorted(expected - found - sometimes)]
        problems += [f"{kind}: unknown step {one}" for one in sorted(found - expected - sometimes)]
        waits = {one.rpartition(" ")[2] for one in outcome.passed if " fsync " in one}
        known = {"state_file.write_state", "releases.link"}
        problems += [f"{kind}: {one} waits for the disk" for one in waits - known if not is_ordinary(one)]
    return problems


def allowed(kind: str, death: Death, order: Sequence[str]) -> set[str | None]:
    """How a deploy may end after this death, with its steps in this order. None: it has not begun."""
    step, _, phase = death.point.rpartition(":")

    def before(name: str) -> bool:
        return name not in order or order.index(step) < order.index(name) or (step == name and phase == "before")

    if kind == "is aborted" and death.victim == "old" and step == "old aborted" and phase == "before":
        return {"failed"}
    if kind != "passes":
        return {KINDS[kind].state}
    if step == "tool releases.link":
        return {None} if death.victim == "tool" else {None, "passed", "failed"}
    if death.victim == "tool":
        return {"passed"}
    if death.victim == "old":
        if before("old begun"):
            return {None}
        return {"failed"} if before("old cutover.running") else {"passed"}
    if before("old warm.pass"):
        return {"passed", "failed"}
    if step == "old callback_probe.pass" and phase == "before":
        # The probe has its answers, and the next standby is of the same release.
        return {"failed", "passed", "rolled_back"}
    if before("old callback_probe.pass"):
        return {"failed", "passed"} if before("old callback_probe.running") else {"failed"}
    if before("new take.cutover.running"):
        return {"passed", "rolled_back"}
    return {"rolled_back"} if before("new passed") else {"passed"}


def every_death(recorded: Mapping[str, Outcome]) -> list[tuple[str, Death]]:
    """Every step of every kind, before and after, with each of the three killed."""
    return [
        (kind, Death(f"{step}:{phase}", victim))
        for kind in recorded
        for step, phase, victim in product(steps(recorded, kind), PHASES, VICTIMS)
    ]


def judged(outcome: Outcome, order: Sequence[str]) -> list[str]:
    """What is wrong after this death. `order` are the steps of a deploy that passes."""
    death = outcome.deaths[-1]
    if death.point.rpartition(":")[0].partition(" ")[2] in SOMETIMES:
        order = own_steps(outcome)  # it comes when its time has come: at another place in each deploy
    ends = allowed(outcome.kind, death, order)
    if outcome.fired == len(outcome.deaths) and outcome.state not in ends:
        return [*outcome.problems, f"{outcome}: instead of {ends}"]
    return outcome.problems


def lived(
    rigs: Sequence[Rig],
    wanted: Sequence[tuple[str, Sequence[Death]]],
    tell: Callable[[Outcome], None],
    until: float = float("inf"),
) -> None:
    """Live these deploys on all hosts, begun before `until`; `tell` hears of each as it is over."""
    left: queue.SimpleQueue[tuple[str, Sequence[Death]]] = queue.SimpleQueue()
    for one in wanted:
        left.put(one)

    def work(rig: Rig) -> None:
        with contextlib.suppress(queue.Empty):
            while time.monotonic() < until:
                kind, deaths = left.get_nowait()
                try:
                    outcome = rig.live(kind, deaths)
                    outcome.problems += [f"{outcome}: {one}" for one in (rig.another() if deaths else ())]
                except Exception as error:
                    outcome = Outcome(kind, deaths, problems=[f"{kind}, {deaths}: {type(error).__name__}: {error}"])
                tell(outcome)

    threads = [threading.Thread(target=work, args=(rig,)) for rig in rigs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def walk(rigs: Sequence[Rig], only: str, seed: int, skip: int, until: float) -> int:
    """Record, then take every death; the exit code: 0 when all was well."""
    recorded: dict[str, Outcome] = {}
    lived(rigs, [(kind, ()) for kind in KINDS], lambda one: recorded.update({one.kind: one}))
    recorded = {kind: recorded[kind] for kind in KINDS}
    problems = unknown_steps(recorded)
    wanted = [(kind, death) for kind, death in every_death(recorded) if only in f"{kind}: {death}"]
    # A walk that is cut short has been everywhere: first where a process dies at its own steps.
    random.Random(seed).shuffle(wanted)
    wanted.sort(key=lambda one: (not one[1].point.startswith(one[1].victim), one[0] != "passes"))
    wanted = wanted[skip:]
    counts = ", ".join(f"{len(steps(recorded, kind))} ({kind})" for kind in KINDS)
    print(*problems, f"steps: {counts}; {len(wanted)} deaths", sep="\n", flush=True)
    order = steps(recorded, "passes")
    done, missed, failed = 0, 0, 0
    began = time.monotonic()

    def tell(outcome: Outcome) -> None:
        nonlocal done, missed, failed
        found = judged(outcome, order)
        is_missed = outcome.fired != len(outcome.deaths)
        done, missed, failed = done + 1, missed + is_missed, failed + bool(found)
        word = "FAILED" if found else "missed" if is_missed else "ok"
        print(f"{time.monotonic() - began:5.0f} s {word} {outcome}", *found, sep="\n    ", flush=True)

    lived(rigs, [(kind, (death,)) for kind, death in wanted], tell, until)
    print(f"deploys: {done} of {len(wanted)} deaths, {missed} not reached, {failed} failed, {len(problems)} problems")
    # A step may be passed by, but not often: the deaths are the test.
    return 1 if failed or problems or missed > done // 10 else 0


def main() -> int:
    """The exit code: 0 when every death left one slot serving and nothing lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.deploy_points")
    parser.add_argument("--only", default="", help="part of a death's name: 'old killed', 'cutover', 'is aborted'")
    parser.add_argument("--hosts", type=int, default=2, help="how many deploys at a time")
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--skip", type=int, default=0, help="how many deaths of that order an earlier walk has taken")
    parser.add_argument("--seconds", type=float, default=10**9)
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    with contextlib.ExitStack() as stack:
        rigs = [stack.enter_context(Rig()) for _ in range(arguments.hosts)]
        return walk(rigs, arguments.only, arguments.seed, arguments.skip, until)


if __name__ == "__main__":
    sys.exit(main())
