"""Real agents in real containers without a network, through the gate, against a fake model: CLAWBUS_TEST_AGENTS=1.

They come from npm, with a node of their own, and from PyPI (some 1.8 GB, once: CLAWBUS_TEST_AGENTS_DIR keeps them).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
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

KEY: Final = "sk-only-on-the-host"
INSIDE: Final = "/opt/agents/node_modules"  # by this name packages find each other
NODE: Final = "/opt/agents-node"
HERMES: Final = "/opt/agents-hermes"
HOME: Final = "/opt/agent-home"
EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples" / "agents"
ANSWER_S: Final = 120.0
VERSION: Final = "import sys; print('%d.%d' % sys.version_info[:2])"


@dataclass(frozen=True)
class Real:
    """An agent: its npm package, its program in there, the variables that name the gate, whether it says what a turn used."""

    package: str | None
    program: str
    header: str
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    options: str = ""
    api: str = "openai"
    usage: bool = True
    on_node: bool = True


AGENTS: Final = {
    "claude": Real(
        "@agentclientprotocol/claude-agent-acp", "dist/index.js", "x-api-key",
        {"ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_API_KEY": "placeholder"}, api="anthropic",
    ),
    "codex": Real("@agentclientprotocol/codex-acp", "dist/index.js", "authorization", {"OPENAI_API_KEY": "placeholder"}),
    "gemini": Real(
        "@google/gemini-cli", "bundle/gemini.js", "x-goog-api-key",
        {"GOOGLE_GEMINI_BASE_URL": "{url}", "GEMINI_API_KEY": "placeholder"}, "--acp", "gemini", usage=False,
    ),
    "opencode": Real("opencode-ai", "../opencode-linux-x64/bin/opencode", "authorization", options="acp", on_node=False),
    "qwen": Real(
        "@qwen-code/qwen-code", "cli.js", "authorization",
        {"OPENAI_BASE_URL": "{url}", "OPENAI_API_KEY": "placeholder", "OPENAI_MODEL": "fake"}, "--acp", usage=False,
    ),
    "hermes": Real(None, f"{HERMES}/bin/python -m acp_adapter", "authorization", on_node=False),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the agents are installed."""
    named = os.environ.get("CLAWBUS_TEST_AGENTS_DIR")
    return Path(named) if named else tmp_path_factory.mktemp("agents")


