"""The real agent image, built as `clawbus image build` does it, and the real runner in a locked-down container."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from daemon.core.errors import ImageError, RuntimeUnavailableError
from daemon.runtimes import image_wheels
from daemon.runtimes.docker_image import ImageBuilder
from daemon.runtimes.image_build import BuiltImage, build_image, source_digest
from daemon.runtimes.protocol import Exit
from schema.ids import new_id
from tests.support.runtime_harness import DockerHarness, docker_client, until

pytestmark = [pytest.mark.docker]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels, fetched once."""
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="module")
def agents_base(base_image: str) -> Iterator[str]:
    """A base as agents' vendors make them: with a user, a HOME and a command of its own."""
    tag = f"clawbus-test-base:{new_id(time.time_ns() // 1_000_000).lower()}"
    lines = f'FROM {base_image}\nUSER nobody\nENV HOME=/nonexistent\nCMD ["sleep", "60"]\n'
    with docker_client() as client:
        steps: list[object] = list(client.build(fileobj=io.BytesIO(lines.encode()), tag=tag, rm=True, decode=True))
        assert "error" not in str(steps)
        yield tag
        client.remove_image(tag, force=True)


@pytest.fixture(scope="module")
def built(agents_base: str, cache: Path) -> Iterator[BuiltImage]:
    """An image with a tag of this run."""
    builder = ImageBuilder()
    tag = f"clawbus-test-agent:{new_id(time.time_ns() // 1_000_000).lower()}"
    try:
        yield build_image(builder, cache=cache, base=agents_base, tag=tag)
    finally:
        builder.close()
        with docker_client() as client:
            client.remove_image(tag, force=True)


@pytest.mark.anyio
async def test_the_runner_lives_in_the_locked_down_container(built: BuiltImage, docker_harness: DockerHarness) -> None:
    runtime = docker_harness.runtime(image=built.tag, source_digest=source_digest())
    await runtime.check()
    spec = docker_harness.spec(image=built.tag)
    spawned = await runtime.spawn(spec)
    out = next(m.source for m in spec.mounts if m.target == "/workspace/out")
    await until((out / "outbound.db").exists)
    await runtime.stop(spawned.container_id)
    with anyio.fail_after(30):
        assert await runtime.wait(spawned.container_id) == Exit(0), await runtime.logs(spawned.container_id)


def test_a_second_build_needs_no_index(
    built: BuiltImage, agents_base: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    pip = image_wheels._pip

    def watched(command: list[str], lock: str, folder: Path) -> None:
        asked.append(command[0])
        pip(command, lock, folder)

    monkeypatch.setattr(image_wheels, "_pip", watched)
    builder = ImageBuilder()
    try:
        again = build_image(builder, cache=cache, base=agents_base, tag=built.tag)
        assert asked == ["install"], "no download"
        assert again.image_id == built.image_id, "the same source is the same image"
        (wheels,) = [path for path in cache.iterdir() if path.is_dir()]
        assert build_image(builder, cache=cache, base=agents_base, tag=built.tag, wheels=wheels) == again
    finally:
        builder.close()


def test_a_base_without_python_is_refused(built: BuiltImage) -> None:
    tag = f"clawbus-test-bare:{new_id(time.time_ns() // 1_000_000).lower()}"
    with docker_client() as client:
        client.import_image_from_data(_empty_tar(), repository=tag.partition(":")[0], tag=tag.partition(":")[2])
    builder = ImageBuilder()
    try:
        with pytest.raises(ImageError, match="python3") as caught:
            builder.run_once(tag, ["python3", "-c", "1"])
        assert "python3` (Alpine)" in caught.value.hint
        assert f"to {tag}:" in caught.value.hint
    finally:
        builder.close()
        with docker_client() as client:
            client.remove_image(tag, force=True)


def test_a_foreign_image_is_known_from_ours_and_from_none(built: BuiltImage, base_image: str) -> None:
    with closing(ImageBuilder()) as builder:
        assert builder.is_foreign(base_image)
        assert not builder.is_foreign(built.tag)
        assert not builder.is_foreign("clawbus-none:none")


def test_a_base_that_is_nowhere_is_refused() -> None:
    builder = ImageBuilder()
    try:
        with pytest.raises(ImageError, match="cannot be pulled") as caught:
            builder.ensure_base("localhost:1/clawbus-no-such-base:1")
        assert "--base" in caught.value.hint
    finally:
        builder.close()


def test_without_docker_it_says_so(tmp_path: Path) -> None:
    builder = ImageBuilder(base_url=f"unix://{tmp_path}/no.sock")
    with pytest.raises(RuntimeUnavailableError):
        build_image(builder, cache=tmp_path, base="b")


def _empty_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    return buffer.getvalue()
