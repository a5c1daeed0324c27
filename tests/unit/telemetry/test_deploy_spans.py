"""The trace of a deploy: the seed's names, one child for each gate that ran, and the same identities whoever reports it."""

from dataclasses import replace

from prometheus_client import CollectorRegistry

from daemon.core.events import DeployEnded
from daemon.core.slot_steps import claim, cut_over, new_deploy, passed, roll_back, served
from daemon.core.slots import BLUE, Deploy, SlotState, from_json
from daemon.telemetry.deploy_spans import deploy_spans
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.telemetry import Telemetry
from tests.unit.telemetry.test_tracing import Recorder

LIMITS = {"bake": {"window_s": 600.0, "restarts": 0}}


def over(*, good: bool) -> Deploy:
    state = claim(SlotState(), BLUE, "a" * 64, 1, "boot")
    deploy = new_deploy("D1", state, "b" * 64, 1000, LIMITS, no_rollback=False)
    for number, name in enumerate(("preflight", "warm", "callback_probe", "drain"), 1):
        deploy = deploy.with_gate(
            name, status="pass", since=1000 * number, ended=1000 * number + 500, measured={"took_ms": 7}
        )
    state = served(cut_over(replace(state, deploy=deploy), 5000), 5400)
    state = passed(state, 9000, {"checks": 3}) if good else roll_back(state, "2 new dead letters", 8000, 0)
    assert state.deploy is not None
    return state.deploy


def test_a_passed_deploy_is_one_trace_with_a_span_for_each_gate_that_ran() -> None:
    *gates, root = deploy_spans(over(good=True), 9999)
    assert [one.name.removeprefix("deploy.runtime.") for one in gates] == [
        "preflight", "warm", "callback_probe", "drain", "cutover", "bake",
    ]  # fmt: skip
    assert (root.name, root.parent, root.error, root.start, root.end) == ("deploy.runtime", None, None, 1000, 9000)
    assert {one.parent for one in gates} == {root.context}
    assert {one.context.trace_id for one in gates} == {root.context.trace_id}
    assert len({one.context.span_id for one in (*gates, root)}) == 7
    assert gates[-1].attributes["gate.measured.checks"] == 3
    assert gates[-1].attributes["gate.limit.window_s"] == "600.0"
    assert (gates[1].start, gates[1].end) == (2000, 2500)


def test_a_rollback_is_an_error_and_its_trace_is_the_same_each_time() -> None:
    spans = deploy_spans(over(good=False), 9999)
    assert spans == deploy_spans(over(good=False), 12345)
    errors = {one.name: one.error for one in spans if one.error is not None}
    assert errors == {"deploy.runtime.bake": "2 new dead letters", "deploy.runtime": "bake: 2 new dead letters"}
    assert "deploy.runtime.rollback" in {one.name for one in spans}


def test_the_end_of_a_deploy_is_counted_and_traced() -> None:
    metrics, tracer = Metrics(CollectorRegistry()), Recorder()
    Telemetry(metrics, tracer)._deployed(DeployEnded(9999, over(good=False)))
    assert metrics.registry.get_sample_value("clawbus_deploys_total", {"state": "rolled_back"}) == 1.0
    assert tracer.spans == deploy_spans(over(good=False), 9999)


def test_a_record_of_a_later_release_can_be_read_after_a_rollback() -> None:
    found = from_json({"epoch": 3, "serving": "blue", "later": 1, "deploy": None})
    assert (found.epoch, found.serving) == (3, "blue")
