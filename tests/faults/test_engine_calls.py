"""An engine that answers, and fails at one container: that one waits or is put aside, the others go on, and it is named."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_docker import PATIENT, Make, image, in_mid_turn
from tests.support.agents import ECHO
from tests.support.daemon import RealDaemon, eventually
from tests.support.engine_proxy import EngineProxy, answer

__all__ = ["image"]

pytestmark = [pytest.mark.faults, pytest.mark.docker]


@pytest.fixture
def daemon(make_daemon: Make, image: str) -> RealDaemon:
    return make_daemon(
        f'{ECHO}{PATIENT}\n[docker]\nimage = "{image}"\ntimeout_s = 3\n',
        runtime="docker",
        runtime_keys="kill_confirm_s = 2.0",
    )


@pytest.fixture
def proxy(daemon: RealDaemon) -> Iterator[EngineProxy]:
    """Between the daemon and its engine, from before its start until after its end."""
    with EngineProxy(daemon.root / "engine.sock", Path("/var/run/docker.sock")) as proxy:
        daemon.environment["DOCKER_HOST"] = f"unix://{proxy.path}"
        daemon.start()
        yield proxy
        proxy.heal()
        daemon.end_quietly()


def first(daemon: RealDaemon) -> str:
    """The container of a first session, which has answered."""
    assert daemon.ask("one", agent="echo", session="s", wait_s=60)["text"] == "one"
    container: str = daemon.container("echo", "s")["container_id"]
    return container


def relisted(proxy: EngineProxy, after: int) -> bool:
    """Whether the daemon has compared its containers with the engine's list since."""
    return any(call.startswith("GET /containers/json") for call in proxy.calls[after:])


def kill(container: str) -> None:
    subprocess.run(["docker", "kill", container], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("call", ["GET /containers/{}/logs", "DELETE /containers/{}"])
def test_a_dead_container_that_cannot_be_removed_is_not_in_the_way(
    daemon: RealDaemon, proxy: EngineProxy, call: str
) -> None:
    container = first(daemon)
    proxy.spoil(call.format(container), answer(500))
    kill(container)
    eventually("its end is settled", lambda: daemon.running("echo", "s") is None)
    assert daemon.ask("two", agent="echo", session="s", wait_s=60)["text"] == "two"
    assert daemon.events("runtime_unavailable") == []


@pytest.mark.parametrize("silent", [False, True])
def test_a_container_that_cannot_be_shown_hides_no_other(daemon: RealDaemon, proxy: EngineProxy, silent: bool) -> None:
    container = first(daemon)
    spoiled = proxy.spoil(f"GET /containers/{container}/json", answer(500), hold=silent)
    eventually("it was asked for", spoiled.hit.is_set)
    asked = len(proxy.calls)
    eventually("that failed, and the containers are listed again", lambda: relisted(proxy, asked))
    assert daemon.ask("two", agent="echo", session="other", wait_s=60)["text"] == "two"
    kill(container)
    eventually("its end is seen in the listing", lambda: daemon.running("echo", "s") is None)
    assert daemon.ask("three", agent="echo", session="s", wait_s=60)["text"] == "three"
    assert daemon.events("runtime_unavailable") == []


def test_a_container_that_cannot_be_killed_is_named(daemon: RealDaemon, proxy: EngineProxy) -> None:
    message, finish = in_mid_turn(daemon)
    proxy.spoil(f"POST /containers/{daemon.container('patient', 's')['container_id']}/kill", answer(500))
    assert daemon.cli("session", "kill", "patient/s").error == "EXIT_NOT_CONFIRMED"
    found = eventually("the doctor names it", lambda: daemon.cli("doctor").envelope["result"]["findings"])
    assert [one["code"] for one in found] == ["SESSION_FAILING"]
    assert "no such luck" in str(found)
    assert daemon.ask("two", agent="echo", session="other", wait_s=60)["text"] == "two"
    assert daemon.events("runtime_unavailable") == []
    proxy.heal()
    finish()
    assert daemon.answer(message, agent="patient", session="s", wait_s=60)["text"] == "done"
    eventually("the finding is gone", lambda: daemon.cli("doctor").envelope["result"]["findings"] == [])
