"""A message's life as one trace, of a real daemon with a real collector: over a restart, and whatever the collector does."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.support.agents import ECHO, command_agent, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.otlp import OtlpReceiver, SeenSpan, collecting
from tests.support.webhooks import free_port, post, receiving

Make = Callable[..., RealDaemon]

IN, OUT = "inbound-secret", "outbound-secret"
HOOK = """
[telemetry]
otlp_endpoint = "{collector}"

[channels.webhook]
listen = "127.0.0.1:{port}"

[channels.webhook.hooks.work]
agent = "prog"
session = "*"
secret = "{secret}"
reply_url = "{url}"
reply_secret = "{reply}"
"""
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PRODUCER, CONSUMER, CLIENT, INTERNAL = 4, 5, 3, 1


def hooked(make_daemon: Make, collector: OtlpReceiver, url: str) -> tuple[RealDaemon, str]:
    port = free_port()
    table = HOOK.format(collector=collector.url, port=port, secret=IN, url=url, reply=OUT)
    return make_daemon(obedient() + ECHO + table), f"http://127.0.0.1:{port}/hooks/work/s"


def other(url: str, number: int) -> str:
    """The same hook for another session: messages to one session may share a turn, and its answer."""
    return f"{url}{number}"


def whole(collector: OtlpReceiver, trace: str) -> dict[str, list[SeenSpan]] | None:
    """The trace, once every part of a life is in it."""
    found = collector.of(trace)
    return found if found.keys() >= {"accept", "wait", "spawn", "turn", "deliver"} else None


def test_a_life_is_one_trace_from_the_caller_to_the_receipt_over_a_restart(make_daemon: Make, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with collecting() as collector, receiving() as receiver:
        daemon, url = hooked(make_daemon, collector, receiver.url)
        daemon.start()
        caller = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        post(url, IN, f"hang {mark}", message_id="order-1", text=True, more=caller)
        eventually("in its turn", mark.exists)
        eventually("claimed", lambda: "claimed" in daemon.life("prog", "s", "order-1"))
        # What is still in the exporter's memory dies with it: its acceptance is told within a second or so.
        eventually("the acceptance is told", lambda: "accept" in collector.of(TRACE))
        daemon.kill()
        daemon.start()
        mark.with_name("mark.go").touch()
        (posted,) = eventually("posted", lambda: receiver.posts)
        spans = eventually("the whole trace", lambda: whole(collector, TRACE))
        assert daemon.stop() == 0
    (accept,), (wait,), (spawn,), (turn,), (deliver,) = (
        spans[name] for name in ("accept", "wait", "spawn", "turn", "deliver")
    )
    assert accept.parent == CALLER
    assert {one.parent for one in (wait, spawn, turn, deliver)} == {accept.id}
    assert accept.start <= wait.start <= spawn.start <= spawn.end <= wait.end == turn.start
    assert turn.start <= turn.end <= deliver.start <= deliver.end
    assert (turn.events, deliver.events) == (("claimed", "answered"), ("sent", "receipt_recorded"))
    assert [one.kind for one in (accept, wait, turn, deliver)] == [PRODUCER, INTERNAL, CONSUMER, CLIENT]
    assert {one.error for one in (accept, wait, spawn, turn, deliver)} == {None}
    assert turn.attributes["messaging.message.id"] == "order-1"
    assert (turn.attributes["clawbus.agent"], turn.attributes["clawbus.session"]) == ("prog", "s")
    assert turn.attributes["clawbus.incarnation"] == wait.attributes["clawbus.incarnation"]
    assert deliver.attributes["clawbus.channel"] == "webhook"
    assert deliver.resource["service.name"] == "clawbus"
    # The receiver goes on where we end.
    assert posted.headers["traceparent"] == f"00-{TRACE}-{deliver.id}-01"


def test_a_failed_send_and_the_next_are_in_the_trace(make_daemon: Make) -> None:
    with collecting() as collector, receiving(failures=1) as receiver:
        daemon, url = hooked(make_daemon, collector, receiver.url)
        daemon.start()
        post(url, IN, "say hello", message_id="order-2")
        eventually("taken", lambda: len(receiver.posts) == 2)
        delivers = eventually(
            "both sends",
            lambda: found if len(found := [s for s in collector.spans if s.name == "deliver"]) == 2 else None,
        )
        daemon.stop()
    (accept,) = [span for span in collector.spans if span.name == "accept"]
    assert accept.parent == "", "nobody called with a context: the trace begins here"
    first, second = sorted(delivers, key=lambda span: span.start)
    assert (first.error, first.events) == ("DELIVERY_TRANSIENT", ("delivery_failed",))
    assert (second.error, second.attributes["clawbus.attempt"]) == (None, 2)
    assert {first.trace, second.trace} == {accept.trace}
    sent = [one.headers["traceparent"].split("-")[2] for one in receiver.posts]
    assert sent == [first.id, second.id]


def test_an_unsampled_caller_gets_no_spans_and_its_context_goes_on(make_daemon: Make) -> None:
    with collecting() as collector, receiving() as receiver:
        daemon, url = hooked(make_daemon, collector, receiver.url)
        daemon.start()
        post(url, IN, "say quiet", message_id="quiet", more={"traceparent": f"00-{TRACE}-{CALLER}-00"})
        post(other(url, 2), IN, "say loud", message_id="loud")
        eventually("both", lambda: len(receiver.posts) == 2)
        eventually("the loud one", lambda: "deliver" in {span.name for span in collector.spans})
        daemon.stop()
    assert collector.of(TRACE) == {}
    quiet = next(one for one in receiver.posts if one.json["in_reply_to"] == "quiet")
    assert quiet.headers["traceparent"].split("-")[1] == TRACE
    assert quiet.headers["traceparent"].endswith("-00")


def test_a_collector_that_hangs_or_is_away_disturbs_nothing(make_daemon: Make) -> None:
    with collecting("hang") as collector, receiving() as receiver:
        daemon, url = hooked(make_daemon, collector, receiver.url)
        daemon.start()
        for number in range(5):
            post(other(url, number), IN, f"say {number}", message_id=f"m{number}")
        eventually("all posted", lambda: len(receiver.posts) == 5)
        eventually("the collector was asked", lambda: collector.requests)
        assert daemon.stop(60) == 0, "the end does not wait for a collector that hangs forever"
        assert "daemon_stopped" in daemon.log_tail()


def test_without_tracing_a_context_passes_through_unchanged(make_daemon: Make) -> None:
    with collecting() as collector, receiving() as receiver:
        daemon, url = hooked(make_daemon, collector, receiver.url)
        daemon.configure(daemon.config.read_text().partition("\n")[2].replace(collector.url, ""))
        daemon.start()
        caller = f"00-{TRACE}-{CALLER}-01"
        post(url, IN, "say on", message_id="on", more={"traceparent": caller})
        post(other(url, 2), IN, "say off", message_id="off", more={"traceparent": "not one"})
        eventually("posted", lambda: len(receiver.posts) == 2)
        daemon.stop()
        given = {one.json["in_reply_to"]: one.headers.get("traceparent") for one in receiver.posts}
        assert given == {"on": caller, "off": None}
        assert collector.requests == 0


def test_a_running_daemon_is_scraped_over_both_sockets(make_daemon: Make) -> None:
    port = free_port()
    daemon = make_daemon(obedient() + ECHO + f'\n[telemetry]\nlisten = "127.0.0.1:{port}"\n')
    daemon.start()
    daemon.ask("say hello", agent="prog", session="s")
    remote = f"http://127.0.0.1:{port}"

    def counted() -> str | None:
        text = httpx.get(f"{remote}/metrics", trust_env=False, timeout=60).text
        return text if 'clawbus_answers_delivered_total{agent="prog",channel="local"} 1.0' in text else None

    text = eventually("counted", counted)
    assert 'clawbus_messages_accepted_total{agent="prog",channel="local"} 1.0' in text
    assert 'clawbus_container_spawns_total{agent="prog",outcome="started"} 1.0' in text
    assert 'clawbus_containers{phase="running"} 1.0' in text
    assert "clawbus_ready 1.0" in text
    ready = httpx.get(f"{remote}/readyz", trust_env=False, timeout=60)
    assert (ready.status_code, {check["state"] for check in ready.json()["result"]["checks"]}) == (200, {"ok"})
    assert httpx.get(f"{remote}/healthz", trust_env=False, timeout=60).status_code == 200
    assert httpx.get(f"{remote}/v1/status", trust_env=False, timeout=60).status_code == 404, "nothing to operate here"
    assert httpx.post(f"{remote}/metrics", trust_env=False, timeout=60).status_code == 405
    transport = httpx.HTTPTransport(uds=str(daemon.socket))
    with httpx.Client(transport=transport, base_url="http://clawbus", trust_env=False, timeout=60) as local:
        assert "clawbus_build_info" in local.get("/metrics").text
        openmetrics = local.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.text.endswith("# EOF\n")
        assert json.loads(local.get("/readyz").text)["result"]["started"] is True
    daemon.at_rest = True


TOOLS = """
import json, sys
json.load(sys.stdin)
for name in ("search", "write\\u001b[31m"):
    print(json.dumps({"type": "tool", "name": name, "timeout_s": 60}))
    print(json.dumps({"type": "tool_end"}))
