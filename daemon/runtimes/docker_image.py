"""Checks agent images (ours, and built from this source), probes a base image, and builds. Every call blocks.

Only `ImageBuilder.ensure_base` pulls an image, for `clawbus image build`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import docker
from docker.errors import APIError, ImageNotFound

from daemon.config.models import EngineKind
from daemon.core.errors import ImageError, RuntimeUnavailableError
from daemon.runtimes.docker_client import DockerClient
from daemon.runtimes.spec import LABEL_SOURCE_DIGEST
from schema.frozen import frozen

_BUILD_HINT: Final = "Run `clawbus image build` (with --base IMAGE for another base)."
_FOREIGN_HINT: Final = "Is docker.image (or the agent's image) the right name? Correct it, then `clawbus image build`."
_NAME_HINT: Final = (
    "An image's name is REPOSITORY:TAG in small letters, digits and . _ - / : correct --tag or docker.image."
)
_OUTPUT_LINES: Final = 30
ADD_PYTHON: Final = (
    "Add Python 3.11 or newer to {base}: `RUN apt-get update && apt-get install -y python3` (Debian, Ubuntu) or"
    " `RUN apk add python3` (Alpine) in its Dockerfile. The agent's program may stay as it is; or choose another --base."
)
_PROBE_WAIT_S: Final = 60


@frozen
class UsableImage:
    """An image that passed the check. A container made from `id` is made from exactly what was checked."""

    id: str


def usable_image(client: DockerClient, image: str, source_digest: str | None) -> UsableImage:
    """Return `image` if it is usable. Raise ImageError when it is missing, foreign, or built from another source.

    Without a `source_digest`, any image is usable: it contains the operator's own runner.
    """
    try:
        details: dict[str, Any] = client.call(lambda api: api.inspect_image(image))
    except ImageNotFound as error:
        raise ImageError(f"the image {image} is missing.", hint=_BUILD_HINT) from error
    except APIError as error:
        raise ImageError(f"the image {image} cannot be used: {error.explanation}.", hint=_BUILD_HINT) from error
    config: dict[str, Any] = details.get("Config") or {}
    found = cast("dict[str, str]", config.get("Labels") or {}).get(LABEL_SOURCE_DIGEST)
    if source_digest is not None and found is None:
        raise ImageError(f"the image {image} is foreign: it has no label {LABEL_SOURCE_DIGEST}.", hint=_FOREIGN_HINT)
    if source_digest is not None and found != source_digest:
        raise ImageError(
            f"the image {image} was built from other source ({str(found)[:12]}) than this daemon's ({source_digest[:12]}).",
            hint=_BUILD_HINT,
        )
    return UsableImage(details["Id"])


def image_facts(client: DockerClient, image: str) -> tuple[str, str | None]:
    """Return an image's id and its source digest (None for a foreign image). Raise ImageError."""
    try:
        details: dict[str, Any] = client.call(lambda api: api.inspect_image(image))
    except ImageNotFound as error:
        raise ImageError(f"the image {image} is missing.", hint=_BUILD_HINT) from error
    except APIError as error:
        raise ImageError(f"the image {image} cannot be used: {error.explanation}.", hint=_BUILD_HINT) from error
    config: dict[str, Any] = details.get("Config") or {}
    return details["Id"], cast("dict[str, str]", config.get("Labels") or {}).get(LABEL_SOURCE_DIGEST)


