"""Lists the images that the configuration names, where it names them, and the command that builds each. Pure."""

from __future__ import annotations

import shlex

from daemon.config.models import Config
from schema.frozen import frozen


@frozen
class AgentImage:
    """An image that must be built by clawbus. `keys` are the configuration keys that name it, `agents` those that use it."""

    image: str
    keys: tuple[str, ...]
    agents: tuple[str, ...]

    @property
    def where(self) -> str:
        """`agents.helper.image = "my-agents:v7" (agent helper)`."""
        users = (
            f"agent{'s' if len(self.agents) > 1 else ''} {', '.join(self.agents)}" if self.agents else "no agent yet"
        )
        return f'{", ".join(self.keys)} = "{self.image}" (used by {users})'

    @property
    def build(self) -> str:
        """The command that builds it under this name."""
        return f"clawbus image build --tag {shlex.quote(self.image)}"


def agent_images(config: Config) -> list[AgentImage]:
    """Return the images that clawbus's own runner starts from. An agent with a `runner` may use any image."""
    default = config.docker.image
    users: dict[str, list[str]] = {}
    keys: dict[str, list[str]] = {}
    for name, agent in sorted(config.agents.items()):
        if agent.runner:
            continue
        image = agent.image or default
        users.setdefault(image, []).append(name)
        keys.setdefault(image, [])
        if agent.image is not None:
            keys[image].append(f"agents.{name}.image")
    if any(not agent.runner and agent.image is None for agent in config.agents.values()) or not config.agents:
        users.setdefault(default, [])
        keys.setdefault(default, []).insert(0, "docker.image")
    return [AgentImage(image, tuple(keys[image]), tuple(users[image])) for image in sorted(users)]
