"""The runtimes under the contract, each behind its harness, and the stub's image."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.runtime_harness import (
    STUB_DIGEST,
    DockerHarness,
    FakeHarness,
    Harness,
    ProcessHarness,
    build_stub,
    clean,
    docker_client,
)


@pytest.fixture(
    params=["fake", "process", pytest.param("docker", marks=pytest.mark.docker)],
)
async def harness(
    request: pytest.FixtureRequest, tmp_path: Path, stub_image: Callable[[], str]
) -> AsyncIterator[Harness]:
    """One implementation after the other. Whatever a test leaves running is ended."""
    made: Any
    if request.param == "fake":
        made = FakeHarness(tmp_path)
    elif request.param == "process":
        made = ProcessHarness(tmp_path)
    else:
        made = DockerHarness(tmp_path, stub_image())
    async with clean(made):
        yield made


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.docker)])
async def restarting(
    request: pytest.FixtureRequest, tmp_path: Path, stub_image: Callable[[], str]
) -> AsyncIterator[Any]:
    """The runtimes whose containers others can start again."""
    made: Any = FakeHarness(tmp_path) if request.param == "fake" else DockerHarness(tmp_path, stub_image())
    async with clean(made):
        yield made


@pytest.fixture
async def docker_harness(tmp_path: Path, stub_image: Callable[[], str]) -> AsyncIterator[DockerHarness]:
    """Docker alone."""
    made = DockerHarness(tmp_path, stub_image())
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
