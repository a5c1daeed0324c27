"""Deploys with real releases, daemons and agents: forward and back under load, bad releases, and daemons that are killed."""

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemon.core.slots import SlotState
from daemon.deploy.releases import schema_versions
from daemon.store.folder_lock import lock_folder
from tests.support.daemon import eventually
from tests.support.slot_host import SlotHost
from tests.support.slot_load import Load
from tests.support.webhooks import free_port, post

SECRET = "a secret of tests"
PORT = free_port()
SLOW = f"""
[agents.echo]
provider = "echo"
max_batch = 1
[agents.slow]
command = ["/bin/sh", "-c", "sleep 12; echo done"]
[docker]
host = "unix:///nonexistent/docker.sock"
[channels.webhook]
listen = "127.0.0.1:{PORT}"
[channels.webhook.hooks.down]
agent = "echo"
session = "*"
secret = "{SECRET}"
reply_url = "http://127.0.0.1:{free_port()}/answers"
reply_secret = "another {SECRET}"
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
    assert [one["status"] for one in verified.result["standing"]] == ["pass"] * 3
    host.releases().link("green", host.releases().find(host.first.name))
    host.start("green")
    host.ready()


def test_verify_runtime_probes_what_serves(host: SlotHost) -> None:
    said = host.bus.cli("deploy", "verify-runtime", "--probe", timeout_s=180)
    assert said.ok, said.envelope
    assert [(one["condition"], one["status"]) for one in said.result["standing"]][-1] == ("callback_probe", "pass")
    host.configure(probe_s=0.1)
    short = host.bus.cli("deploy", "verify-runtime", "--probe")
    host.configure()
    (found,) = [one for one in short.envelope["result"]["standing"] if one["status"] != "pass"]
    assert (short.error, found["condition"]) == ("DEPLOY_FAILED", "callback_probe")
    assert "the probe's daemon did not come within 0.1 s" in found["reason"]
    folder = host.bus.data / "deploy"
    assert [one.name for one in folder.iterdir()] == ["state.json"]
    lock = lock_folder(folder)
    try:
        said = host.bus.cli("deploy", "verify-runtime", "--probe")
    finally:
        os.close(lock)
    assert (said.error, said.envelope["result"]["verdict"]) == ("SOURCE_UNKNOWN", "unknown")
    assert "another process is probing" in said.envelope["result"]["standing"][-1]["reason"]


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
    load.check()
    assert host.bus.cli("deploy", "verify-runtime").result["verdict"] == "pass"
    text = host.bus.metrics()
    assert 'clawbus_deploy_state{state="passed"} 1.0' in text
    assert f"clawbus_serving_epoch {host.state().epoch:.1f}" in text
    (worker,) = host.bus.cli("worker", "list").result["workers"]
    assert (worker["slot"], worker["epoch"], worker["release"]) == ("blue", 3, host.state().release)


@dataclass(frozen=True, slots=True)
class Bad:
    """A bad release: the code at the end of one of its files, its manifest, and what becomes of its deploy.

    The command is killed in the gate `killed_in`.
    """

    gate: str
    reason: str
    edit: str = "# bad"
    file: str = "daemon/cli/version.py"
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    killed_in: str = ""
    state: str = "failed"


NEWER = {name: version + 1 for name, version in schema_versions().items()}
DIES = "import os, threading\ndef die(): threading.Timer({after}, os._exit, (1,)).start()\n"
BAD = {
    "does not start": Bad(
        "warm", "the release does not start", "def run_slot(*_): raise SystemExit('bad')", "daemon/app/slots.py",
        killed_in="preflight",
    ),
    "dies as a standby": Bad(
        "callback_probe", "standby did not answer", DIES.format(after=4) + "die()", "daemon/app/standby.py",
        killed_in="warm",
    ),
    "dies when it serves": Bad(
        "bake", "ended and was started again",
        DIES.format(after=1) + "_of = _conductor\ndef _conductor(*a): a[1] and die(); return _of(*a)", "daemon/app/main.py",
        killed_in="bake", state="rolled_back",
    ),
    "its agents do not answer": Bad(
        "callback_probe", "was given up", "async def bad(*_): raise RuntimeError('bad')\nEchoProvider.run = bad", "container_runner/providers/echo.py"
    ),
    "is ready and loses answers": Bad(
        "callback_probe", "its answer did not arrive",
        "async def one(*_): return Receipt()\nasync def many(_, all): return [Receipt() for _ in all]\n"
        "LocalChannel.deliver, LocalChannel.deliver_many, LocalChannel.deliver_inline = one, many, lambda *_: None",
        "daemon/channels/local.py", killed_in="callback_probe",
    ),
    "is slow": Bad(
        "callback_probe", "a round trip to a running agent takes",
        "import anyio\n_run = EchoProvider.run\nasync def run(*a):\n    await anyio.sleep(1.2)\n    return await _run(*a)\n"
        "EchoProvider.run = run", "container_runner/providers/echo.py",
    ),
    "does not serve": Bad(
        "cutover", "", "def _conductor(bus, lease, signals):\n    if lease: raise RuntimeError('bad')",
        "daemon/app/main.py", state="rolled_back",
    ),
    "has a newer schema": Bad(
        "preflight", "--no-rollback accepts that", manifest={"schema_versions": NEWER}
    ),
    "its images cannot be checked, Docker is away": Bad(
        "preflight", "images:", manifest={"images": {"agent:1": f"sha256:{'0' * 64}"}}
    ),
}  # fmt: skip


def over(host: SlotHost, release: str) -> SlotState | None:
    """The state once the release's deploy is over."""
    state = host.state()
    return (
        state if state.deploy is not None and state.deploy.is_over and state.deploy.to_release[:12] == release else None
    )


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_release_is_blocked_or_taken_back_by_itself(host: SlotHost, kind: str) -> None:
    bad = BAD[kind]
    host.ready()
    before = host.state()
    assert before.serving is not None
    try:
        release = host.variant(bad.edit, bad.file, bad.manifest).name
        tool = host.bus.begin_cli("deploy", "start", release)
        if bad.killed_in:
            eventually(
                bad.killed_in,
                lambda: (
                    (d := host.state().deploy) is not None
                    and d.to_release[:12] == release
                    and (d.is_over or d.gate(bad.killed_in).since is not None)
                ),
            )
            tool.kill()
            tool.communicate(timeout=60)
        else:
            said = host.bus.end_cli(tool, 120)
            assert said.error == ("DEPLOY_ROLLED_BACK" if bad.state == "rolled_back" else "DEPLOY_FAILED")
        state = eventually("over", lambda: over(host, release), 120)
        assert state.deploy is not None
        assert state.deploy.state == bad.state, state.deploy
        failed = [one.name for one in state.deploy.gates if one.status == "fail"]
        # One that dies soon after it serves may do so before its bake has begun.
        assert failed == [bad.gate] or (kind == "dies when it serves" and failed == ["cutover"]), state.deploy
        assert bad.reason in state.deploy.reason
        assert (state.serving, state.release) == (before.serving, before.release)
    finally:
        host.releases().link("green" if before.serving == "blue" else "blue", host.releases().find(host.first.name))
    host.ready()
    assert host.bus.ask(kind, agent="echo", session="after", wait_s=60)["text"] == kind


