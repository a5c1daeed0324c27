"""A secret file that is empty, or that the daemon's user may not read: what says so, what repairs it, and whom it concerns.

Root reads any file, so as root the daemon and its commands run without the capabilities that let it.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import egress_story
from tests.support.daemon import CLAWBUS, RealDaemon, eventually

Make = Callable[..., RealDaemon]

BOUND: Final = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
KEEPER: Final = """
[agents.echo]
[agents.keeper]
command = ["sh", "-c", 'tr a-z A-Z < "$KEY_FILE"']
secret_file = {{ KEY = {path} }}
"""
OWN: Final = "sk-the-agents-own"
WRONG: Final[dict[str, Callable[[Path], object]]] = {
    "cannot be read: Permission denied": lambda path: path.chmod(0),
    "is empty": lambda path: path.write_text("\n"),
}


@pytest.fixture
def server() -> Iterator[egress_story.Model]:
    with egress_story.model() as server:
        yield server


@pytest.mark.parametrize("why", WRONG)
def test_everyone_says_which_file_it_is_and_others_go_on(
    make_daemon: Make, server: egress_story.Model, why: str
) -> None:
    daemon, secrets = bound(make_daemon(), server)
    own, routed = secrets
    for path, value in secrets.items():
        path.write_text(value)
        WRONG[why](path)
    said = [refused(daemon, f"agents.keeper.secret_file.KEY: {own} {why}")]
    daemon.start()
    waiting = daemon.post("go", agent="keeper", session="s")
    failed = eventually("a failed start", lambda: daemon.events("spawn_failed"))[0]
    assert (failed["code"], f"{own} {why}" in failed["error"]) == ("SECRET_FILE", True)
    answer = daemon.ask("/one", agent="asks", session="s")["text"]
    assert "EGRESS_SECRET" in answer
    assert f"{routed} {why}" in answer
    assert daemon.ask("hello", agent="echo", session="s")["text"] == "hello"
    found = {one["code"]: one for one in daemon.cli("doctor").envelope["result"]["diagnoses"]}
    assert f"{own} {why}" in json.dumps(found["SPAWN_FAILING"])
    assert f"{routed} {why}" in json.dumps(found["EGRESS_SECRET"])

    own.chmod(0o600)
    own.write_text(OWN)
    assert daemon.answer(waiting, agent="keeper", session="s")["text"] == OWN.upper()
    assert daemon.message("keeper", "s", waiting)["tries"] == 0
    said.append(refused(daemon, f"egress.routes.model.secret_file: the secret file {routed} {why}"))
    repair = ["sh", "-c", found["EGRESS_SECRET"]["command"]]
    subprocess.run([*BOUND, *repair], input=egress_story.SECRET, text=True, check=True, timeout=120)
    assert daemon.cli("config", "check").ok
    assert daemon.ask("/two", agent="asks", session="s")["text"] == "the model says /two"
    assert server.keys == [egress_story.SECRET]
    shown = "".join(
        [json.dumps(found), *said, *(json.dumps(daemon.cli(verb).envelope) for verb in ("status", "doctor"))]
    )
    kept = shown.encode() + b"".join(path.read_bytes() for path in daemon.data.rglob("*") if path.is_file())
    assert not [value for value in secrets.values() if value.encode() in kept]


def bound(daemon: RealDaemon, server: egress_story.Model) -> tuple[RealDaemon, dict[Path, str]]:
    """Configure the daemon and confine it; return it and the values by the files of its agent and of its route."""
    own, routed = daemon.root / "own.key", daemon.root / "routed.key"
    daemon.configure(
        daemon.config.read_text().partition("\n")[2]
        + egress_story.tables(server, routed, sys.executable)
        + KEEPER.format(path=json.dumps(str(own)))
    )
    egress_story.give_program(daemon)
    program = daemon.root / "clawbus"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([*BOUND, CLAWBUS])} "$@"\n')
    program.chmod(0o755)
    daemon.command = str(program)
    return daemon, {own: OWN, routed: egress_story.SECRET}


def refused(daemon: RealDaemon, words: str) -> str:
    """What `config check` says, which must be this."""
    said = daemon.cli("config", "check")
    assert said.error == "SECRET_FILE"
    assert words in said.envelope["error"]["message"]
    assert "let the daemon's user read it" in said.envelope["fix"]
    return json.dumps(said.envelope)