class ImageBuilder:
    """Builds images with Docker. `timeout_s`: how many seconds a build step may be silent."""

    def __init__(self, *, base_url: str | None = None, timeout_s: float = 900.0, engine: EngineKind = "docker") -> None:
        self._client = DockerClient(base_url=base_url, timeout_s=timeout_s, engine=engine)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def is_foreign(self, tag: str) -> bool:
        """Return whether a local image of this name lacks our label. Raise ImageError for an invalid name."""
        # Check this first: docker-py raises the same error class for an invalid name as for a Docker that does not answer.
        if not cast("Any", docker).utils.match_tag(tag):
            raise ImageError(f"{tag!r} is not a valid image name.", hint=_NAME_HINT)
        try:
            details: dict[str, Any] = self._client.call(lambda api: api.inspect_image(tag))
        except ImageNotFound:
            return False
        except APIError as error:
            raise ImageError(f"{tag!r} is not a valid image name: {error.explanation}.", hint=_NAME_HINT) from error
        config: dict[str, Any] = details.get("Config") or {}
        return LABEL_SOURCE_DIGEST not in (config.get("Labels") or {})

    def ensure_base(self, image: str) -> bool:
        """Pull the image unless it is here. Return whether it was pulled. Raise RuntimeUnavailableError or ImageError."""
        try:
            self._client.call(lambda api: api.inspect_image(image))
        except ImageNotFound:
            self._pull(image)
            return True
        except APIError as error:
            raise ImageError(f"the base image {image}: {error.explanation}.", hint=_base_hint()) from error
        return False

    def run_once(self, image: str, command: list[str]) -> str:
        """Run a program in the image without a network and return its output. Raise ImageError unless it exits with 0."""
        return self._client.call(lambda api: _run_once(api, image, command))

    def build(
        self,
        context: Path,
        *,
        tag: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        step: Callable[[str], None],
    ) -> str:
        """Build `context/Dockerfile` without a network, and return the image's id. `step` gets each line of output."""
        options = {
            "path": str(context),
            "tag": tag,
            "buildargs": dict(arguments),
            "labels": dict(labels),
            "network_mode": "none",
            "rm": True,
            "forcerm": True,
            "decode": True,
        }
        try:
            self._client.call(lambda api: _follow(api.build(**options), tag, step))
        except APIError as error:
            raise ImageError(
                f"{self._client.name} refused to build {tag}: {error.explanation}.", hint=_base_hint()
            ) from error
        details: dict[str, Any] = self._client.call(lambda api: api.inspect_image(tag))
        return details["Id"]

    def _pull(self, image: str) -> None:
        repository, _, tag = image.rpartition(":")
        if not repository or "/" in tag or "@" in image:
            repository, tag = image, (None if "@" in image else "latest")
        try:
            self._client.call(lambda api: api.pull(repository, tag=tag))
            self._client.call(lambda api: api.inspect_image(image))  # a pull that fails half-way reports nothing
        except APIError as error:
            raise ImageError(
                f"the base image {image} is not here and cannot be pulled: {error.explanation}.", hint=_base_hint()
            ) from error
        except RuntimeUnavailableError as error:  # Docker answers 500 when the registry does not answer
            raise ImageError(
                f"the base image {image} is not here and cannot be pulled: {error}", hint=_base_hint()
            ) from error


def _run_once(api: Any, image: str, command: list[str]) -> str:
    try:
        created = api.create_container(
            image, entrypoint=command[:1], command=command[1:], host_config=api.create_host_config(network_mode="none")
        )
    except APIError as error:
        raise ImageError(f"{image} cannot be run: {error.explanation}.", hint=_base_hint()) from error
    container_id = created["Id"]
    try:
        api.start(container_id)
        code = api.wait(container_id, timeout=_PROBE_WAIT_S)["StatusCode"]
        output = api.logs(container_id, stdout=True, stderr=True).decode("utf-8", "replace")
    except APIError as error:
        raise ImageError(
            f"{command[0]} does not run in {image}: {error.explanation}.", hint=ADD_PYTHON.format(base=image)
        ) from error
    finally:
        with contextlib.suppress(APIError):
            api.remove_container(container_id, v=True, force=True)
    if code != 0:
        raise ImageError(
            f"{command[0]} failed in {image} (exit {code}): {output.strip()[-500:]}", hint=ADD_PYTHON.format(base=image)
        )
    return output


def _follow(stream: Iterator[dict[str, Any]], tag: str, step: Callable[[str], None]) -> None:
    lines: list[str] = []
    for item in stream:
        text = str(item.get("stream") or "").strip()
        if text:
            lines.append(text)
            step(text)
        if "error" in item:
            shown = "\n".join(lines[-_OUTPUT_LINES:])
            raise ImageError(f"the build of {tag} failed: {str(item['error']).strip()}\n{shown}", hint=_base_hint())


def _base_hint() -> str:
    return "Choose a base with Python 3.11 or newer that is here or can be pulled: `clawbus image build --base IMAGE`."
