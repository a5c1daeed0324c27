"""Real containers under other hands than the daemon's, idle and in mid-turn; copies of the folder; another engine.

What holds after each: one container a session, the message answered once, no try charged without a container that ended with it
in hand, nobody's agent ended by a copy, `doctor` names what lasts and is quiet afterwards.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults import hands
from tests.faults.hands import quietly
from tests.faults.test_docker import PATIENT, in_mid_turn
from tests.support.agent_image import agent_image
from tests.support.agents import ECHO, command_agent
from tests.support.daemon import RealDaemon, eventually
from tests.support.docker_bus import docker, inspect
from tests.support.private_dockerd import PrivateDockerd

pytestmark = [pytest.mark.faults, pytest.mark.docker]

Make = Callable[..., RealDaemon]

KILLER = command_agent("killer", ("/bin/sh", "-c", "kill -9 $PPID; sleep 1"))


@pytest.fixture(scope="module")
def image(base_image: str) -> Iterator[str]:
    with agent_image(base_image) as tag:
        yield tag


@pytest.fixture
def daemon(make_daemon: Make, image: str) -> RealDaemon:
    tables = f'{ECHO}{PATIENT}{KILLER}\n[docker]\nimage = "{image}"\n'
    return make_daemon(tables, runtime="docker", sweep_keys="ceiling_s = 6.0\nclaim_stuck_s = 3.0\nmax_tries = 3")


# (blow, the most tries it may cost a message in hand). An end of the container with the message in hand costs one, as ever.
BLOWS = {
    "restart": (hands.restart, 1),
    "kill and start": (hands.kill_and_start, 1),
    "pause": (hands.pause, 1),
    "rename": (hands.rename, 0),
    "rm": (hands.remove, 1),
    "restart policy": (hands.policy_and_kill, 1),
    "prune": (hands.kill_and_prune, 1),
    "made again": (hands.make_again, 0),
}


def of_install(daemon: RealDaemon) -> list[dict[str, Any]]:
    """Every container with the folder's label, running or not."""
    listed = docker("ps", "-aq", "--no-trunc", "--filter", f"label=clawbus.install={daemon.install_id()}").split()
    return [found for one in listed for found in _inspected(one)]


def _inspected(container: str) -> list[dict[str, Any]]:
    """Its inspection; none when it was removed since it was listed."""
    done = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, timeout=120, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else []


def one_container(daemon: RealDaemon, session: str) -> bool:
    """Exactly the supervised one."""
    mine = [one for one in of_install(daemon) if one["Config"]["Labels"]["clawbus.session"] == session]
    live = [one for one in daemon.status()["incarnations"] if one["session"] == session]
    return [one["Id"] for one in mine] == [one["container_id"] for one in live]


def doctor(daemon: RealDaemon) -> dict[str, str]:
    """Its findings: code and repair."""
    said = daemon.cli("doctor")
    found = said.envelope["result"] or said.envelope["error"].get("detail") or {}
    return {one["code"]: one["command"].replace(f" --config {daemon.config}", "") for one in found["diagnoses"]}


def quiet(daemon: RealDaemon) -> bool:
    return doctor(daemon) == {}


@pytest.mark.parametrize("name", BLOWS)
def test_an_idle_container(daemon: RealDaemon, name: str) -> None:
    blow, _ = BLOWS[name]
    daemon.start()
    assert daemon.ask("before", agent="echo", session="s", wait_s=60)["text"] == "before"
    blow(daemon.container("echo", "s")["container_id"])
    message_id = daemon.post("after", agent="echo", session="s")
    if name == "pause":
        eventually("named", lambda: "CONTAINER_PAUSED" in doctor(daemon) or daemon.events("container_stuck"), 60)
    # A paused container that takes nothing is ended after a minute.
    assert daemon.answer(message_id, agent="echo", session="s", wait_s=150)["text"] == "after"
    assert daemon.message("echo", "s", message_id)["tries"] <= (1 if name == "pause" else 0)
    eventually("one container", lambda: one_container(daemon, "s"), 60)
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    assert len([one for one in daemon.entries() if one["in_reply_to"] == message_id]) == 1
    daemon.at_rest = True


