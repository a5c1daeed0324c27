"""Restarts with everything in flight: many live containers, none of which may notice, and files of an older schema."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from schema.migrate import VERSION
from tests.support.agent_image import agent_image
from tests.support.agents import ECHO, command_agent
from tests.support.daemon import RealDaemon, eventually

pytestmark = pytest.mark.faults

Make = Callable[..., RealDaemon]

MANY: Final = 12
PATIENT: Final = command_agent(
    "patient", ("/bin/sh", "-c", "read -r turn; touch begun; until [ -e go ]; do sleep 0.1; done; echo done")
)
# What this version adds to the files of the one before is taken away again.
OLDER: Final = "DROP TABLE dead_letters_closed; ALTER TABLE messages_in DROP COLUMN on_wake; PRAGMA user_version = 1;"


@pytest.fixture(scope="module")
def image(base_image: str) -> Iterator[str]:
    with agent_image(base_image) as tag:
        yield tag


def containers(daemon: RealDaemon, names: list[str]) -> dict[str, str]:
    return {name: daemon.container("echo", name)["container_id"] for name in names}


@pytest.mark.docker
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_many_live_containers_are_adopted_and_none_is_ended(make_daemon: Make, image: str, how: str) -> None:
    daemon = make_daemon(
        f'{ECHO}\n[docker]\nimage = "{image}"\n', runtime="docker", runtime_keys=f"max_containers = {MANY}"
    )
    daemon.start()
    names = [f"s{number}" for number in range(MANY)]
    first = {name: daemon.post("before", agent="echo", session=name) for name in names}
    for name, message_id in first.items():
        assert daemon.answer(message_id, agent="echo", session=name, wait_s=60)["text"] == "before"
    before = containers(daemon, names)
    getattr(daemon, how)()
    daemon.start()
    after = {name: daemon.post("after", agent="echo", session=name) for name in names}
    for name, message_id in after.items():
        assert daemon.answer(message_id, agent="echo", session=name, wait_s=60)["text"] == "after"
    assert containers(daemon, names) == before
    assert len({one["incarnation"] for one in daemon.events("container_adopted")}) == MANY
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    daemon.at_rest = True


def version(path: Path) -> int:
    with sqlite3.connect(path) as db:
        found: int = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return found


def make_older(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript(OLDER)
    db.close()


def test_an_upgrade_of_the_schema_with_sessions_in_flight(make_daemon: Make) -> None:
    daemon = make_daemon(f"{ECHO}{PATIENT}")
    daemon.start()
    working = daemon.post("work", agent="patient", session="s")
    agent = daemon.data / "agents" / "patient"
    eventually("in mid-turn", (agent / "begun").exists, 60)
    waiting = daemon.post("later", agent="patient", session="s")
    daemon.ask("hello", agent="echo", session="quiet")
    before = daemon.container("patient", "s")
    daemon.stop()
    files = [daemon.folder("patient", "s") / "in" / "inbound.db", daemon.folder("echo", "quiet") / "in" / "inbound.db"]
    for path in files:
        make_older(path)
    (agent / "go").touch()  # it ends its turn while the file that it reads is of the older shape
    daemon.start()
    for message_id in (working, waiting):
        assert daemon.answer(message_id, agent="patient", session="s") == {"text": "done"}
    assert daemon.ask("hello again", agent="echo", session="quiet")["text"] == "hello again"
    assert daemon.container("patient", "s") == before
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    assert [daemon.message("patient", "s", one)["tries"] for one in (working, waiting)] == [0, 0]
    assert {version(path) for path in files} == {VERSION}
    daemon.at_rest = True