def placed(full: Path) -> bool:
    """Put the device in the place of the file that the daemon writes before it replaces the state."""
    with contextlib.suppress(FileExistsError):
        full.symlink_to("/dev/full")
        return True
    return False


def test_a_full_disk_ends_the_deploy_and_not_the_daemon_that_serves(host: SlotHost) -> None:
    """/dev/full answers ENOSPC, so whoever replaces the state meets a full disk."""
    host.ready()
    before = host.state()
    release = host.variant("# full disk").name
    full = host.bus.data / "deploy" / "state.json.new"
    assert host.bus.cli("deploy", "start", release, "--detach").ok
    eventually("warm", lambda: (d := host.state().active) is not None and d.gate("warm").since is not None, 90)
    eventually("a moment between two states", lambda: placed(full), 90)
    assert host.bus.ask("full", agent="echo", session="full", wait_s=60)["text"] == "full"
    eventually("noticed", lambda: "deploy_state_failing" in host.log(str(before.serving)), 60)
    full.unlink()
    state = eventually("over", lambda: over(host, release), 120)
    assert state.deploy is not None
    assert (state.deploy.state, state.serving, state.epoch) == ("failed", before.serving, before.epoch)
    assert "No space left on device" in state.deploy.reason


def finding(host: SlotHost, code: str) -> dict[str, Any] | None:
    found = host.bus.cli("doctor").envelope["result"]["diagnoses"]
    return next((one for one in found if one["code"] == code), None)


