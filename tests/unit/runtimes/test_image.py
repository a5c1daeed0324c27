"""The source digest, the choice of wheels, and every reason not to build an image. Docker is a stand-in here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.core.errors import ImageError, RuntimeUnavailableError
from daemon.runtimes import image_build as image
from daemon.runtimes import image_source as source
from daemon.runtimes import image_wheels
from daemon.runtimes.docker_image import ImageBuilder
from daemon.runtimes.image_wheels import TargetPython

PROBE: dict[str, Any] = {
    "implementation": "CPython",
    "version": [3, 13],
    "abi": "cp313",
    "machine": "x86_64",
    "libc": "glibc",
    "libc_version": [2, 36],
    "missing": "",
}


class ScriptedBuilder:
    """Answers the probe as told and keeps what it was asked to build."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.context: dict[str, bytes] = {}
        self.arguments: Mapping[str, str] = {}
        self.foreign: set[str] = set()

    def is_foreign(self, tag: str) -> bool:
        return tag in self.foreign

    def ensure_base(self, image: str) -> bool:
        return False

    def run_once(self, image: str, command: list[str]) -> str:
        return self.output

    def build(
        self,
        context: Path,
        *,
        tag: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        step: Callable[[str], None],
    ) -> str:
        self.context = {
            path.relative_to(context).as_posix(): path.read_bytes() for path in context.rglob("*") if path.is_file()
        }
        self.arguments = arguments
        step("built")
        return "sha256:1"


def a_tree(root: Path) -> Path:
    """Two packages as installed."""
    for package in source.PACKAGES:
        (root / package / "deep").mkdir(parents=True)
        (root / package / "__init__.py").write_text("", encoding="utf-8")
        (root / package / "deep" / "a.py").write_text("x = 1\n", encoding="utf-8")
    (root / "container_runner" / "Dockerfile").write_text("FROM x\n", encoding="utf-8")
    (root / "container_runner" / "requirements.lock").write_text("", encoding="utf-8")
    (root / "schema" / "inbound.sql").write_text("SELECT 1;\n", encoding="utf-8")
    return root


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = a_tree(tmp_path / "site")

    def folder(package: str) -> Path:
        return root / package

    monkeypatch.setattr(source, "package_folder", folder)
    monkeypatch.setattr(image, "package_folder", folder)
    return root


def test_the_digest_is_stable_and_of_this_source() -> None:
    names = [name for name, _ in source.source_files()]
    assert source.source_digest() == source.source_digest()
    assert len(source.source_digest()) == 64
    assert {"container_runner/requirements.lock", "schema/inbound.sql", "schema/rows.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_the_digest_sees_every_content_and_every_name(tree: Path) -> None:
    seen = {source.source_digest()}
    for change in (
        lambda: (tree / "schema/deep/a.py").write_text("x = 2\n", encoding="utf-8"),
        lambda: (tree / "schema/inbound.sql").write_text("SELECT 2;\n", encoding="utf-8"),
        lambda: (tree / "container_runner/Dockerfile").write_text("FROM y\n", encoding="utf-8"),
        lambda: (tree / "container_runner/requirements.lock").write_text("a==1\n", encoding="utf-8"),
        lambda: (tree / "schema/deep/a.py").rename(tree / "schema/deep/b.py"),
        lambda: (tree / "schema/deep/b.py").rename(tree / "container_runner/deep/b.py"),
    ):
        change()
        seen.add(source.source_digest())
    assert len(seen) == 7


def test_the_digest_does_not_see_what_running_leaves_behind(tree: Path) -> None:
    before = source.source_digest()
    (tree / "schema/__pycache__").mkdir()
    (tree / "schema/__pycache__/a.cpython-311.pyc").write_bytes(b"x")
    (tree / "schema/__pycache__/odd.py").write_bytes(b"x")
    (tree / "schema/notes.txt").write_text("x", encoding="utf-8")
    assert source.source_digest() == before


def test_the_context_is_the_source_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    builder = ScriptedBuilder("a warning\n" + json.dumps(PROBE))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    steps: list[str] = []
    built = image.build_image(builder, cache=tmp_path, base="b", tag="t", wheels=wheels, progress=steps.append)
    expected = {f"app/{name}" for name, _ in source.source_files()} | {"Dockerfile"}
    assert set(builder.context) == expected
    assert builder.arguments == {"BASE_IMAGE": "b", "SOURCE_DIGEST": source.source_digest()}
    assert (built.tag, built.base, built.python, built.source_digest) == ("t", "b", "3.13", source.source_digest())
    assert steps[-1] == "built"


def test_another_s_image_loses_its_name_only_when_that_is_asked_for(tree: Path, tmp_path: Path) -> None:
    builder = ScriptedBuilder(json.dumps(PROBE))
    builder.foreign = {"postgres:16"}
    with pytest.raises(ImageError, match=r"postgres:16 is not clawbus's") as caught:
        image.build_image(builder, cache=tmp_path, tag="postgres:16", wheels=tmp_path)
    assert "docker.image" in caught.value.hint
    assert builder.context == {}
    assert (
        image.build_image(builder, cache=tmp_path, tag="postgres:16", wheels=tmp_path, replace_foreign=True).tag
        == "postgres:16"
    )


@pytest.mark.parametrize("name", ["BAD TAG", "", "x:y:z"])
def test_a_name_that_no_image_can_have_is_the_name_s_fault_and_not_docker_s(tmp_path: Path, name: str) -> None:
    with closing(ImageBuilder(base_url=f"unix://{tmp_path}/no.sock")) as builder:
        with pytest.raises(ImageError, match="not a valid image name") as caught:
            builder.is_foreign(name)
        assert "--tag" in caught.value.hint
        with pytest.raises(RuntimeUnavailableError):
            builder.is_foreign("good:1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": [3, 10]}, r"Python 3\.10"),
        ({"implementation": "PyPy"}, "PyPy"),
        ({"missing": "No module named 'sqlite3'"}, "sqlite3"),
        ({"version": "?"}, "did not report"),
        ({"libc_version": []}, "did not report"),
    ],
)
def test_a_base_that_cannot_carry_the_runner_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        image.detect(ScriptedBuilder(json.dumps({**PROBE, **change})), "b")
    assert "--base" in caught.value.hint


