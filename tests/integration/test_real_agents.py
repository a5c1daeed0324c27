"""Real agents in real containers without a network, through the gate, against a fake model: CLAWBUS_TEST_AGENTS=1.

They come from npm (some 700 MB, once: CLAWBUS_TEST_AGENTS_DIR keeps them), and run with the machine's node.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.test_docker_daemon import image  # noqa: F401 -- a fixture
from tests.support.daemon import RealDaemon, eventually
from tests.support.docker_bus import docker, inspect
from tests.support.fake_model import FakeModel, fake_model

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.environ.get("CLAWBUS_TEST_AGENTS") != "1", reason="real agents: CLAWBUS_TEST_AGENTS=1"),
]

PACKAGES: Final = ("@agentclientprotocol/claude-agent-acp", "@agentclientprotocol/codex-acp")
KEY: Final = "sk-only-on-the-host"
INSIDE: Final = "/opt/agents/node_modules"  # by this name packages find each other
NODE: Final = "/opt/agents-node"
ANSWER_S: Final = 120.0
CODEX: Final = """
model_provider = "gate"
[model_providers.gate]
name = "gate"
base_url = "http://127.0.0.1:3128/openai"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the agents' packages, installed if they are not there."""
    named = os.environ.get("CLAWBUS_TEST_AGENTS_DIR")
    folder = Path(named) if named else tmp_path_factory.mktemp("agents")
    if not (folder / "node_modules" / PACKAGES[0]).is_dir():
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", *PACKAGES], cwd=folder, check=True, timeout=600)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def model() -> Iterator[FakeModel]:
    with fake_model() as made:
        yield made


def agent(name: str, package: str, modules: Path, env: str = "") -> str:
    program = f"{INSIDE}/{package}/dist/index.js"
    command = f"exec {NODE} {program}"
    if name == "codex":
        command = f'mkdir -p "$HOME/.codex" && cp -n /workspace/agent/config.toml "$HOME/.codex/" && {command}'
    return f"""
[agents.{name}]
preset = "{name}"
command = ["sh", "-c", {json.dumps(command)}]
memory_bytes = 2_000_000_000
error_detail = "sender"
env = {{ {env} }}
[[agents.{name}.mounts]]
source = {json.dumps(str(modules))}
target = "{INSIDE}"
[[agents.{name}.mounts]]
source = {json.dumps(os.path.realpath(shutil.which("node") or "node"))}
target = "{NODE}"
"""


def route(name: str, agent_name: str, header: str, model: FakeModel, key_file: Path, env: str) -> str:
    return f"""
[egress.routes.{name}]
upstream = "http://127.0.0.1:{model.port}"
header = "{header}"
secret_file = {json.dumps(str(key_file))}
api = "{name}"
agents = ["{agent_name}"]
env = {{ {env} }}
"""


@pytest.fixture
def daemon(
    make_daemon: Callable[..., RealDaemon],
    image: str,  # noqa: F811
    modules: Path,
    model: FakeModel,
    tmp_path: Path,
) -> RealDaemon:
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    base = 'ANTHROPIC_BASE_URL = "{url}", ANTHROPIC_API_KEY = "placeholder"'
    text = (
        f'[docker]\nimage = "{image}"\n[egress]\nprivate_targets = ["127.0.0.1:{model.port}"]\n'
        + agent("claude", PACKAGES[0], modules)
        + agent("codex", PACKAGES[1], modules, 'OPENAI_API_KEY = "placeholder"')
        + route("anthropic", "claude", "x-api-key", model, key_file, base)
        + route("openai", "codex", "authorization", model, key_file, "")
    )
    daemon = make_daemon(text, runtime="docker")
    folder = daemon.data / "agents" / "codex"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CODEX)
    daemon.start()
    return daemon


def ask(daemon: RealDaemon, name: str, text: str) -> str:
    return str(daemon.ask(text, agent=name, session="s", wait_s=ANSWER_S)["text"])


def counted(answer: str) -> int:
    """How many messages the model was sent, by its answer."""
    found = re.search(r"(\d+) messages", answer)
    assert found is not None, answer
    return int(found.group(1))


def open_question(daemon: RealDaemon) -> dict[str, Any] | None:
    found = daemon.cli("question", "list").result["questions"]
    return found[0] if found else None


@pytest.mark.parametrize("name", ["claude", "codex"])
def test_it_answers_continues_after_a_kill_and_never_sees_the_key(
    daemon: RealDaemon, model: FakeModel, name: str
) -> None:
    first = counted(ask(daemon, name, "hello"))
    container = daemon.container(name, "s")["container_id"]
    assert inspect(container)["HostConfig"]["NetworkMode"] == "none"
    seen = docker("exec", container, "sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'; env")
    assert "placeholder" in seen
    assert KEY not in seen + json.dumps(inspect(container))
    docker("kill", container)
    eventually("the container is gone", lambda: daemon.running(name, "s") is None, 30)
    assert counted(ask(daemon, name, "once more")) > first, "it has forgotten the first message"
    assert daemon.show(name, "s")["usage"]["input_tokens"] > 0
    wanted = {KEY, f"Bearer {KEY}"}
    assert {key for path, key in model.asked if ("/messages" in path) == (name == "claude")} <= wanted
    found = [path for path in daemon.data.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert found == []


def test_claude_asks_before_it_uses_a_tool(daemon: RealDaemon) -> None:
    message_id = daemon.post("RUN touch made-by-claude", agent="claude", session="s")
    eventually("its question", lambda: open_question(daemon) is not None, ANSWER_S)
    question = open_question(daemon)
    assert question is not None
    assert "touch made-by-claude" in question["text"]
    assert not (daemon.data / "agents" / "claude" / "made-by-claude").exists()
    daemon.cli("question", "answer", question["id"], "1")
    daemon.answer(message_id, agent="claude", session="s", wait_s=ANSWER_S)
    assert (daemon.data / "agents" / "claude" / "made-by-claude").exists()
