"""Asks the container engine about the images that a release records."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from daemon.config.models import Config
from daemon.core.errors import ImageError
from daemon.core.release import ImageFound
from daemon.runtimes.agent_images import agent_images


def look_at_images(config: Config, names: Iterable[str]) -> dict[str, ImageFound]:
    """Return {name: the image's id and label, or why it cannot be used}. Raise RuntimeUnavailableError."""
    from daemon.runtimes.docker_client import engine_client  # noqa: PLC0415 - the Docker client
    from daemon.runtimes.docker_image import image_facts  # noqa: PLC0415

    found: dict[str, ImageFound] = {}
    wanted = list(names)
    if not wanted:
        return found
    with closing(engine_client(config)) as client:
        for name in wanted:
            try:
                identity, label = image_facts(client, name)
            except ImageError as error:
                found[name] = ImageFound(error=str(error).rstrip("."))
            else:
                found[name] = ImageFound(identity, label)
    return found


def images_to_record(config: Config, source_digest: str) -> dict[str, str]:
    """Return {name: id} of the images that a new release records; with the process runtime there are none.

    Raise ImageError when an image is missing or was built from another source, and RuntimeUnavailableError.
    """
    if config.runtime.kind == "process":
        return {}
    found = look_at_images(config, (one.image for one in agent_images(config)))
    recorded: dict[str, str] = {}
    for name, image in found.items():
        if image.id is None:
            raise ImageError(f"{image.error}.", hint=f"Build it: `clawbus image build --tag {name}`.")
        if image.label != source_digest:
            raise ImageError(
                f"the image {name} was not built from this clawbus's source.",
                hint=f"Build it with this clawbus: `clawbus image build --tag {name}`; running agents keep the old image.",
            )
        recorded[name] = image.id
    return recorded
