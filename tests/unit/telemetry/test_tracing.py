"""Spans: what a bus tells of a message's life, and what the exporter does with it when things go wrong."""

import importlib.util
import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from daemon.config.models import Config, Telemetry
from daemon.core.errors import ConfigError, PermanentDeliveryError
from daemon.core.message_verbs import RequeueDead
from daemon.telemetry import tracing_otel
from daemon.telemetry.context import TraceContext, new_context, parse
from daemon.telemetry.spans import Event, Role, Span
from daemon.telemetry.tracing import NoTracer, build_tracer, check_extra
from daemon.telemetry.tracing_otel import OtelTracer
from tests.support.bus_kit import AGENT, SECONDS, BusKit, until
from tests.support.clock import START
from tests.support.fake_agent import claims_and_dies, echo
from tests.support.otlp import collecting

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Recorder:
    """A tracer that keeps what it is given."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.ratio: float | None = ratio
        self.spans: list[Span] = []

    def emit(self, span: Span) -> None:
        self.spans.append(span)

    async def aclose(self) -> None:
        """Nothing to export."""

    def names(self, trace: str) -> list[str]:
        return [span.name for span in self.spans if span.context.trace_id == trace]

    def one(self, name: str, message_id: str | None = None) -> Span:
        (found,) = [
            span
            for span in self.spans
            if span.name == name and message_id in (None, span.attributes["messaging.message.id"])
        ]
        return found


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    return BusKit(tmp_path / "data")


async def traceparent(kit: BusKit, message_id: str) -> str | None:
    return (await kit.message(message_id))["traceparent"]


@pytest.mark.anyio
async def test_the_row_carries_the_context_of_its_acceptance(kit: BusKit) -> None:
    async with kit.running() as bus:
        recorder = Recorder()
        bus.telemetry.tracer = recorder
        await kit.send(message_id="m1", traceparent=f"00-{TRACE}-{CALLER}-01")
        await kit.send(message_id="m1", traceparent=f"00-{TRACE}-{'1' * 16}-01")  # again
        await kit.send(message_id="m2")
        accept, again, other = recorder.spans
        assert await traceparent(kit, "m1") == accept.context.header
        assert (accept.context.trace_id, accept.parent) == (TRACE, TraceContext(TRACE, CALLER, sampled=True))
        assert (accept.attributes["clawbus.duplicate"], again.attributes["clawbus.duplicate"]) == (False, True)
        assert other.parent is None
        assert await traceparent(kit, "m2") == other.context.header


@pytest.mark.anyio
@pytest.mark.parametrize(("given", "kept"), [(f"00-{TRACE}-{CALLER}-01",) * 2, ("not one", None), (None, None)])
async def test_without_tracing_a_row_carries_what_came(kit: BusKit, given: str | None, kept: str | None) -> None:
    async with kit.running():
        await kit.send(message_id="m1", traceparent=given)
        assert await traceparent(kit, "m1") == kept


@pytest.mark.anyio
async def test_a_retry_is_two_tries_in_one_trace(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", sweep={"backoff_base_s": 1.0, "max_tries": 2})
    recorder = Recorder()
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, claims_and_dies(kit.clock))
        async with kit.running() as bus:
            bus.telemetry.tracer = recorder
            await kit.send(message_id="m1")
            await until(lambda: kit.spawned() == 1)
            await kit.gone()
            while (await kit.message("m1"))["status"] == "pending":
                kit.advance(60)
                await kit.bus.sweeper.tick()
                await kit.settle()
            await until(lambda: len(kit.fake.sent) == 1)  # the sender is told
            await kit.settle()
        machine.cancel_scope.cancel()
    first, second = [span for span in recorder.spans if span.name == "turn"]
    assert (first.error, second.error) == ("retried", "dead_lettered")
    assert {event.name for event in first.events} == {"claimed", "retried"}
    waits = [span for span in recorder.spans if span.name == "wait"]
    assert waits[0].start == START
    assert waits[1].start > first.end, "the second wait begins after the back-off"
    assert len({span.context.trace_id for span in recorder.spans}) == 1
    assert recorder.one("deliver").error is None


@pytest.mark.anyio
async def test_a_series_is_a_trace_for_each_occurrence(kit: BusKit) -> None:
    recorder = Recorder()
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, echo(kit.clock))
        async with kit.running() as bus:
            bus.telemetry.tracer = recorder
            await kit.send(message_id="daily", recurrence="0 9 * * *")
            await until(lambda: len(kit.fake.sent) == 1)
            await kit.bus.sweeper.tick()
            await kit.settle()
            rearm = recorder.one("rearm")
            following = str(rearm.attributes["messaging.message.id"])
            assert (rearm.parent, rearm.attributes["clawbus.series"]) == (None, "daily")
            assert await traceparent(kit, following) is None
            kit.advance(24 * 3600)
            with anyio.fail_after(SECONDS):
                while len(kit.fake.sent) < 2:  # the old container is ended as idle first, and may take it with it
                    await kit.bus.sweeper.tick()
                    await kit.settle()
                    kit.advance(1)
            await kit.settle()
        machine.cancel_scope.cancel()
    rearm = next(span for span in recorder.spans if span.name == "rearm")
    following = str(rearm.attributes["messaging.message.id"])
    names = recorder.names(rearm.context.trace_id)
    assert names.count("deliver") == names.count("rearm") == 1
    turns = [span for span in recorder.spans if span.name == "turn" and span.context.trace_id == rearm.context.trace_id]
    assert {(span.parent, span.attributes["messaging.message.id"]) for span in turns} == {(rearm.context, following)}
    assert recorder.one("accept").context.trace_id != rearm.context.trace_id


@pytest.mark.anyio
async def test_a_dead_letter_and_its_requeue_stay_in_the_trace(kit: BusKit) -> None:
    recorder = Recorder()
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, echo(kit.clock))
        async with kit.running() as bus:
            bus.telemetry.tracer = recorder
            kit.fake.script["room"].append(PermanentDeliveryError("no such place"))
            await kit.send(message_id="m1")
            await until(lambda: len(kit.fake.calls) == 1)
            await kit.settle()
            (letter,) = (await kit.operations.dead_letters(None, None, 10))["letters"]
            await kit.operations.execute(RequeueDead(AGENT, "main", by="me", id=letter["id"]))
            await until(lambda: len(kit.fake.sent) == 1)
            await kit.settle()
        machine.cancel_scope.cancel()
    root = recorder.one("accept").context
    assert {span.context.trace_id for span in recorder.spans} == {root.trace_id}
    assert recorder.one("dead letter").error == "DELIVERY_PERMANENT"
    assert [span.error for span in recorder.spans if span.name == "deliver"] == ["DELIVERY_PERMANENT", None]
    sent = parse(kit.fake.sent[0].traceparent)
    assert sent == [span for span in recorder.spans if span.name == "deliver"][1].context


@pytest.mark.anyio
async def test_an_answer_to_nothing_is_a_trace_of_its_own(kit: BusKit) -> None:
    async with kit.running() as bus:
        recorder = Recorder()
        bus.telemetry.tracer = recorder
        await kit.send(message_id="m1")
        await kit.started()
        kit.agent().say(json.dumps({"text": "by the way"}))
        bus.delivery.poke(await kit.session())
        await until(lambda: len(kit.fake.sent) == 1)
        await kit.settle()
    deliver = recorder.one("deliver")
    assert deliver.parent is None
    assert deliver.context.trace_id != recorder.one("accept").context.trace_id


# --- the exporter


class Scripted(SpanExporter):
    """Does what the test says with each batch."""

    def __init__(self, *results: SpanExportResult | Exception) -> None:
        self.results = list(results)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        assert self.gate.wait(30)
        self.batches.append(len(spans))
        result = self.results.pop(0) if self.results else SpanExportResult.SUCCESS
        if isinstance(result, Exception):
            raise result
        return result

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture
def counts() -> Counter[str]:
    return Counter()


@pytest.fixture(autouse=True)
def _levels() -> Any:
    logger = logging.getLogger("opentelemetry")
    before = logger.level
    yield
    logger.setLevel(before)


def tracer(counts: Counter[str], exporter: SpanExporter) -> OtelTracer:
    def count(outcome: str, number: int) -> None:
        counts[outcome] += number

    return OtelTracer("http://127.0.0.1:1", 1.0, "install", count, exporter)


def span(**more: Any) -> Span:
    return Span("turn", new_context(None, 1.0), None, START, START + 5, **more)


@pytest.mark.anyio
async def test_a_collector_s_trouble_is_counted_and_told_once(counts: Counter[str]) -> None:
    failure = SpanExportResult.FAILURE
    exporter = Scripted(failure, ConnectionError("refused"), SpanExportResult.SUCCESS, SpanExportResult.SUCCESS)
    traces = tracer(counts, exporter)
    with capture_logs() as logs:
        for number in range(1, 5):
            traces.emit(span())
            await anyio.to_thread.run_sync(traces._provider.force_flush)
            await until(lambda n=number: len(exporter.batches) == n)
        await traces.aclose()
    assert counts == {"failed": 2, "exported": 2}
    assert [line["event"] for line in logs] == ["traces_not_exported", "traces_exported_again"]
    assert exporter.closed


@pytest.mark.anyio
async def test_what_does_not_fit_is_dropped_and_counted(counts: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_otel, "QUEUE", 300)
    exporter = Scripted()
    exporter.gate.clear()
    traces = tracer(counts, exporter)
    for _ in range(310):
        traces.emit(span())
    assert counts["dropped"] == 10
    exporter.gate.set()
    await traces.aclose()
    assert counts == {"dropped": 10, "exported": 300}


@pytest.mark.anyio
async def test_the_end_does_not_wait_for_a_collector_that_hangs(
    counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_otel, "_CLOSE_S", 0.05)
    exporter = Scripted()
    exporter.gate.clear()
    traces = tracer(counts, exporter)
    traces.emit(span())
    with anyio.fail_after(20):
        await traces.aclose()
    assert exporter.batches == []
    exporter.gate.set()
    await until(lambda: exporter.closed)


@pytest.mark.anyio
async def test_what_is_not_recorded_is_not_sent(counts: Counter[str]) -> None:
    exporter = Scripted()
    traces = tracer(counts, exporter)
    traces.emit(Span("turn", new_context(None, 0.0), None, START, START))
    await traces.aclose()
    assert (exporter.batches, counts) == ([], {})


@pytest.mark.anyio
async def test_a_span_arrives_as_it_was_told(counts: Counter[str]) -> None:
    parent = new_context(None, 1.0)
    told = Span(
        "deliver", new_context(parent, 1.0), parent, START, START + 5, Role.CLIENT,
        {"clawbus.agent": "a", "clawbus.attempt": 2, "clawbus.duplicate": True},
        (Event("sent", START + 3),), "DELIVERY_TRANSIENT",
    )  # fmt: skip
    with collecting() as collector:
        traces = build_tracer(collector.url, 1.0, "install", lambda outcome, n: counts.update({outcome: n}))
        traces.emit(told)
        await traces.aclose()
    (seen,) = collector.spans
    assert (seen.trace, seen.id, seen.parent) == (told.context.trace_id, told.context.span_id, parent.span_id)
    assert (seen.start, seen.end) == (START * 1_000_000, (START + 5) * 1_000_000)
    assert seen.attributes == told.attributes
    assert (seen.events, seen.error, seen.kind) == (("sent",), "DELIVERY_TRANSIENT", 3)
    assert (seen.resource["service.name"], seen.resource["service.instance.id"]) == ("clawbus", "install")
    assert counts == {"exported": 1}


# --- the extra


def test_traces_without_their_packages_are_a_clear_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def lacking(name: str, package: str | None = None) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError("No module named 'opentelemetry.exporter'", name="opentelemetry.exporter")
        return real(name, package)

    monkeypatch.setattr("daemon.telemetry.tracing.find_spec", lacking)
    check_extra("")  # nobody asks for them
    with pytest.raises(ConfigError, match="packages that send traces are not installed") as refused:
        build_tracer("http://127.0.0.1:4318", 1.0, "i", lambda *_: None)
    assert "locks/otel.txt" in refused.value.hint


def test_nobody_asked_is_no_tracer_and_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("opentelemetry", "daemon.telemetry.tracing_otel"))]:
        monkeypatch.delitem(sys.modules, name)
    assert isinstance(build_tracer("", 1.0, "i", lambda *_: None), NoTracer)
    assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    assert Config().telemetry == Telemetry()