def test_a_damaged_record_of_slots_is_found_and_its_repair_brings_back_the_slot_that_served(host: SlotHost) -> None:
    host.ready()
    before, path = host.state(), host.bus.data / "deploy" / "state.json"
    assert before.serving is not None
    path.write_text("{")
    one = eventually("found while it serves", lambda: finding(host, "SLOT_STATE"), 30)
    host.terminate(before.serving)
    host.wait_standby(before.serving)
    down = eventually("found while nobody serves", lambda: finding(host, "DAEMON_DOWN"), 30)
    assert down["cause"] == "SLOT_STATE"
    subprocess.run(shlex.split(one["command"]), check=True, timeout=60)
    host.ready()
    after = host.state()
    assert (after.serving, after.release, after.epoch) == (before.serving, before.release, before.epoch)
    path.unlink()
    eventually("written again while it serves", path.exists, 60)
    assert host.state() == after
    assert finding(host, "SLOT_STATE") is None


def test_a_slot_whose_release_does_not_start_is_found_and_repaired(host: SlotHost) -> None:
    host.ready()
    state = host.state()
    slot = "green" if state.serving == "blue" else "blue"
    broken = host.variant("raise SystemExit('broken')", "daemon/cli/main.py")
    assert host.bus.cli("release", "link", slot, broken.name).ok
    one = eventually("found", lambda: finding(host, "STANDBY_ABSENT"), 60)
    command = next(choice["command"] for choice in one["choices"] if " release link " in choice["command"])
    subprocess.run(shlex.split(command.replace("clawbus", host.bus.command, 1)), check=True, timeout=60)
    host.wait_standby(slot, (state.release or "")[:12])
    assert finding(host, "STANDBY_ABSENT") is None


def test_a_slot_that_is_to_serve_and_whose_release_is_gone_is_found_and_repaired(host: SlotHost) -> None:
    """The standby waits for a deploy, a deploy needs the daemon that serves, and that cannot start."""
    host.ready()
    state = host.state()
    assert state.serving is not None
    link = host.releases().slot_link(state.serving)
    assert host.bus.cli("release", "link", state.serving, host.first.name).error == "DEPLOY_STATE", "it serves"
    host.terminate(state.serving, again=False)
    assert host.bus.cli("release", "link", state.serving, host.first.name).error == "DEPLOY_STATE", "it is whole"
    link.unlink()
    link.symlink_to("../releases/gone")
    one = eventually("found", lambda: finding(host, "SLOT_STUCK"), 60)
    assert (finding(host, "DAEMON_DOWN") or {})["cause"] == "SLOT_STUCK"
    subprocess.run(shlex.split(one["command"].replace("clawbus", host.bus.command, 1)), check=True, timeout=60)
    host.start(state.serving)
    host.ready()
    assert host.state() == state
    assert finding(host, "SLOT_STUCK") is None


def test_a_receiver_that_is_down_in_the_bake_is_named_and_a_second_deploy_is_refused(host: SlotHost) -> None:
    host.configure(bake_s=10.0)  # a receiver is down after five failures in a row, also where a try takes a second
    host.ready()
    for slot in ("blue", "green"):  # the new length of the bake is read at a start
        host.kill(slot)
    host.ready()
    for number in range(4):
        url = f"http://127.0.0.1:{PORT}/hooks/down/s{number}"
        assert post(url, SECRET, "event", message_id="while-down", text=True).status_code == 202
    begun = host.bus.cli("deploy", "start", host.variant("# receiver down").name, "--detach")
    assert begun.ok
    assert host.bus.cli("deploy", "start", host.first.name).error == "DEPLOY_RUNNING"
    state = eventually("over", lambda: over(host, begun.result["deploy"]["to_release"][:12]), 60)
    assert state.deploy is not None
    assert state.deploy.state == "passed", state.deploy
    assert any("channel webhook" in one for one in state.deploy.gate("bake").measured["not_the_release"])
    host.configure()
    for slot in ("blue", "green"):
        host.kill(slot)
    host.ready()


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_daemon_that_goes_in_the_bake_is_taken_back(host: SlotHost, how: str) -> None:
    host.configure(bake_s=60.0)
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
    eventually("taken back", lambda: host.state().serving == old, 90)
    took = time.monotonic() - began
    state = host.state()
    assert state.deploy is not None
    assert (state.deploy.state, state.epoch, state.release) == ("rolled_back", before.epoch + 2, before.release)
    assert host.bus.cli("deploy", "verify-runtime").error == "DEPLOY_ROLLED_BACK"
    assert took < 30
    host.releases().link(new, host.releases().find(host.first.name))
    host.configure()
    host.ready()
    assert host.bus.ask(how, agent="echo", session="after", wait_s=60)["text"] == how


