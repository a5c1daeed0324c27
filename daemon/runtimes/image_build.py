"""Builds the agent image from exactly the installed source and the locked wheels.

The build itself has no network: everything it needs is in its context. This module reads the runner's files, and never
imports the runner.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from daemon.config.models import DEFAULT_IMAGE
from daemon.core.errors import ImageError
from daemon.runtimes.image_source import package_folder, source_digest, source_files
from daemon.runtimes.image_wheels import TargetPython, fetch_wheels, unpack_wheels
from daemon.runtimes.spec import LABEL_SOURCE_DIGEST
from schema.frozen import frozen

DEFAULT_BASE: Final = "python:3.13-slim"
OLDEST: Final = (3, 11)

# This program runs in the base image, on any Python 3, and prints one line of JSON about the interpreter.
_PROBE: Final = """
import glob, json, os, platform, re, subprocess, sys, sysconfig
try:
    import sqlite3, venv
    missing = ""
except ImportError as error:
    missing = str(error)
musl = glob.glob("/lib/ld-musl-*.so.1")
if musl:
    text = subprocess.run(musl[:1], stderr=subprocess.PIPE).stderr.decode()
    libc, version = "musl", re.search("Version ([0-9]+)[.]([0-9]+)", text).groups()
else:
    libc, version = "glibc", os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")[:2]
print(json.dumps({
    "implementation": platform.python_implementation(),
    "version": list(sys.version_info[:2]),
    "abi": "cp%d%d" % sys.version_info[:2] + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""),
    "machine": sysconfig.get_platform().partition("-")[2].replace("-", "_"),
    "libc": libc,
    "libc_version": [int(part) for part in version],
    "missing": missing,
}))
"""


class Builder(Protocol):
    """What a build needs from Docker. `docker_image.ImageBuilder` implements it."""

    def is_foreign(self, tag: str) -> bool:
        """Return whether a local image has this name and clawbus did not build it. Raise ImageError for an invalid name."""
        ...

    def ensure_base(self, image: str) -> bool:
        """Pull the image unless this machine has it. Return whether it was pulled."""
        ...

    def run_once(self, image: str, command: list[str]) -> str:
        """Run a program in a new container of the image and return its output."""
        ...

    def build(
        self,
        context: Path,
        *,
        tag: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        step: Callable[[str], None],
    ) -> str:
        """Build the image from the context and return its id. `step` gets one line for each build step."""
        ...


@frozen
class BuiltImage:
    """The result of a build: the image, and the base, Python version and source that it was built from."""

    tag: str
    image_id: str
    base: str
    python: str
    source_digest: str


def build_image(
    builder: Builder,
    *,
    cache: Path,
    base: str = DEFAULT_BASE,
    tag: str = DEFAULT_IMAGE,
    wheels: Path | None = None,
    replace_foreign: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> BuiltImage:
    """Build and tag the agent image. `wheels` is a prepared folder to use instead of the package index.

    With `replace_foreign`, take the tag even from an image that clawbus did not build. `progress` gets one line for each
    step. Blocks, for minutes if the base must be pulled. Raise RuntimeUnavailableError when Docker does not answer, ImageError
    for every other failure.
    """
    if builder.is_foreign(tag) and not replace_foreign:
        raise ImageError(
            f"the image {tag} is not clawbus's, and a build would take its name.",
            hint="Set docker.image to another name. To replace that image, name it with --tag.",
        )
    progress(f"base image {base}")
    if builder.ensure_base(base):
        progress(f"pulled {base}")
    target = detect(builder, base)
    progress(f"Python {target.version[0]}.{target.version[1]}, {target.libc}, {target.machine}")
    lock = (package_folder("container_runner") / "requirements.lock").read_text(encoding="utf-8")
    if wheels is None:
        progress("wheels from the cache or the package index")
        wheels = fetch_wheels(lock, target, cache)
    digest = source_digest()
    with tempfile.TemporaryDirectory(prefix="clawbus-image-") as folder:
        context = Path(folder)
        _copy_source(context)
        unpack_wheels(lock, target, wheels, context / "site")
        (context / "requirements.txt").unlink(missing_ok=True)
        progress(f"building {tag}")
        image_id = builder.build(
            context,
            tag=tag,
            arguments={"BASE_IMAGE": base, "SOURCE_DIGEST": digest},
            labels={LABEL_SOURCE_DIGEST: digest},
            step=progress,
        )
    return BuiltImage(tag, image_id, base, ".".join(map(str, target.version)), digest)


def detect(builder: Builder, base: str) -> TargetPython:
    """Ask the base image's python3 which Python it is. Raise ImageError when it cannot run the runner."""
    hint = (
        f"Add CPython 3.11 or newer with its sqlite3 and venv modules to {base} (the package python3 of Debian 12, Ubuntu"
        " 24.04 and Alpine 3.18), or choose another base image: `clawbus image build --base IMAGE`."
    )
    output = builder.run_once(base, ["python3", "-c", _PROBE])
    try:
        found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        target = TargetPython(
            version=(int(found["version"][0]), int(found["version"][1])),
            abi=str(found["abi"]),
            machine=str(found["machine"]),
            libc=str(found["libc"]),
            libc_version=(int(found["libc_version"][0]), int(found["libc_version"][1])),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise ImageError(
            f"python3 in {base} did not report its version and platform: {output.strip()[-200:]!r}.", hint=hint
        ) from error
    version = ".".join(map(str, target.version))
    if target.version < OLDEST:
        raise ImageError(f"{base} has Python {version}; the runner needs 3.11 or newer.", hint=hint)
    if found["implementation"] != "CPython":
        raise ImageError(f"{base} has {found['implementation']}; the runner needs CPython.", hint=hint)
    if found["missing"]:
        raise ImageError(f"the Python in {base} lacks a module: {found['missing']}.", hint=hint)
    return target


def _copy_source(context: Path) -> None:
    for name, path in source_files():
        target = context / "app" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copyfile(package_folder("container_runner") / "Dockerfile", context / "Dockerfile")
