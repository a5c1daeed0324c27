"""A daemon that runs from a release starts agents from that release's images, by their ids.

An image's name may be given to another image at any time: by the build for the next release, while this one serves.
"""

from __future__ import annotations

from daemon.config.models import Config
from daemon.core.release import Manifest


def with_own_images(config: Config, manifest: Manifest | None) -> Config:
    """Return the configuration with each image's name replaced by the id that the release recorded for it."""
    if manifest is None or not manifest.images:
        return config
    ids = manifest.images
    docker = config.docker.model_copy(update={"image": ids.get(config.docker.image, config.docker.image)})
    agents = {
        name: agent.model_copy(update={"image": ids.get(agent.image, agent.image)})
        if agent.image is not None and not agent.runner
        else agent
        for name, agent in config.agents.items()
    }
    return config.model_copy(update={"docker": docker, "agents": agents})
