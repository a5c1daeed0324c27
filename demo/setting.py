"""The demo's configuration: two agents, both channels, and waiting times short enough to watch a recovery."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from demo.stage import Stage

ECHO: Final = "echo"
WORKER: Final = "worker"
HOOK: Final = "orders"
HOOK_SESSION: Final = "orders"

# What AGENT may be: the provider and the program of the worker.
PLAIN: Final = "plain"
AGENTS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {PLAIN: ("command", "agent.py"), "scripted": ("acp", "acp_agent.py")}
)

_TEMPLATE: Final = """\
# Written by the demo. Its times are short so that a retry comes in seconds; docs/configuration.md has the defaults.
data_dir = {data}

[runtime]
kind = {runtime}

[docker]
image = {image}

[sweep]
interval_s = 1
backoff_base_s = 0.5

[logs]
level = "debug"

[agents.echo]
provider = "echo"

[agents.worker]
provider = {provider}
command = [{python}, "agent.py"]
timeout_s = 60

[channels.webhook]
listen = {listen}

[channels.webhook.hooks.orders]
agent = "worker"
session = "orders"
secret = {secret}
reply_url = {reply_url}
reply_secret = {reply_secret}
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the demo and its daemon both know. `agent` is one of AGENTS."""

    port: int
    reply_url: str
    agent: str = PLAIN
    secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def asks(self) -> bool:
        """Whether the worker asks for a permission when a request is careful."""
        return self.agent != PLAIN

    def write(self, stage: Stage, *, image: str, reply_secret: str) -> None:
        """Put the configuration and the worker's program into the stage's folder."""
        provider, program = AGENTS[self.agent]
        values = {
            "data": str(stage.data),
            "runtime": stage.runtime,
            "image": image,
            "provider": provider,
            # A container has its own Python; a plain process takes the one that runs this.
            "python": "python3" if stage.runtime == "docker" else sys.executable,
            "listen": f"127.0.0.1:{self.port}",
            "secret": self.secret,
            "reply_url": self.reply_url,
            "reply_secret": reply_secret,
        }
        # JSON's strings are TOML's basic strings, but for a slash that json never escapes.
        stage.config.write_text(
            _TEMPLATE.format(**{name: json.dumps(value) for name, value in values.items()}), encoding="utf-8"
        )
        stage.config.chmod(0o600)
        folder = stage.data / "agents" / WORKER
        folder.mkdir(parents=True, mode=0o700)
        stage.data.chmod(0o700)
        shutil.copyfile(Path(__file__).with_name(program), folder / "agent.py")
        (folder / "agent.py").chmod(0o644)