def test_the_tool_is_killed_and_the_deploy_goes_on_and_the_old_daemon_is_killed_and_it_has_failed(
    host: SlotHost,
) -> None:
    host.ready()
    before = host.state()
    release = host.variant("# killed tool")
    tool = host.bus.begin_cli("deploy", "start", release.name)
    eventually("warm", lambda: (d := host.state().active) is not None and d.gate("warm").since is not None, 90)
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
    eventually("warm", lambda: (d := host.state().active) is not None and d.gate("warm").since is not None, 90)
    second.kill()
    second.communicate(timeout=60)
    eventually("passed", lambda: (d := host.state().deploy) is not None and d.state == "passed", 60)
    assert host.state().epoch == before.epoch + 1


def test_a_breach_with_nobody_in_the_prior_slot_leaves_the_new_release_serving(host: SlotHost) -> None:
    host.configure(bake_s=60.0, cutover_s=2.0)
    host.ready()
    for slot in ("blue", "green"):  # the new limits are read at a start
        host.kill(slot)
    host.ready()
    before = host.state()
    assert before.serving is not None
    new = "green" if before.serving == "blue" else "blue"
    release = host.variant("# nobody to go back to")
    assert host.bus.cli("deploy", "start", release.name, "--detach").ok
    eventually("bake", lambda: (d := host.state().active) is not None and d.gate("bake").status == "running", 60)
    host.wait_standby(before.serving)
    host.kill(before.serving, again=False)
    refused = host.bus.cli("deploy", "rollback")
    assert refused.error == "DEPLOY_STATE"
    assert f"systemctl start clawbus@{before.serving}" in refused.envelope["fix"]
    host.kill(new)
    state = eventually("over", lambda: over(host, release.name), 90)
    assert state.deploy is not None
    assert (state.deploy.state, state.serving, state.epoch) == ("unhealthy", new, before.epoch + 1)
    assert state.deploy.gate("rollback").status == "fail"
    eventually("it serves", host.bus.listens, 60)
    assert host.bus.ask("on", agent="echo", session="after", wait_s=60)["text"] == "on"
    said = host.bus.cli("deploy", "verify-runtime")
    assert (said.code, f"no daemon answers in slot {before.serving}" in said.envelope["error"]["message"]) == (1, True)
    host.configure()
    host.start(before.serving)
    host.ready()


def test_a_new_daemon_that_was_stopped_and_stays_down_is_taken_back_by_hand(host: SlotHost) -> None:
    """Its stop was asked for, so nothing goes back by itself: the prior slot's standby does it when it is asked."""
    host.configure(bake_s=60.0)
    host.ready()
    for slot in ("blue", "green"):  # the new length of the bake is read at a start
        host.kill(slot)
    host.ready()
    before = host.state()
    assert before.serving is not None
    new = "green" if before.serving == "blue" else "blue"
    release = host.variant("# stopped in its bake")
    assert host.bus.cli("deploy", "start", release.name, "--detach").ok
    eventually("bake", lambda: (d := host.state().active) is not None and d.gate("bake").status == "running", 60)
    host.wait_standby(before.serving)
    assert host.terminate(new, again=False) == 0
    said = host.bus.cli("deploy", "rollback", timeout_s=60)
    assert said.ok, said.envelope
    assert (said.result["serving"], said.result["deploy"]["state"]) == (before.serving, "rolled_back")
    eventually("it serves", host.bus.listens, 60)
    assert host.bus.ask("back", agent="echo", session="after", wait_s=60)["text"] == "back"
    host.releases().link(new, host.releases().find(host.first.name))
    host.configure()
    host.start(new)
    host.ready()
