"""A real deploy's stages at a real OTLP/HTTP receiver and in the log: names, order, attributes, durations."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from daemon.core.slots import GATES, Deploy
from tests.support.daemon import eventually
from tests.support.otlp import OtlpReceiver, SeenSpan, collecting
from tests.support.slot_host import PATIENT, SlotHost

BAKE_S = 4.0
INTERNAL = 1
ROOT = "deploy.runtime"


@dataclass(frozen=True, slots=True)
class Watched:
    """A host whose daemons send their traces to the receiver."""

    host: SlotHost
    collector: OtlpReceiver

    def deployed(self) -> Deploy:
        """The last deploy, once it is over and recorded as told."""

        def told() -> Deploy | None:
            deploy = self.host.state().deploy
            return deploy if deploy is not None and deploy.is_over and deploy.reported else None

        return eventually("told", told, 240)

    def trace(self, deploy: Deploy) -> tuple[SeenSpan, list[SeenSpan]]:
        """The deploy's root and stages, in the order in which they began; each came once."""

        def whole() -> list[SeenSpan] | None:
            found = [one for one in tuple(self.collector.spans) if one.attributes.get("deploy.id") == deploy.id]
            return found if any(one.name == ROOT for one in found) else None

        found = eventually("the whole trace", whole, 60)
        (root,) = [one for one in found if one.name == ROOT]
        stages = [one for one in found if one is not root]
        assert len({one.name for one in stages}) == len(stages)
        return root, sorted(stages, key=lambda one: (one.start, GATES.index(one.name.removeprefix(f"{ROOT}."))))

    def logged(self, deploy: Deploy) -> list[dict[str, Any]]:
        """The log's events of the deploy, in their order."""
        lines = (self.host.bus.data / "logs" / "clawbus.log").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if ROOT in line]
        return [one for one in found if one["event"].startswith(ROOT) and one["deploy"] == deploy.id]


@pytest.fixture(name="watched", scope="module")
def _watched() -> Iterator[Watched]:
    with collecting() as collector:
        tables = f'[agents.echo]\nprovider = "echo"\n[telemetry]\notlp_endpoint = "{collector.url}"\n'
        host = SlotHost(tables, {**PATIENT, "bake_s": BAKE_S})
        try:
            host.begin()
            yield Watched(host, collector)
        finally:
            host.close()


def check_stages(deploy: Deploy, root: SeenSpan, stages: list[SeenSpan]) -> None:
    """Each stage is the root's child, within it, not before the one before it, and says what state.json says."""
    common = {
        "deploy.id": deploy.id, "release.from": deploy.from_release[:12], "release.to": deploy.to_release[:12],
        "deploy.slot": deploy.to_slot,
    }  # fmt: skip
    assert {one.trace for one in stages} == {root.trace}
    assert {one.parent for one in stages} == {root.id}
    assert root.parent == ""
    assert {one.kind for one in (*stages, root)} == {INTERNAL}
    assert root.attributes.items() >= {**common, "deploy.state": deploy.state}.items()
    assert root.resource["service.name"] == "clawbus"
    assert [root.start, root.end] == [deploy.started_at * 1_000_000, (deploy.ended_at or 0) * 1_000_000]
    for before, after in pairwise(stages):
        assert before.end <= after.start
    for one in stages:
        gate = deploy.gate(one.name.removeprefix(f"{ROOT}."))
        assert root.start <= one.start <= one.end <= root.end
        assert [one.start, one.end] == [(gate.since or 0) * 1_000_000, (gate.ended or 0) * 1_000_000]
        assert one.attributes.items() >= {**common, "gate.status": gate.status}.items()
        measured = {name for name in one.attributes if name.startswith("gate.measured.")}
        assert measured == {f"gate.measured.{name}" for name in gate.measured}
        limits = {name for name in one.attributes if name.startswith("gate.limit.")}
        assert limits == {f"gate.limit.{name}" for name in gate.limit}
        assert one.events == ("started", gate.status)
        assert one.error == (gate.reason if gate.status == "fail" else None)


def took_s(span: SeenSpan) -> float:
    return (span.end - span.start) / 1e9


def test_a_deploy_that_passes_is_told_stage_by_stage_as_a_trace_and_as_log_events(watched: Watched) -> None:
    said = watched.host.bus.cli("deploy", "start", watched.host.variant().name, timeout_s=300)
    assert said.ok, said.envelope
    deploy = watched.deployed()
    root, stages = watched.trace(deploy)
    check_stages(deploy, root, stages)
    ran = ["preflight", "warm", "callback_probe", "drain", "cutover", "bake"]
    assert [one.name for one in stages] == [f"{ROOT}.{name}" for name in ran]
    assert (root.error, root.attributes["deploy.state"]) == (None, "passed")
    warm, probe, cutover, bake = stages[1], stages[2], stages[4], stages[5]
    assert took_s(warm) >= 0.3
    assert took_s(probe) >= 0.001 * deploy.gate("callback_probe").measured["interrupted"]["took_ms"]
    assert took_s(cutover) > 0
    assert took_s(bake) >= BAKE_S
    assert bake.attributes["gate.measured.checks"] >= 1
    logged = watched.logged(deploy)
    assert [(one["event"], one["status"]) for one in logged] == [
        *((f"{ROOT}.{name}", status) for name in ran for status in ("running", "pass")), (ROOT, "passed"),
    ]  # fmt: skip
    assert {(one["release_from"], one["release_to"]) for one in logged} == {
        (deploy.from_release[:12], deploy.to_release[:12])
    }
    assert logged[-1]["took_ms"] == (deploy.ended_at or 0) - deploy.started_at
    assert (
        next(one for one in logged if one["event"] == f"{ROOT}.bake" and one["status"] == "pass")["measured"]["checks"]
        >= 1
    )
    watched.host.ready()


@pytest.mark.parametrize("who", ["the operator", "the standby"])
def test_a_rollback_is_told_by_the_daemon_that_serves_afterwards(watched: Watched, who: str) -> None:
    watched.host.ready()
    assert watched.host.bus.cli("deploy", "start", watched.host.variant(f"# {who}").name, "--detach").ok

    def baking() -> Deploy | None:
        deploy = watched.host.state().active
        return deploy if deploy is not None and deploy.gate("bake").since is not None else None

    begun = eventually("bake", baking, 240)
    if who == "the operator":
        with watched.host.bus.client() as client:
            client.deploy("rollback", {"by": "a test"})
    else:
        # The state is written before the log: a daemon that dies between the two has not logged the beginning of its bake.
        eventually(
            "the bake's beginning in the log",
            lambda: any(one["event"] == f"{ROOT}.bake" for one in watched.logged(begun)),
        )
        watched.host.kill(begun.to_slot)
    deploy = watched.deployed()
    assert deploy.state == "rolled_back"
    root, stages = watched.trace(deploy)
    check_stages(deploy, root, stages)
    assert [one.name for one in stages] == [f"{ROOT}.{name}" for name in GATES]
    assert (stages[-2].attributes["gate.status"], stages[-1].attributes["gate.status"]) == ("fail", "pass")
    assert root.error == deploy.reason
    logged = [(one["event"], one["status"]) for one in watched.logged(deploy)]
    assert logged[-4:] == [
        (f"{ROOT}.bake", "running"),
        (f"{ROOT}.bake", "fail"),
        (f"{ROOT}.rollback", "pass"),
        (ROOT, "rolled_back"),
    ]
    assert len(logged) == len(set(logged))
    watched.host.ready()
