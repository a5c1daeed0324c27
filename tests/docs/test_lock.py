"""The locks say exactly what is installed: hashed, from nowhere in particular, and as pyproject.toml asks."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT: Final = Path(__file__).resolve().parents[2]
RUNTIME: Final = "locks/runtime.txt"
DEV: Final = "locks/dev.txt"
BUILD: Final = "locks/build.txt"
RUNNER: Final = "container_runner/requirements.lock"
OTEL: Final = "locks/otel.txt"
LOCKS: Final = (RUNTIME, DEV, BUILD, RUNNER, OTEL)
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")

PINNED: Final = re.compile(
    r"(?P<name>[a-z0-9]+(-[a-z0-9]+)*)==(?P<version>[0-9][0-9a-z.+]*)"
    r"( ; (?P<marker>[a-z0-9_ '\".<>=!()]+?))?"
    r"(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)"
)


@dataclass(frozen=True, slots=True)
class Pin:
    name: str
    version: Version
    requirement: Requirement
    hashes: frozenset[str]

    def applies(self, python: str) -> bool:
        environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
        return self.requirement.marker is None or self.requirement.marker.evaluate(environment)


def entries(text: str) -> list[str]:
    """The requirements of a lock, each on one line, as pip joins them."""
    return [" ".join(entry.split()) for entry in text.replace("\\\n", " ").splitlines() if entry.strip()]


def complaint(entry: str) -> str | None:
    return (
        None if PINNED.fullmatch(entry) else f"not exactly `name==version [; marker] --hash=sha256:...`: {entry[:120]}"
    )


def read(lock: str) -> dict[str, Pin]:
    pins: dict[str, Pin] = {}
    for entry in entries((ROOT / lock).read_text(encoding="utf-8")):
        found = PINNED.fullmatch(entry)
        assert found is not None, f"{lock}: {complaint(entry)}"
        name = canonicalize_name(found["name"])
        assert name not in pins, f"{lock} pins {name} twice"
        requirement = Requirement(entry.partition(" --hash")[0])
        pins[name] = Pin(name, Version(found["version"]), requirement, frozenset(found["hashes"].split()))
    return pins


def project() -> Mapping[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared(lock: str) -> list[Requirement]:
    """What pyproject.toml asks of a lock."""
    toml = project()
    runtime: list[str] = toml["project"]["dependencies"]
    groups: Mapping[str, list[str]] = toml["dependency-groups"]
    traces: list[str] = toml["project"]["optional-dependencies"]["otel"]
    texts = {
        RUNTIME: runtime,
        DEV: [*runtime, *traces, *groups["dev"], *groups["bench"]],
        BUILD: groups["build"],
        RUNNER: groups["runner"],
        OTEL: [*runtime, *traces],
    }[lock]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_a_pin_with_hashes_and_names_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert [found for entry in entries(text) if (found := complaint(entry))] == []
    assert not re.search(r"[/@]|index|find-links|trusted-host|\bfile:|\.(com|org|net|io)\b", text)


@pytest.mark.parametrize(
    "entry",
    [
        "anyio==4.9.0",
        "anyio>=4.9 --hash=sha256:" + "0" * 64,
        "anyio==4.9.0 --hash=sha256:short",
        "anyio==4.9.0 --hash=md5:" + "0" * 32,
        "anyio @ https://example.invalid/anyio.whl --hash=sha256:" + "0" * 64,
        "--index-url https://example.invalid/simple",
        "--find-links ../wheels",
        "-e .",
        "# made on a machine of its own",
    ],
)
def test_the_line_check_sees_an_offender(entry: str) -> None:
    assert complaint(entry)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_a_lock_has_what_pyproject_asks_on_every_python(lock: str, python: str) -> None:
    pins = read(lock)
    for requirement in declared(lock):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{lock} lacks {requirement}; run `make lock`"
        assert pin.applies(python), f"{lock}: {pin.requirement} does not apply on Python {python}"
        assert requirement.specifier.contains(pin.version, prereleases=True), (
            f"{lock} pins {pin.requirement}, but pyproject.toml asks for {requirement}; run `make lock`"
        )


@pytest.mark.parametrize(("part", "whole"), [(RUNTIME, DEV), (RUNNER, RUNTIME), (RUNTIME, OTEL), (OTEL, DEV)])
def test_one_lock_is_part_of_another(part: str, whole: str) -> None:
    larger = read(whole)
    assert [pin.name for pin in read(part).values() if not _same(pin, larger.get(pin.name))] == []


def _same(pin: Pin, other: Pin | None) -> bool:
    """Markers may differ (another dependent may want it on more platforms); version and hashes may not."""
    return other is not None and (other.version, other.hashes) == (pin.version, pin.hashes)


def test_locks_agree_where_they_overlap() -> None:
    build, dev = read(BUILD), read(DEV)
    assert [name for name in build.keys() & dev.keys() if not _same(build[name], dev[name])] == []


def test_the_groups_repeat_what_they_must() -> None:
    toml = project()
    assert toml["dependency-groups"]["build"] == toml["build-system"]["requires"]
    runner: list[str] = toml["dependency-groups"]["runner"]
    assert set(runner) <= set(toml["project"]["dependencies"])
    assert {Requirement(text).name for text in runner} == {"anyio", "structlog", "watchfiles"}


def test_the_pythons_are_those_of_pyproject() -> None:
    supported = SpecifierSet(project()["project"]["requires-python"])
    assert [minor for minor in range(8, 20) if supported.contains(f"3.{minor}.1")] == [11, 12, 13, 14]
    assert [f"3.{minor}" for minor in (11, 12, 13, 14)] == list(PYTHONS)
