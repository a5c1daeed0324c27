"""A runner that is not clawbus's, which knows nothing but two SQLite files at fixed paths, under both runtimes."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.daemon import RealDaemon, eventually

Make = Callable[..., RealDaemon]

RUNNER: Final = Path(__file__).parents[1] / "support" / "fixed_path_runner.py"


def own(runner: list[str], more: str = "") -> str:
    return f"\n[agents.own]\nrunner = {json.dumps(runner)}\n{more}"


def test_it_answers_under_the_process_runtime(make_daemon: Make) -> None:
    daemon = make_daemon(own([sys.executable, "-I", str(RUNNER)]), runtime="process")
    daemon.start()
    assert daemon.ask("one", agent="own", session="s")["text"] == "answer to: one"
    assert daemon.ask("two", agent="own", session="s")["text"] == "answer to: two"


@pytest.mark.docker
def test_it_answers_from_a_container_whose_image_has_nothing_of_clawbus(make_daemon: Make, base_image: str) -> None:
    tables = own(["python3", "-I", f"/workspace/agent/{RUNNER.name}"], f'image = "{base_image}"\n')
    daemon = make_daemon(tables, runtime="docker")
    folder = daemon.data / "agents" / "own"
    folder.mkdir(parents=True)
    shutil.copy(RUNNER, folder)
    for path in (daemon.data, daemon.data / "agents"):
        path.chmod(0o700)
    daemon.start()
    assert daemon.ask("one", agent="own", session="s", wait_s=60)["text"] == "answer to: one"
    assert daemon.ask("two", agent="own", session="s")["text"] == "answer to: two"


def test_an_agent_writes_to_a_destination_of_the_configuration(make_daemon: Make) -> None:
    line = '{"type": "message", "to": "ops", "text": "for you"}'
    table = (
        f'\n[agents.tells]\nprovider = "command"\ncommand = ["echo", {json.dumps(line)}]\n'
        '[agents.tells.destinations.ops]\nchannel = "local"\nplace = "ops-room"\n'
    )
    daemon = make_daemon(table, runtime="process")
    daemon.start()
    daemon.post("tell them", agent="tells", session="s")
    (entry,) = eventually("the answer", lambda: daemon.entries("ops-room"))
    assert entry["content"]["text"] == "for you"
