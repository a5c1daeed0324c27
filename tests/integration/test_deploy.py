"""Deploys with real releases, daemons and agents: forward and back under load, bad releases, and daemons that are killed."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Self

import pytest

from daemon.core.errors import DaemonDownError, DaemonSilentError
from tests.support.daemon import eventually
from tests.support.slot_host import SlotHost

SLOW = """
[agents.echo]
provider = "echo"
max_batch = 1
[agents.slow]
command = ["/bin/sh", "-c", "sleep 12; echo done"]
"""


@pytest.fixture(name="host", scope="module")
def _host() -> Iterator[SlotHost]:
    host = SlotHost(SLOW)
    try:
        host.begin()
        yield host
    finally:
        host.close()


@pytest.fixture(autouse=True)
def _said(request: pytest.FixtureRequest, host: SlotHost) -> Iterator[None]:
    """A failed test shows what both slots wrote."""
    yield
    request.node.add_report_section(
        "call", "slots", f"{host.state()}\nBLUE {host.log('blue')}\nGREEN {host.log('green')}"
    )


def test_a_standby_ends_when_it_is_asked_to_and_the_other_slot_goes_on(host: SlotHost) -> None:
    serving = host.state().serving
    standby = "green" if serving == "blue" else "blue"
    assert host.terminate(standby) == 0
    assert host.bus.ask("hello", agent="echo", session="first", wait_s=60)["text"] == "hello"
    host.wait_standby(standby)
    assert host.state().serving == serving


def test_a_missing_standby_is_named_at_once_and_an_abort_says_how_it_ended(host: SlotHost) -> None:
    host.kill("green", again=False)
    begun = host.bus.begin_cli("deploy", "start", host.variant("# no standby").name, "--detach")
    _, said = begun.communicate(timeout=60)
    assert (begun.returncode, "no standby answers in slot green" in said) == (0, True), said
    ended = host.bus.people("deploy", "abort")
    assert "aborted by" in ended
    assert "slot blue serves" in ended
    verified = host.bus.cli("deploy", "verify-runtime")
    assert (verified.ok, verified.result["verdict"]) == (True, "pass"), "an abort is no fault of what serves"
    assert [one["status"] for one in verified.result["standing"]] == ["pass", "pass"]
    host.releases().link("green", host.releases().find(host.first.name))
    host.start("green")
    host.ready()


class Load:
    """Senders of one session each that send one message after the other, and repeat one that was not taken, with its id."""

    def __init__(self, host: SlotHost, sessions: int) -> None:
        self._host = host
        self.sent: list[str] = []
        self.worst_s = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(f"load{n}",)) for n in range(sessions)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, session: str) -> None:
        number = 0
        while not self._over.wait(0.25):
            number += 1
            name = f"{session}-{number}"
            began = time.monotonic()
            while True:
                try:
                    self._host.bus.post(name, agent="echo", session=session, id=name)
                    break
                except (DaemonDownError, DaemonSilentError):  # between two daemons nobody listens: the sender repeats
                    if self._over.wait(0.02) and time.monotonic() - began > 30:
                        return
            self.worst_s = max(self.worst_s, time.monotonic() - began)
            self.sent.append(name)


def test_forward_and_back_under_load_nothing_is_lost_or_doubled_and_no_agent_is_ended(host: SlotHost) -> None:
    second = host.variant()
    turn = host.bus.post("begin", agent="slow", session="turn")
    before = host.bus.container("slow", "turn")
    with Load(host, 4) as load:
        for release, slot, epoch in ((second, "green", 2), (host.first, "blue", 3)):
            said = host.bus.cli("deploy", "start", release.name, timeout_s=120)
            assert said.ok, said.envelope
            assert (host.state().serving, host.state().epoch) == (slot, epoch)
            assert host.bus.status()["live"]["source"]["release"].startswith(release.name)
        count = len(load.sent)
    assert count > 10
    host.bus.answer(turn, agent="slow", session="turn", wait_s=60)
    tried = host.bus.rows("slow", "turn", "SELECT incarnation FROM attempts")
    assert [one["incarnation"] for one in tried] == [before["incarnation"]], "its turn went on through both"

    def answers() -> Counter[str]:
        return Counter(str(one["in_reply_to"]) for one in host.bus.entries())

    eventually("every answer", lambda: set(load.sent) <= answers().keys(), 60)
    found = answers()
    assert {name: found[name] for name in load.sent if found[name] != 1} == {}
    assert host.bus.cli("deploy", "verify-runtime").result["verdict"] == "pass"
    text = host.bus.metrics()
    assert 'clawbus_deploy_state{state="passed"} 1.0' in text
    assert f"clawbus_serving_epoch {host.state().epoch:.1f}" in text
    (worker,) = host.bus.cli("worker", "list").result["workers"]
    assert (worker["slot"], worker["epoch"], worker["release"]) == ("blue", 3, host.state().release)


BAD = {
    "its agents do not answer": ("container_runner/providers/echo.py", "raise SystemExit('bad agent')", "callback_probe"),
    "does not serve": ("daemon/app/main.py", "def _conductor(bus, lease, signals):\n    if lease: raise RuntimeError('bad')", "cutover"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_release_is_blocked_or_taken_back_by_itself(host: SlotHost, kind: str) -> None:
    file, edit, gate = BAD[kind]
    host.ready()
    before = host.state()
    said = host.bus.cli("deploy", "start", host.variant(edit, file).name, timeout_s=120)
    state = host.state()
    assert not said.ok
    assert state.deploy is not None
    assert state.deploy.gate(gate).status == "fail", state.deploy
    assert (state.serving, state.release) == (before.serving, before.release)
    assert said.error == ("DEPLOY_ROLLED_BACK" if gate == "cutover" else "DEPLOY_FAILED")
    serving = before.serving
    assert serving is not None
    host.releases().link("green" if serving == "blue" else "blue", host.releases().find(host.first.name))
    host.ready()
    assert host.bus.ask(kind, agent="echo", session="after", wait_s=60)["text"] == kind


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_daemon_that_goes_in_the_bake_is_taken_back(host: SlotHost, how: str) -> None:
    host.configure(60.0)
    host.ready()
    for slot in ("blue", "green"):  # the new length of the bake is read at a start
        host.kill(slot)
    host.ready()
    before = host.state()
    old = before.serving
    assert old is not None
    new = "green" if old == "blue" else "blue"
    release = host.variant(f"# {how}")
    assert host.bus.cli("deploy", "start", release.name, "--detach").ok
    eventually("bake", lambda: (d := host.state().active) is not None and d.gate("bake").status == "running", 60)
    began = time.monotonic()
    if how == "hangs":
        host.stop(new)
    else:
        host.kill(new)
    eventually("taken back", lambda: host.state().serving == old, 30)
    took = time.monotonic() - began
    state = host.state()
    assert state.deploy is not None
    assert (state.deploy.state, state.epoch, state.release) == ("rolled_back", before.epoch + 2, before.release)
    assert host.bus.cli("deploy", "verify-runtime").error == "DEPLOY_ROLLED_BACK"
    assert took < 30
    host.releases().link(new, host.releases().find(host.first.name))
    host.configure(0.5)
    host.ready()
    assert host.bus.ask(how, agent="echo", session="after", wait_s=60)["text"] == how


def test_the_tool_is_killed_and_the_deploy_goes_on_and_the_old_daemon_is_killed_and_it_has_failed(
    host: SlotHost,
) -> None:
    host.ready()
    before = host.state()
    release = host.variant("# killed tool")
    tool = host.bus.begin_cli("deploy", "start", release.name)
    eventually("warm", lambda: (d := host.state().active) is not None and d.gate("warm").since is not None, 30)
    tool.kill()
    tool.communicate(timeout=60)
    assert before.serving is not None
    host.kill(before.serving)
    eventually(
        "failed", lambda: (d := host.state().deploy) is not None and d.to_release[:12] == release.name and d.is_over, 30
    )
    state = host.state()
    assert state.deploy is not None
    assert (state.deploy.state, state.serving, state.epoch) == ("failed", before.serving, before.epoch)
    host.ready()
    second = host.bus.begin_cli("deploy", "start", release.name)
    eventually("warm", lambda: (d := host.state().active) is not None and d.gate("warm").since is not None, 30)
    second.kill()
    second.communicate(timeout=60)
    eventually("passed", lambda: (d := host.state().deploy) is not None and d.state == "passed", 60)
    assert host.state().epoch == before.epoch + 1