@pytest.fixture(scope="module")
def modules(folder: Path) -> Path:
    """The folder of the packages from npm, installed if they are not there."""
    node = folder / "node_modules" / "node" / "bin"
    if not node.is_dir():  # with an older node, npm takes older agents
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "node@24"], cwd=folder, check=True, timeout=600)
    packages = [one.package for one in AGENTS.values() if one.package is not None]
    missing = [package for package in packages if not (folder / "node_modules" / package).is_dir()]
    if missing:
        command = ["npm", "install", "--no-audit", "--no-fund", *missing]
        environ = {**os.environ, "PATH": f"{node}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(command, cwd=folder, check=True, timeout=600, env=environ)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def hermes(folder: Path, image: str) -> Path:  # noqa: F811
    """A virtual environment with Hermes for the image's Python, installed if it is not there."""
    made = folder / "hermes"
    if not (made / "bin" / "python").is_symlink():
        version = docker("run", "--rm", "--network=none", "--entrypoint=python3", image, "-c", VERSION).strip()
        packages = made / "lib" / f"python{version}" / "site-packages"
        packages.mkdir(parents=True, exist_ok=True)
        wheels = ("--only-binary=:all:", f"--python-version={version}", f"--target={packages}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", *wheels, "hermes-agent[acp,mcp]==0.19.0"]
        subprocess.run(command, check=True, timeout=600)
        (made / "pyvenv.cfg").write_text("home = /usr/bin\n")
        (made / "bin").mkdir(exist_ok=True)
        (made / "bin" / "python").symlink_to("/usr/bin/python3")
    return made


@pytest.fixture(scope="module")
def model() -> Iterator[FakeModel]:
    with fake_model() as made:
        yield made


def tables(name: str, real: Real, modules: Path, hermes: Path) -> str:
    """The agent's tables, with the home of its example."""
    program = real.program if real.package is None else f"{INSIDE}/{real.package}/{real.program} {real.options}"
    command = f"exec {f'{NODE} ' * real.on_node}{program}".rstrip()
    mounts = {INSIDE: modules, NODE: os.path.realpath(modules / "node" / "bin" / "node"), HERMES: hermes}
    if (EXAMPLES / name / "home").is_dir():
        command = f'cp -rn {HOME}/. "$HOME"/ && {command}'
        mounts[HOME] = EXAMPLES / name / "home"
    mounted = "".join(
        f'[[agents.{name}.mounts]]\nsource = {json.dumps(str(source))}\ntarget = "{target}"\n'
        for target, source in mounts.items()
    )
    return f"""
[agents.{name}]
preset = "{name}"
command = ["sh", "-c", {json.dumps(command)}]
memory_bytes = 4_000_000_000
error_detail = "sender"
{mounted}
"""


def route(real: Real, agents: list[str], model: FakeModel, key_file: Path) -> str:
    """The route of an API, for these agents."""
    env = {key: value for one in agents for key, value in AGENTS[one].env.items()}
    return f"""
[egress.routes.{real.api}]
upstream = "http://127.0.0.1:{model.port}"
header = "{real.header}"
secret_file = {json.dumps(str(key_file))}
api = "{real.api}"
agents = {json.dumps(agents)}
env = {{ {", ".join(f"{key} = {json.dumps(value)}" for key, value in env.items())} }}
"""


@pytest.fixture
def daemon(
    make_daemon: Callable[..., RealDaemon],
    image: str,  # noqa: F811
    modules: Path,
    hermes: Path,
    model: FakeModel,
    tmp_path: Path,
) -> RealDaemon:
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    of_api: dict[str, list[str]] = {}
    for name, real in AGENTS.items():
        of_api.setdefault(real.api, []).append(name)
    text = f'[docker]\nimage = "{image}"\n[egress]\nprivate_targets = ["127.0.0.1:{model.port}"]\n'
    text += "".join(tables(name, real, modules, hermes) for name, real in AGENTS.items())
    text += "".join(route(AGENTS[agents[0]], agents, model, key_file) for agents in of_api.values())
    daemon = make_daemon(text, runtime="docker")
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


@pytest.mark.parametrize("name", AGENTS)
def test_it_answers_continues_after_a_kill_and_never_sees_the_key(
    daemon: RealDaemon, model: FakeModel, name: str
) -> None:
    first = counted(ask(daemon, name, "hello"))
    began = datetime.now(UTC).minute
    container = daemon.container(name, "s")["container_id"]
    assert inspect(container)["HostConfig"]["NetworkMode"] == "none"
    seen = docker("exec", container, "sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'; env")
    assert "placeholder" in seen
    assert KEY not in seen + json.dumps(inspect(container))
    if name == "gemini":  # what it does with a session that is loaded in the minute of its start: docs/agents.md
        eventually("another minute", lambda: datetime.now(UTC).minute != began, 61)
    docker("kill", container)
    eventually("the container is gone", lambda: daemon.running(name, "s") is None, 90)
    assert counted(ask(daemon, name, "once more")) > first, "it has forgotten the first message"
    if AGENTS[name].usage:
        assert daemon.show(name, "s")["usage"]["input_tokens"] > 0
    assert {key for _, key in model.asked} <= {KEY, f"Bearer {KEY}"}
    found = [path for path in daemon.data.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert found == []


@pytest.mark.parametrize("name", AGENTS)
def test_a_cancelled_message_ends_its_prompt_and_not_the_agent(daemon: RealDaemon, model: FakeModel, name: str) -> None:
    ask(daemon, name, "hello")
    container = daemon.container(name, "s")["container_id"]
    message_id = daemon.post("SLOW", agent=name, session="s")
    eventually("the model is asked", model.slow.is_set, ANSWER_S)
    try:
        assert daemon.cli("message", "cancel", message_id, "--session", f"{name}/s").ok
        ask(daemon, name, "once more")
        assert daemon.container(name, "s")["container_id"] == container
    finally:
        model.go_on()
    assert daemon.message(name, "s", message_id)["status"] == "cancelled"


@pytest.mark.parametrize("name", AGENTS)
def test_it_asks_before_it_uses_a_tool(daemon: RealDaemon, name: str) -> None:
    made = daemon.data / "agents" / name / "made"
    message_id = daemon.post(
        "RUN rm -rf nothing && touch made", agent=name, session="s"
    )  # Hermes asks about rm -r alone
    eventually("its question", lambda: open_question(daemon) is not None, ANSWER_S)
    question = open_question(daemon)
    assert question is not None
    assert "touch made" in question["text"]
    assert not made.exists()
    daemon.cli("question", "answer", question["id"], "1")
    daemon.answer(message_id, agent=name, session="s", wait_s=ANSWER_S)
    assert made.exists()
