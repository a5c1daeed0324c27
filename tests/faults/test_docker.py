"""Deaths with real containers: of a container, of the daemon, of both, and of a dockerd that belongs to the test alone.

The dockerd's death is tried only with CLAWBUS_FAULTS_DOCKERD=1 and as root: a second dockerd is started for it.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.chaos import Goal
from tests.faults.soak import DOCKERD_VARIABLE, docker_chaos
from tests.support.agent_image import agent_image
from tests.support.agents import ECHO, command_agent
from tests.support.daemon import RealDaemon, eventually
from tests.support.private_dockerd import PrivateDockerd

pytestmark = [pytest.mark.faults, pytest.mark.docker]

Make = Callable[..., RealDaemon]

# It says that it began, waits for its folder's word, and answers.
PATIENT = command_agent(
    "patient", ("/bin/sh", "-c", "read -r turn; touch begun; until [ -e go ]; do sleep 0.1; done; echo done")
)


@pytest.fixture(scope="module")
def image(base_image: str) -> Iterator[str]:
    with agent_image(base_image) as tag:
        yield tag


@pytest.fixture
def daemon(make_daemon: Make, image: str) -> RealDaemon:
    return make_daemon(f'{ECHO}{PATIENT}\n[docker]\nimage = "{image}"\n', runtime="docker")


def in_mid_turn(daemon: RealDaemon) -> tuple[str, Callable[[], None]]:
    """A message whose program is at work in its container, and what lets it end."""
    message_id = daemon.post("work", agent="patient", session="s")
    folder = daemon.data / "agents" / "patient"
    eventually("in mid-turn", (folder / "begun").exists, 60)
    return message_id, (folder / "go").touch


def docker_kill(daemon: RealDaemon) -> None:
    container = daemon.container("patient", "s")["container_id"]
    subprocess.run(["docker", "kill", container], check=True, capture_output=True, timeout=120)


def settled(daemon: RealDaemon, message_id: str) -> dict[str, object]:
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("settled", lambda: daemon.message("patient", "s", message_id)["status"] == "completed")
    replies = [one for one in daemon.entries() if one["in_reply_to"] == message_id]
    assert len(replies) == 1
    daemon.at_rest = True
    return daemon.message("patient", "s", message_id)


def test_a_killed_container_costs_a_try_and_its_message_is_answered_once(daemon: RealDaemon) -> None:
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    docker_kill(daemon)
    finish()
    assert settled(daemon, message_id)["tries"] == 1


def test_a_killed_daemon_leaves_its_container_at_work_and_takes_it_over(daemon: RealDaemon) -> None:
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    before = daemon.container("patient", "s")
    daemon.kill()
    finish()
    daemon.start()
    assert settled(daemon, message_id)["tries"] == 0
    assert daemon.container("patient", "s") == before


def test_both_killed_heal_at_the_next_start(daemon: RealDaemon) -> None:
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    container = daemon.container("patient", "s")["container_id"]
    daemon.kill()
    subprocess.run(["docker", "kill", container], check=True, capture_output=True, timeout=120)
    finish()
    daemon.start()
    assert settled(daemon, message_id)["tries"] == 1


def test_a_paused_container_is_found_out_and_ended_and_its_messages_go_to_the_next(
    make_daemon: Make, image: str
) -> None:
    tables = f'{ECHO}\n[docker]\nimage = "{image}"\n'
    daemon = make_daemon(tables, runtime="docker")
    daemon.start()
    assert daemon.ask("hello", agent="echo", session="s", wait_s=60)["text"] == "hello"
    frozen = daemon.container("echo", "s")
    subprocess.run(["docker", "pause", frozen["container_id"]], check=True, capture_output=True, timeout=120)
    # It froze without a claim: what it leaves untouched decides, and that is a minute by rule.
    assert daemon.ask("still there", agent="echo", session="s", wait_s=180)["text"] == "still there"
    assert [event["reason"] for event in daemon.events("container_stuck")] == ["unclaimed"]
    # Docker thaws what it is to end; whoever answered, the frozen one is gone for good.
    eventually("ended", lambda: frozen["incarnation"] not in [one["id"] for one in daemon.status()["incarnations"]], 60)
    assert daemon.ask("and now", agent="echo", session="s", wait_s=60)["text"] == "and now"
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    daemon.at_rest = True


def test_random_deaths_of_containers_and_daemons_lose_and_double_nothing(image: str) -> None:
    goal = Goal(accepted=20, killed=5)
    report = docker_chaos(seed=7, seconds=10.0, image=image, dockerd=None, sessions=3, pause_s=0.7, goal=goal)
    assert not report.failures(), "\n".join(report.failures())
    assert report.account.answered > 0


@pytest.fixture
def private(image: str) -> Iterator[PrivateDockerd]:
    if os.environ.get(DOCKERD_VARIABLE) != "1":
        pytest.skip(f"a dockerd of its own is started and killed only with {DOCKERD_VARIABLE}=1")
    if os.geteuid() != 0:
        pytest.skip("only root can start a dockerd")
    with PrivateDockerd() as dockerd:
        dockerd.copy_image(image)
        yield dockerd


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_dockerd_away_is_degraded_and_heals_with_nothing_lost(
    daemon: RealDaemon, private: PrivateDockerd, how: str
) -> None:
    daemon.environment["DOCKER_HOST"] = private.environ["DOCKER_HOST"]
    daemon.start()
    message_id, finish = in_mid_turn(daemon)
    getattr(private, how)()
    waiting = daemon.post("and this", agent="echo", session="other")
    away = eventually("degraded", lambda: daemon.status()["live"]["degraded"], 60)
    assert [one["what"] for one in away] == ["runtime"]
    assert daemon.status()["live"]["runtime"]["state"] == "unavailable"
    finish()
    private.start()
    assert daemon.answer(waiting, agent="echo", session="other", wait_s=60)["text"] == "and this"
    message = settled(daemon, message_id)
    # Without live-restore its container ended with dockerd, in mid-turn or just after its answer.
    assert message["tries"] in (0, 1)
    eventually("healed", lambda: daemon.status()["live"]["degraded"] == [], 60)


def test_random_deaths_of_dockerd_too(image: str, private: PrivateDockerd) -> None:
    report = docker_chaos(seed=8, seconds=30.0, image=image, dockerd=private, sessions=3)
    assert not report.failures(), "\n".join(report.failures())
    assert report.dockerd_restarts >= 1


def test_folders_that_are_put_anew_below_a_container_fail_no_message(make_daemon: Make, image: str) -> None:
    """As a deploy of the agent does that removes its folder first. The container keeps the removed ones."""
    reads = command_agent("reads", ("/bin/sh", "-c", "cat words /srv/data/words"))
    daemon = make_daemon(runtime="docker")
    source = daemon.root / "data"
    mount = f'[[agents.reads.mounts]]\nsource = "{source}"\ntarget = "/srv/data"\n'
    daemon.configure(daemon.config.read_text().partition("\n")[2] + f'{reads}{mount}\n[docker]\nimage = "{image}"\n')
    folder = daemon.data / "agents" / "reads"
    put_anew((folder, source), "old")
    for path in (daemon.data, folder.parent):
        path.chmod(0o700)
    daemon.start()
    assert daemon.ask("go", agent="reads", session="s")["text"].split() == ["old", "old"]
    for one in (folder, source):
        put_anew((one,), "new")
        assert "new" in daemon.ask("go", agent="reads", session="s")["text"]
    assert daemon.ask("go", agent="reads", session="s")["text"].split() == ["new", "new"]


def put_anew(folders: tuple[Path, ...], words: str) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "words").write_text(f"{words} ")
