"""The states of a deploy: which slot serves after each step and each crash, and what a bake makes of what it sees."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from daemon.core.bake import Health, judge, raise_baseline
from daemon.core.deploy_errors import DeployRefusedError, NotServingError
from daemon.core.deploy_verdict import runtime_verdict, verdict, without_daemon
from daemon.core.slot_steps import (
    Seen,
    aborted,
    begin,
    breach_at_start,
    check_schema,
    claim,
    cut_over,
    failed,
    new_deploy,
    passed,
    returned,
    roll_back,
    served,
    standby_step,
    stopped,
)
from daemon.core.slots import BLUE, GATES, GREEN, SlotState, as_json, deploy_on_record, from_json

OLD, NEW = "a" * 64, "b" * 64
FIRST = claim(SlotState(), BLUE, OLD, 1, "boot")


def begun(*, no_rollback: bool = False) -> SlotState:
    return begin(FIRST, new_deploy("D", FIRST, NEW, 2, {}, no_rollback=no_rollback), 2, force=False)


def gated(state: SlotState, *names: str) -> SlotState:
    """The state with gates passed, as the conductor writes it."""
    assert state.deploy is not None
    deploy = state.deploy
    for name in names:
        deploy = deploy.with_gate(name, status="pass", since=3, ended=3)
    return replace(state, deploy=deploy)


def steps() -> list[tuple[str, SlotState]]:
    """Every state that a deploy writes, in order, with its name."""
    found = [("begun", begun())]
    names: list[str] = []
    for name in ("preflight", "warm", "callback_probe", "drain"):
        state = gated(begun(), *names)
        assert state.deploy is not None
        found.append(
            (f"{name} running", replace(state, deploy=state.deploy.with_gate(name, status="running", since=3)))
        )
        names.append(name)
        found.append((f"{name} passed", gated(begun(), *names)))
    found.append(("cut over", cut_over(gated(begun(), *names), 4)))
    found.append(("started", claim(found[-1][1], GREEN, NEW, 5, "boot")))
    found.append(("baking", served(found[-1][1], 6)))
    found.append(("passed", passed(found[-1][1], 6, {})))
    found.append(("rolled back", roll_back(found[-2][1], "dead letters", 6, 1000)))
    return found


STEPS = steps()


def may_serve(state: SlotState, slot: str) -> bool:
    try:
        claim(state, slot, OLD if slot == BLUE else NEW, 9, "boot")
    except NotServingError:
        return False
    return True


@pytest.mark.parametrize(("name", "state"), STEPS, ids=[name for name, _ in STEPS])
def test_after_a_crash_at_any_step_exactly_one_slot_serves(name: str, state: SlotState) -> None:
    assert [may_serve(state, slot) for slot in (BLUE, GREEN)].count(True) == 1
    assert from_json(json.loads(json.dumps(as_json(state)))) == from_json(as_json(state))


def worlds() -> Iterator[tuple[str, SlotState, tuple[str, ...]]]:
    for (name, state), order in itertools.product(STEPS, itertools.product((BLUE, GREEN), repeat=4)):
        yield name, state, order


def test_whoever_starts_in_whatever_order_after_a_crash_the_deploy_ends_and_one_slot_serves() -> None:
    """Daemons start and are killed in every order of four starts; then each that may serve does, and its bake ends."""
    for name, crashed, order in worlds():
        state = crashed
        for slot in order:
            if breach_at_start(state, slot, OLD if slot == BLUE else NEW, "boot") is not None:
                state = roll_back(state, "started again", 9, 1000)
            elif may_serve(state, slot):
                state = served(claim(state, slot, OLD if slot == BLUE else NEW, 9, "boot"), 9)
            elif standby_step(state, slot, Seen(lock_free_s=99), 10, 6) == "roll_back":
                state = roll_back(state, "it does not run", 9, 1000)
            assert [may_serve(state, one) for one in (BLUE, GREEN)].count(True) == 1, (name, order)
        if state.active is not None:
            assert state.serving == GREEN or set(order) == {GREEN}, (
                "only a bake goes on, or nobody of the old slot came"
            )
            continue
        assert state.deploy is not None
        assert state.deploy.state in ("failed", "rolled_back", "passed"), (name, order)
        assert (state.serving == GREEN) == (state.deploy.state == "passed"), (name, order)


def test_the_epoch_rises_with_every_change_of_the_slot_and_with_nothing_else() -> None:
    assert [state.epoch for _, state in STEPS] == [1] * 9 + [2, 2, 2, 2, 3]
    assert claim(FIRST, BLUE, OLD, 9, "boot").epoch == 1


def test_a_deploy_that_its_daemon_did_not_bring_to_the_cutover_has_failed() -> None:
    state = claim(gated(begun(), "preflight", "warm"), BLUE, OLD, 9, "boot")
    assert state.deploy is not None
    assert (state.deploy.state, state.serving) == ("failed", BLUE)
    assert verdict(state) == ("fail", 1)


def test_after_an_abort_only_the_standing_conditions_count() -> None:
    state = aborted(gated(begun(), "preflight"), "warm", "ann", 9)
    assert verdict(state) == ("aborted", 1), "the command that asked for the deploy did not get it"
    assert runtime_verdict(state, []) == ("pass", 0)
    assert runtime_verdict(state, ["fail"]) == ("fail", 1)


@pytest.mark.parametrize(
    ("name", "standing", "said"),
    [
        ("passed", ["pass"], ("pass", 0)),
        ("passed", ["pass", "fail"], ("fail", 1)),
        ("passed", ["pass", "unknown"], ("unknown", 75)),
        ("passed", ["unknown", "fail"], ("fail", 1)),
        ("baking", ["fail"], ("hold", 75)),
        ("rolled back", ["pass"], ("rolled_back", 1)),
        ("rolled back", ["unknown"], ("rolled_back", 1)),
    ],
)
def test_what_serves_is_judged_with_its_last_deploy(name: str, standing: list[str], said: tuple[str, int]) -> None:
    assert runtime_verdict(dict(STEPS)[name], standing) == said


def test_a_start_in_the_bake_is_a_breach_only_when_nobody_asked_for_it_and_the_machine_stayed_up() -> None:
    baking = dict(STEPS)["baking"]
    assert breach_at_start(baking, GREEN, NEW, "boot") is not None
    assert breach_at_start(stopped(baking), GREEN, NEW, "boot") is None
    assert breach_at_start(baking, GREEN, NEW, "another boot") is None
    assert breach_at_start(dict(STEPS)["cut over"], GREEN, NEW, "boot") is None
    assert breach_at_start(dict(STEPS)["started"], GREEN, NEW, "boot") is not None, "it ended before it was ready"
    assert breach_at_start(dict(STEPS)["cut over"], GREEN, "c" * 64, "boot") is not None, "it has passed no gate"
    assert breach_at_start(stopped(baking), GREEN, "", "another boot") is not None
    again = claim(stopped(baking), GREEN, NEW, 9, "boot")
    assert breach_at_start(again, GREEN, NEW, "boot") is not None, "what was asked for once excuses one start"


@pytest.mark.parametrize(
    ("name", "slot", "seen", "step"),
    [
        ("begun", GREEN, Seen(lock_free_s=99, not_ready_s=99), None),
        ("drain passed", GREEN, Seen(lock_free_s=99, not_ready_s=99), None),
        ("cut over", GREEN, Seen(), "serve"),
        ("cut over", GREEN, Seen(not_ready_s=99), "end_holder"),
        ("cut over", BLUE, Seen(), None),
        ("cut over", BLUE, Seen(lock_free_s=99), "roll_back"),
        ("cut over", BLUE, Seen(not_ready_s=99), "end_holder"),
        ("started", BLUE, Seen(not_ready_s=99), "end_holder"),
        ("baking", BLUE, Seen(lock_free_s=5), None),
        ("baking", BLUE, Seen(lock_free_s=11), "roll_back"),
        ("cut over", BLUE, Seen(not_ready_s=7), None),
        ("baking", BLUE, Seen(not_ready_s=5), None),
        ("baking", BLUE, Seen(not_ready_s=7), "end_holder"),
        ("passed", BLUE, Seen(lock_free_s=99, not_ready_s=99), None),
        ("rolled back", BLUE, Seen(), "serve"),
        ("rolled back", GREEN, Seen(lock_free_s=99, not_ready_s=99), None),
    ],
)
def test_what_a_standby_does(name: str, slot: str, seen: Seen, step: str | None) -> None:
    assert standby_step(dict(STEPS)[name], slot, seen, 10, 6) == step


def test_a_release_without_a_way_back_is_unhealthy_and_goes_on() -> None:
    baking = served(claim(cut_over(begun(no_rollback=True), 4), GREEN, NEW, 5, "boot"), 6)
    assert standby_step(baking, BLUE, Seen(lock_free_s=99), 10, 6) is None
    state = roll_back(baking, "dead letters", 6, 1000)
    assert state.deploy is not None
    assert (state.serving, state.deploy.state, verdict(state)) == (GREEN, "unhealthy", ("fail", 1))


def test_a_second_deploy_waits_for_the_first() -> None:
    with pytest.raises(DeployRefusedError) as refused:
        begin(begun(), new_deploy("E", FIRST, NEW, 3, {}, no_rollback=False), 3, force=True)
    assert refused.value.code == "DEPLOY_RUNNING"


@pytest.mark.parametrize(
    ("now", "force", "refused"),
    [(500, False, True), (500, True, False), (1007, False, False), (-10_000_000, False, False)],
    ids=["in the cooldown", "forced", "after it", "clock set back"],
)
def test_a_release_that_was_rolled_back_has_a_cooldown(now: int, force: bool, refused: bool) -> None:
    back = claim(dict(STEPS)["rolled back"], BLUE, OLD, 7, "boot")
    deploy = new_deploy("E", back, NEW, now, {}, no_rollback=False)
    if refused:
        with pytest.raises(DeployRefusedError):
            begin(back, deploy, now, force=force)
    else:
        assert begin(back, deploy, now, force=force).active is not None
    other = new_deploy("E", back, "c" * 64, now, {}, no_rollback=False)
    assert begin(back, other, now, force=False).active is not None, "another release may come at once"


def test_the_gates_are_in_the_order_of_the_rule() -> None:
    assert GATES == ("preflight", "warm", "callback_probe", "drain", "cutover", "bake", "rollback")


def test_a_failed_gate_leaves_the_later_ones_undone_and_the_old_slot_serving() -> None:
    state = failed(gated(begun(), "preflight"), "warm", "it dies", 9, {"restarts": 1})
    assert state.deploy is not None
    assert [one.status for one in state.deploy.gates] == ["pass", "fail", *["skipped"] * 5]
    assert (state.serving, state.epoch, state.deploy.reason) == (BLUE, 1, "warm: it dies")


@pytest.mark.parametrize(
    ("prior", "new", "no_rollback", "fine"),
    [
        ({"inbound": 4}, {"inbound": 4}, False, True),
        ({"inbound": 4}, {"inbound": 5}, False, False),
        ({"inbound": 4}, {"inbound": 5}, True, True),
        ({"inbound": 4}, {"inbound": 3}, True, False),
        ({"inbound": 4}, {}, True, False),
    ],
)
def test_a_schema_that_bars_the_way_back_is_refused_unless_asked_for(
    prior: dict[str, int], new: dict[str, int], no_rollback: bool, fine: bool
) -> None:
    assert (check_schema(prior, new, no_rollback=no_rollback) is None) == fine


@pytest.mark.parametrize(
    ("health", "breach", "excused"),
    [
        (Health(), None, 0),
        (Health(dead_letters=1), "1 new dead letter", 0),
        (Health(dead_letters=1, degraded={"channel hook": "refused"}), None, 1),
        (Health(quarantined=2), "2 sessions were quarantined", 0),
        (Health(spawn_failures=1), "1 container could not be started", 0),
        (Health(spawn_failures=1, degraded={"runtime": "no answer"}), None, 1),
        (Health(dead_letters=1, degraded={"storage": "full"}), None, 1),
        (Health(degraded={"image": "missing"}), "image: missing", 0),
        (Health(late=("sweep",), degraded={"runtime": "no answer"}), "no progress: sweep", 1),
    ],
)
def test_a_bake_tells_the_release_s_faults_from_others(health: Health, breach: str | None, excused: int) -> None:
    found, others = judge(Health(), health)
    assert (found, len(others)) == (breach, excused)


@pytest.mark.parametrize(
    ("during", "excused", "counted"),
    [
        ("runtime", Health(dead_letters=1, quarantined=1, spawn_failures=1, stuck=1), Health(spawn_failures=2)),
        ("disk", Health(dead_letters=1), Health(dead_letters=2)),
        ("channel hook", Health(dead_letters=1), Health(dead_letters=2)),
        ("channel hook", Health(dead_letters=1), Health(dead_letters=1, spawn_failures=1)),
    ],
)
def test_what_anothers_trouble_caused_stays_excused_when_it_has_ended(
    during: str, excused: Health, counted: Health
) -> None:
    baseline = raise_baseline(Health(), replace(excused, degraded={during: "for a moment"}))
    assert judge(baseline, excused) == (None, [])
    assert judge(baseline, counted)[0] is not None


def test_a_failed_start_beside_a_receiver_that_is_down_counts() -> None:
    trouble = Health(spawn_failures=1, degraded={"channel hook": "refused"})
    assert judge(Health(), trouble)[0] == "1 container could not be started"


def test_what_was_wrong_before_the_bake_is_no_breach() -> None:
    before = Health(dead_letters=3, degraded={"image": "missing"})
    assert judge(before, before) == (None, [])


@pytest.mark.parametrize(
    "text", ["{}", '{"epoch": true}', '{"epoch": "1"}', '{"serving": "red"}', '{"deploy": {}}', '{"x": 1}']
)
def test_only_a_state_is_read_as_one(text: str) -> None:
    found = json.loads(text)
    if found:
        with pytest.raises((ValueError, TypeError, LookupError)):
            from_json(found)
    else:
        assert from_json(found) == SlotState()


def test_a_state_that_is_whole_only_at_first_sight_is_none() -> None:
    """Whoever reads it counts on every gate and every word: a standby ended, and was started again, for ever."""
    whole = as_json(failed(begun(), "warm", "late", 5))

    def damaged(*path: str | int, to: object) -> object:
        copy = json.loads(json.dumps(whole))
        part = copy
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = to
        return copy

    assert from_json(json.loads(json.dumps(whole))).deploy is not None
    for found in (
        damaged("release", to=5),
        damaged("cooldown", to=None),
        damaged("cooldown", to={"r": "soon"}),
        damaged("history", to=[1]),
        damaged("history", 0, to={"id": "x"}),
        damaged("deploy", "gates", to=[]),
        damaged("deploy", "state", to=5),
        damaged("deploy", "to_slot", to="red"),
        damaged("deploy", "to_release", to=None),
        damaged("deploy", "started_at", to=None),
    ):
        with pytest.raises((ValueError, TypeError, LookupError)):
            from_json(found)  # pyright: ignore[reportArgumentType] - any JSON


def test_a_rollback_has_passed_only_when_the_prior_slot_is_ready() -> None:
    back = dict(STEPS)["rolled back"].deploy
    assert back is not None
    assert (back.gate("rollback").status, back.gate("rollback").since) == ("running", 6)
    ready = returned(back, 11)
    assert (ready.gate("rollback").status, ready.gate("rollback").measured) == ("pass", {"took_ms": 5})
    assert (back.ended_at, ready.ended_at) == (6, 11), "the deploy ends with it"
    assert returned(ready, 99) == ready
    assert returned(back, 1).gate("rollback").measured == {"took_ms": 0}, "a clock that was set back"


def test_where_nobody_could_take_over_the_new_slot_goes_on_and_an_operator_decides() -> None:
    state = roll_back(
        dict(STEPS)["baking"], "dead letters", 6, 1000, {"checks": 1}, barred="no daemon answers in slot blue"
    )
    assert state.deploy is not None
    assert (state.serving, state.epoch, state.deploy.state) == (GREEN, 2, "unhealthy")
    assert (state.deploy.gate("rollback").status, state.deploy.gate("bake").measured) == ("fail", {"checks": 1})
    assert state.deploy.reason == "bake: dead letters; rollback: no daemon answers in slot blue"


def test_the_release_that_serves_is_refused_before_anything_is_moved() -> None:
    with pytest.raises(DeployRefusedError, match="serves already"):
        begin(FIRST, new_deploy("D", FIRST, OLD, 2, {}, no_rollback=False), 2, force=True)


@pytest.mark.parametrize(
    ("name", "limit", "later_s", "said"),
    [
        ("warm running", {"limit_s": 180.0}, 200, ("hold", 75)),
        ("warm running", {"limit_s": 180.0}, 300, ("fail", 1)),
        ("preflight running", {}, 30, ("hold", 75)),
        ("preflight running", {}, 90, ("fail", 1)),
        ("baking", {"window_s": 600.0}, 650, ("hold", 75)),
        ("baking", {"window_s": 600.0}, 700, ("fail", 1)),
        ("warm running", {"limit_s": 180.0}, -9000, ("hold", 75)),
    ],
)
def test_a_gate_past_its_limit_without_a_daemon_is_no_deploy_under_way(
    name: str, limit: dict[str, float], later_s: int, said: tuple[str, int]
) -> None:
    """Nobody would end it: to wait for its end is no advice."""
    state = dict(STEPS)[name]
    assert state.deploy is not None
    running = next(one for one in state.deploy.gates if one.status == "running")
    deploy = without_daemon(state.deploy.with_gate(running.name, limit=limit), (running.since or 0) + later_s * 1000)
    assert runtime_verdict(replace(state, deploy=deploy), ["fail"]) == said


def test_a_command_that_was_suspended_judges_its_own_deploy_and_not_the_next_one() -> None:
    """Its deploy was rolled back, and another one passed, before it looked again."""
    back = claim(dict(STEPS)["rolled back"], BLUE, OLD, 7, "boot")
    other = "c" * 64
    later = begin(back, new_deploy("E", back, other, 8, {}, no_rollback=False), 8, force=False)
    later = passed(served(claim(cut_over(later, 9), GREEN, other, 10, "boot"), 11), 12, {})
    assert verdict(later) == ("pass", 0)
    mine = deploy_on_record(later, "D")
    assert mine is not None
    assert verdict(replace(later, deploy=mine)) == ("rolled_back", 1)
    assert mine.reason == "bake: dead letters"
    assert deploy_on_record(later, "F") is None