print(json.dumps({"type": "message", "text": "done"}))
"""


def test_tools_are_children_of_their_turn_and_are_counted(make_daemon: Make) -> None:
    with collecting() as collector:
        table = command_agent("tools", (sys.executable, "-I", "-S", "-c", TOOLS))
        daemon = make_daemon(table + f'[telemetry]\notlp_endpoint = "{collector.url}"\n')
        daemon.start()
        assert daemon.people("send", "work", "-a", "tools", "-s", "s", "--wait", "60").strip() == "done"
        spans = eventually("the turn and its tools", lambda: _turn_with_tools(collector))
        measured = daemon.metrics()
        assert daemon.stop() == 0
    turn, *tools = spans
    assert [one.name for one in tools] == ["execute_tool search", "execute_tool write"]
    for tool in tools:
        assert (tool.parent, tool.trace, tool.kind, tool.error) == (turn.id, turn.trace, INTERNAL, None)
        assert turn.start <= tool.start <= tool.end <= turn.end
        assert tool.attributes["gen_ai.operation.name"] == "execute_tool"
        assert tool.attributes["gen_ai.agent.name"] == "tools"
    assert tools[0].attributes["gen_ai.tool.name"] == "search"
    assert turn.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert 'clawbus_tool_duration_seconds_count{agent="tools"} 2.0' in measured


def _turn_with_tools(collector: OtlpReceiver) -> list[SeenSpan] | None:
    turns = [span for span in tuple(collector.spans) if span.name == "turn"]
    tools = [span for span in tuple(collector.spans) if span.name.startswith("execute_tool")]
    return [*turns, *sorted(tools, key=lambda one: one.name)] if turns and len(tools) == 2 else None
