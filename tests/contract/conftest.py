"""The runtimes under the contract, each behind its harness, and the stub's image."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import private_podman
from tests.support.private_podman import PrivatePodman
from tests.support.runtime_harness import (
    STUB_DIGEST,
    DockerHarness,
    FakeHarness,
    Harness,
    PodmanHarness,
    ProcessHarness,
    build_stub,
    clean,
    docker_client,
)


@pytest.fixture(
    params=["fake", "process", *(pytest.param(name, marks=pytest.mark.docker) for name in ("docker", "podman"))],
)
async def harness(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    stub_image: Callable[[], str],
    podman: Callable[[Path], PodmanHarness],
) -> AsyncIterator[Harness]:
    """One implementation after the other. Whatever a test leaves running is ended."""
    made: Any
    if request.param == "fake":
        made = FakeHarness(tmp_path)
    elif request.param == "process":
        made = ProcessHarness(tmp_path)
    elif request.param == "podman":
        made = podman(tmp_path)
    else:
        made = DockerHarness(tmp_path, stub_image())
    async with clean(made):
        yield made


@pytest.fixture(params=["fake", *(pytest.param(name, marks=pytest.mark.docker) for name in ("docker", "podman"))])
async def restarting(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    stub_image: Callable[[], str],
    podman: Callable[[Path], PodmanHarness],
) -> AsyncIterator[Any]:
    """The runtimes whose containers others can start again."""
    made: Any
    if request.param == "fake":
        made = FakeHarness(tmp_path)
    else:
        made = podman(tmp_path) if request.param == "podman" else DockerHarness(tmp_path, stub_image())
    async with clean(made):
        yield made


@pytest.fixture
async def docker_harness(tmp_path: Path, stub_image: Callable[[], str]) -> AsyncIterator[DockerHarness]:
    """Docker alone."""
    made = DockerHarness(tmp_path, stub_image())
    async with clean(made):
        yield made


@pytest.fixture(scope="session")
def podman(stub_image: Callable[[], str]) -> Iterator[Callable[[Path], PodmanHarness]]:
    """Make a harness over a Podman service of the run's own, started with the stub's image when first asked for."""
    made: list[tuple[PrivatePodman, str]] = []
    with contextlib.ExitStack() as stack:

        def make(root: Path) -> PodmanHarness:
            if not made:
                if (reason := private_podman.missing()) is not None:
                    pytest.skip(reason)
                service, image = stack.enter_context(PrivatePodman()), stub_image()
                service.copy_image(image)
                made.append((service, image))
            service, image = made[0]
            return PodmanHarness(root, image, service.socket)

        yield make


@pytest.fixture
async def podman_harness(tmp_path: Path, podman: Callable[[Path], PodmanHarness]) -> AsyncIterator[PodmanHarness]:
    """Podman alone."""
    made = podman(tmp_path)
    async with clean(made):
        yield made


@pytest.fixture
async def process_harness(tmp_path: Path) -> AsyncIterator[ProcessHarness]:
    """Processes alone."""
    made = ProcessHarness(tmp_path)
    async with clean(made):
        yield made


@pytest.fixture(scope="session")
def stub_image(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """The stub in an image, built once, when first asked for."""
    made: list[str] = []

    def build() -> str:
        if not made:
            made.append(build_stub(request.getfixturevalue("base_image"), STUB_DIGEST))
        return made[0]

    yield build
    for tag in made:
        with docker_client() as client:
            client.remove_image(tag, force=True)