@pytest.mark.parametrize("name", BLOWS)
def test_a_container_in_mid_turn(daemon: RealDaemon, name: str) -> None:
    blow, most = BLOWS[name]
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    blow(daemon.container("patient", "s")["container_id"])
    if name == "pause":
        eventually("named", lambda: "CONTAINER_PAUSED" in doctor(daemon) or daemon.events("container_stuck"), 60)
        # Its whole turn is a declared silence, a minute long.
        eventually("ended", lambda: daemon.events("container_stuck"), 150)
    finish()
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("settled", lambda: daemon.message("patient", "s", message_id)["status"] == "completed", 60)
    assert daemon.message("patient", "s", message_id)["tries"] <= most
    assert len([one for one in daemon.entries() if one["in_reply_to"] == message_id]) == 1
    eventually("one container", lambda: one_container(daemon, "s"), 60)
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    daemon.at_rest = True


def test_a_message_that_kills_its_runner_is_a_dead_letter_though_docker_restarts_it(daemon: RealDaemon) -> None:
    daemon.start()
    message_id = daemon.post("die", agent="killer", session="s")

    def given_up() -> bool:
        for one in of_install(daemon):
            quietly("update", "--restart=always", one["Id"])
        return daemon.message("killer", "s", message_id)["status"] == "failed"

    eventually("a dead letter", given_up, 120)
    assert daemon.message("killer", "s", message_id)["tries"] == 3
    eventually("no container is left working", lambda: one_container(daemon, "s"), 60)


@pytest.mark.parametrize(
    ("name", "code", "repair"),
    [
        ("restart", "CONTAINER_RESTARTED", "clawbus serve"),
        ("pause", "CONTAINER_PAUSED", "docker unpause"),
        ("rm", "GHOST_CONTAINER", "clawbus serve"),
        ("made again", "ORPHANED_CONTAINER", "clawbus serve"),
    ],
)
def test_doctor_names_it_while_the_daemon_is_down_and_its_repair_ends_it(
    daemon: RealDaemon, name: str, code: str, repair: str
) -> None:
    daemon.start()
    assert daemon.ask("before", agent="echo", session="s", wait_s=60)["text"] == "before"
    container = daemon.container("echo", "s")["container_id"]
    daemon.stop()
    BLOWS[name][0](container)
    found = doctor(daemon)
    assert found[code].startswith(repair), found
    if repair.startswith("docker"):
        docker(*found[code].split()[1:])
    daemon.start()
    assert daemon.ask("after", agent="echo", session="s", wait_s=60)["text"] == "after"
    eventually("one container", lambda: one_container(daemon, "s"), 60)
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    daemon.at_rest = True


def test_doctor_names_a_restart_policy_and_its_repair_ends_it(daemon: RealDaemon) -> None:
    daemon.start()
    assert daemon.ask("before", agent="echo", session="s", wait_s=60)["text"] == "before"
    container = daemon.container("echo", "s")["container_id"]
    daemon.stop()
    docker("update", "--restart=unless-stopped", container)
    command = doctor(daemon)["RESTART_POLICY"]
    docker(*command.split()[1:])
    assert "RESTART_POLICY" not in doctor(daemon)
    docker("update", "--restart=unless-stopped", container)
    daemon.start()
    eventually(
        "the daemon takes it away", lambda: inspect(container)["HostConfig"]["RestartPolicy"]["Name"] == "no", 60
    )
    assert daemon.container("echo", "s")["container_id"] == container, "the container goes on"
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    daemon.at_rest = True


# --- copies of the folder


@pytest.fixture
def copy(make_daemon: Make, daemon: RealDaemon) -> Callable[[], RealDaemon]:
    """A second daemon, on a copy of the first one's folder as it is now."""

    def make() -> RealDaemon:
        second = make_daemon(runtime="docker")
        second.config.write_text(
            daemon.config.read_text().replace(json.dumps(str(daemon.data)), json.dumps(str(second.data)))
        )
        shutil.copytree(daemon.data, second.data, ignore=shutil.ignore_patterns("*.sock", "clawbus.lock"))
        second.data.chmod(0o700)
        return second

    return make