@pytest.mark.parametrize("output", ["", "python3: not found", "[]"])
def test_a_base_that_says_nothing_sensible_is_refused(output: str) -> None:
    with pytest.raises(ImageError, match="did not report"):
        image.detect(ScriptedBuilder(output), "b")


def test_platforms_are_those_that_run_on_the_libc() -> None:
    glibc = TargetPython((3, 13), "cp313", "x86_64", "glibc", (2, 19))
    assert glibc.platforms[0] == "manylinux_2_19_x86_64"
    assert "manylinux_2_5_x86_64" in glibc.platforms
    assert "manylinux2014_x86_64" in glibc.platforms
    assert "manylinux_2_20_x86_64" not in glibc.platforms
    musl = TargetPython((3, 13), "cp313", "aarch64", "musl", (1, 2))
    assert musl.platforms == ("musllinux_1_2_aarch64", "musllinux_1_1_aarch64", "musllinux_1_0_aarch64")


def test_markers_about_the_python_version_are_for_the_target_not_for_us() -> None:
    lock = (
        "anyio==4.16.0 \\\n    --hash=sha256:aa\n"
        "typing-extensions==4.16.0 ; python_full_version < '3.13' \\\n    --hash=sha256:bb\n"
        "tomli==2.0 ; python_version < '3.11'\n"
        "colorama==0.4 ; sys_platform == 'win32' \\\n    --hash=sha256:cc\n"
    )
    assert image_wheels.target_requirements(lock) == (
        "anyio==4.16.0 \\\n    --hash=sha256:aa\n"
        "typing-extensions==4.16.0 \\\n    --hash=sha256:bb\n"
        "tomli==2.0\n"
        "colorama==0.4 ; sys_platform == 'win32' \\\n    --hash=sha256:cc\n"
    )


def test_a_missing_wheel_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    target = TargetPython((3, 13), "cp313", "x86_64", "glibc", (2, 36))
    lock = f"clawbus-no-such-package==1.0 --hash=sha256:{'0' * 64}\n"
    with pytest.raises(ImageError, match="clawbus-no-such-package") as caught:
        image_wheels.unpack_wheels(lock, target, wheels, tmp_path / "site")
    assert "--wheels" in caught.value.hint


def test_a_folder_of_wheels_must_be_there(tmp_path: Path) -> None:
    target = TargetPython((3, 13), "cp313", "x86_64", "glibc", (2, 36))
    with pytest.raises(ImageError, match="not a folder"):
        image_wheels.unpack_wheels("", target, tmp_path / "nowhere", tmp_path / "site")


def test_without_pip_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        assert name == "pip"

    monkeypatch.setattr(image_wheels.importlib.util, "find_spec", none)
    target = TargetPython((3, 13), "cp313", "x86_64", "glibc", (2, 36))
    with pytest.raises(ImageError, match="no pip") as caught:
        image_wheels.unpack_wheels("", target, tmp_path, tmp_path / "site")
    assert "ensurepip" in caught.value.hint
