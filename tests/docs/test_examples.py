"""The examples of agents are what docs/agents.md says, and their configurations are valid."""

import json
import os
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from container_runner.providers.lines import OutputParser
from daemon.config.loading import load_config
from daemon.config.presets import PRESETS
from tests.docs.test_contract import AGENTS, first_cells

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples" / "agents"
TURN: Final = {
    "contract": 1,
    "messages": [{"id": "m1", "kind": "chat", "trigger": True, "content": {"text": "hello"}}],
    "state": {},
}


def test_there_is_one_for_each_preset() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == {*PRESETS, "script", "shell"}
    assert {cell.strip("`") for cell in first_cells(AGENTS, "preset")} == set(PRESETS)


@pytest.mark.parametrize("name", sorted([*PRESETS, "script", "shell"]))
def test_its_configuration_is_valid(name: str) -> None:
    config = load_config(EXAMPLES / name / "clawbus.toml")
    (agent,) = config.agents
    assert agent == name
    assert all(route.agents == (name,) for route in config.egress.routes.values())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_its_image_brings_the_program_and_the_settings(name: str) -> None:
    folder, agent = EXAMPLES / name, load_config(EXAMPLES / name / "clawbus.toml").agents[name]
    steps = (folder / "Dockerfile").read_text()
    row = next(line for line in AGENTS.splitlines() if line.startswith(f"| `{name}` |"))
    package = row.split("|")[4].split("`")[1]
    assert package in steps
    assert "apt-get install" in steps
    if agent.command[0] == "with-home":
        assert agent.command[1:] == PRESETS[name].command
        assert "COPY home/ /opt/agent-home/" in steps
        assert os.access(folder / "with-home", os.X_OK)
    for path in (folder / "home").rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text())


def run(command: list[str], home: Path, **environ: str) -> bytes:
    done = subprocess.run(
        command, input=json.dumps(TURN).encode(), capture_output=True, timeout=120, check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environ},
    )  # fmt: skip
    return done.stdout


def test_the_shell_agent_answers(tmp_path: Path) -> None:
    assert b"UTC, and I was sent" in run(["sh", str(EXAMPLES / "shell" / "agent.sh")], tmp_path)


def test_the_script_agent_keeps_its_conversation(tmp_path: Path) -> None:
    asked: list[Any] = []
    output = b""

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"content": [{"type": "text", "text": f"answer {len(asked)}"}]}).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            for _ in range(2):
                output = run([sys.executable, str(EXAMPLES / "script" / "agent.py")], tmp_path, ANTHROPIC_BASE_URL=url)
        finally:
            server.shutdown()
    parser = OutputParser()
    for line in output.splitlines():
        parser.feed(line)
    assert [message.content for message in parser.answer().messages] == [{"text": "answer 2"}]
    assert [one["content"] for one in asked[1]["messages"]] == ["hello", "answer 1", "hello"]