def test_a_copy_leaves_a_working_agent_alone_and_holds_its_message(
    daemon: RealDaemon, copy: Callable[[], RealDaemon]
) -> None:
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    eventually("the claim is seen", lambda: daemon.rows("patient", "s", "SELECT 1 FROM attempts"), 60)
    container = daemon.container("patient", "s")["container_id"]
    before = inspect(container)["State"]["StartedAt"]
    second = copy()
    assert doctor(second)["COPIED_FOLDER"] == "clawbus serve"
    for _ in range(2):  # each start of the second one ended the first one's agents once
        second.start()
        assert second.install_id() != daemon.install_id()
        assert "QUARANTINED" in doctor(second)
        assert second.cli("session", "kill", "patient", "s", "--reason", "a test").result["killed"] is False
        second.stop()
    assert inspect(container)["State"]["StartedAt"] == before
    assert not daemon.events("container_exited")
    finish()
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("settled", lambda: daemon.message("patient", "s", message_id)["status"] == "completed", 60)
    assert daemon.message("patient", "s", message_id)["tries"] == 0
    eventually("doctor of the original is quiet", lambda: quiet(daemon), 60)
    daemon.stop()
    # The original is gone, says the operator: the copy works on it, in a container of its own.
    (second.data / "agents" / "patient" / "go").touch()
    second.start()
    assert second.message("patient", "s", message_id)["tries"] == 0
    assert second.cli("session", "release", "patient", "s").ok
    assert second.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("doctor of the copy is quiet", lambda: quiet(second), 60)
    assert inspect(container)["State"]["Running"], "the original's container is still there"
    daemon.at_rest = second.at_rest = True


def test_a_copy_of_an_idle_install_works_beside_it(daemon: RealDaemon, copy: Callable[[], RealDaemon]) -> None:
    daemon.start()
    assert daemon.ask("one", agent="echo", session="s", wait_s=60)["text"] == "one"
    container = daemon.container("echo", "s")["container_id"]
    second = copy()
    second.start()
    assert second.ask("two", agent="echo", session="s", wait_s=60)["text"] == "two"
    assert second.container("echo", "s")["container_id"] != container
    assert daemon.ask("three", agent="echo", session="s", wait_s=60)["text"] == "three"
    assert daemon.container("echo", "s")["container_id"] == container
    for one in (daemon, second):
        eventually("doctor is quiet", lambda one=one: quiet(one), 60)
        one.at_rest = True


def test_a_snapshot_of_hard_links_is_no_offence_of_the_agents(daemon: RealDaemon) -> None:
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    eventually("the claim is seen", lambda: daemon.rows("patient", "s", "SELECT 1 FROM attempts"), 60)
    container = daemon.container("patient", "s")["container_id"]
    snapshot = daemon.root / "snapshot"
    subprocess.run(["cp", "-al", str(daemon.data), str(snapshot)], check=True, timeout=60)
    assert (snapshot / "central.db").stat().st_nlink == 2
    finish()
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("settled", lambda: daemon.message("patient", "s", message_id)["status"] == "completed", 60)
    assert daemon.message("patient", "s", message_id)["tries"] == 0
    daemon.stop()
    daemon.start()
    assert daemon.container("patient", "s")["container_id"] == container, "the same container goes on"
    assert daemon.show("patient", "s")["state"] != "quarantined"
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    shutil.rmtree(snapshot)
    daemon.at_rest = True


def test_a_restore_drill_beside_the_working_original(daemon: RealDaemon, make_daemon: Make) -> None:
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    eventually("the claim is seen", lambda: daemon.rows("patient", "s", "SELECT 1 FROM attempts"), 60)
    backup = daemon.root / "backup"
    assert daemon.cli("backup", str(backup)).ok
    second = make_daemon(runtime="docker")
    second.config.write_text(
        daemon.config.read_text().replace(json.dumps(str(daemon.data)), json.dumps(str(second.data)))
    )
    assert second.cli("restore", str(backup)).ok
    second.start()
    assert "QUARANTINED" in doctor(second)
    finish()
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    assert not daemon.events("container_exited")
    daemon.stop()
    refused = daemon.cli("restore", str(backup), "--replace")
    assert refused.error == "RESTORE_REFUSED", "its own container still runs"
    docker("rm", "-f", *(one["Id"] for one in of_install(daemon)))
    assert daemon.cli("restore", str(backup), "--replace").ok
    (daemon.data / "agents" / "patient" / "go").touch()  # made after the backup
    daemon.start()
    # Its own engine says that the container is gone: the message is worked on again at once, and nothing is charged.
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("settled", lambda: daemon.message("patient", "s", message_id)["status"] == "completed", 60)
    assert daemon.message("patient", "s", message_id)["tries"] == 0
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    daemon.at_rest = True


def test_a_copy_in_the_originals_place_waits_for_the_end_of_its_containers(daemon: RealDaemon) -> None:
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    eventually("the claim is seen", lambda: daemon.rows("patient", "s", "SELECT 1 FROM attempts"), 60)
    container = daemon.container("patient", "s")["container_id"]
    daemon.kill()
    before = daemon.data.rename(daemon.data.with_name("before"))
    shutil.copytree(before, daemon.data, ignore=shutil.ignore_patterns("*.sock", "clawbus.lock"))
    daemon.data.chmod(0o700)
    original = daemon.install_id()
    refused = daemon.refused()
    assert refused.error == "DATA_FOLDER"
    assert f"docker rm -f {container}" in refused.envelope["fix"]
    assert daemon.install_id() == original, "nothing has changed yet"
    assert inspect(container)["State"]["Running"], "an operator ends it, not the daemon"
    docker("rm", "-f", container)
    finish()
    daemon.start()
    assert daemon.install_id() != original
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    assert daemon.message("patient", "s", message_id)["tries"] == 0
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    daemon.at_rest = True


# --- another engine


@pytest.fixture
def private(image: str) -> Iterator[PrivateDockerd]:
    with PrivateDockerd() as dockerd:
        yield dockerd


def test_another_engine_is_no_witness_for_a_container_at_work(daemon: RealDaemon, private: PrivateDockerd) -> None:
    elsewhere = {"DOCKER_HOST": private.environ["DOCKER_HOST"]}
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    container = daemon.container("patient", "s")["container_id"]
    backup = daemon.root / "backup"
    assert daemon.cli("backup", str(backup)).ok
    # The shell means another engine than the daemon.
    daemon.environment.update(elsewhere)
    found = doctor(daemon)
    assert found["RUNTIME_CHANGED"] == "docker context ls"
    assert not {"GHOST_RUN", "GHOST_CONTAINER", "STALE_RUN"} & set(found)
    daemon.stop()
    assert doctor(daemon)["RUNTIME_CHANGED"] == "docker context ls"
    swept = daemon.cli("sweep", "stale", "--apply", "--older-than", "1s", "--reason", "a test")
    assert not swept.ok or swept.result["applied"] == 0, swept.envelope
    assert daemon.cli("restore", str(backup), "--replace").error == "RESTORE_REFUSED"
    refused = daemon.refused()
    assert refused.error == "RUNTIME_CHANGED"
    assert "docker.host" in refused.envelope["fix"]
    # The key makes service and shell mean the same.
    daemon.configure(
        daemon.config.read_text()
        .split("\n", 1)[1]
        .replace("[docker]", '[docker]\nhost = "unix:///var/run/docker.sock"')
    )
    daemon.start()
    assert inspect(container)["State"]["Running"]
    finish()
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("settled", lambda: daemon.message("patient", "s", message_id)["status"] == "completed", 60)
    assert daemon.message("patient", "s", message_id)["tries"] == 0
    assert daemon.container("patient", "s")["container_id"] == container
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    assert daemon.cli("install", "show").result["engine"]["host"].endswith("(docker.host)")
    daemon.at_rest = True


def test_an_engine_that_is_gone_for_good_is_given_up_by_hand(daemon: RealDaemon, private: PrivateDockerd) -> None:
    daemon.environment["DOCKER_HOST"] = private.environ["DOCKER_HOST"]
    private.copy_image(_image_of(daemon))
    daemon.start()
    message_id, _ = in_mid_turn(daemon)
    eventually("the claim is seen", lambda: daemon.rows("patient", "s", "SELECT 1 FROM attempts"), 60)
    daemon.kill()
    private.close()
    del daemon.environment["DOCKER_HOST"]
    assert daemon.refused().error == "RUNTIME_CHANGED"
    assert daemon.cli("install", "renew").ok
    (daemon.data / "agents" / "patient" / "go").touch()
    daemon.start()
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("settled", lambda: daemon.message("patient", "s", message_id)["status"] == "completed", 60)
    assert daemon.message("patient", "s", message_id)["tries"] == 0
    eventually("doctor is quiet", lambda: quiet(daemon), 60)
    daemon.at_rest = True


def _image_of(daemon: RealDaemon) -> str:
    [line] = [line for line in daemon.config.read_text().splitlines() if line.startswith("image = ")]
    return line.partition('"')[2].rstrip('"')
