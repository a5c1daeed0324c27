"""Build the image of deploy/kubernetes from this checkout: `make image`, or with a Docker of your own choice.

Run it with an environment of the checkout (`make clawbus`). The wheels are those of locks/runtime.txt, fetched for the
base's Python and checked by hash; the build itself has no network.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final

from daemon.core.errors import ClawbusError
from daemon.runtimes.docker_image import ImageBuilder
from daemon.runtimes.image_build import DEFAULT_BASE, detect
from daemon.runtimes.image_wheels import fetch_wheels, unpack_wheels

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]


def build(base: str, tag: str, cache: Path) -> str:
    """Return the id of the built image. Raise ClawbusError."""
    lock = (ROOT / "locks" / "runtime.txt").read_text(encoding="utf-8")
    with closing(ImageBuilder()) as builder, tempfile.TemporaryDirectory(prefix="clawbus-image-") as folder:
        context = Path(folder)
        builder.ensure_base(base)
        target = detect(builder, base)
        print(f"wheels for Python {target.version[0]}.{target.version[1]}, {target.libc}, {target.machine}", flush=True)
        unpack_wheels(lock, target, fetch_wheels(lock, target, cache), context / "site")
        _add_clawbus(context)
        (context / "requirements.txt").unlink(missing_ok=True)
        _make_readable(context / "site")
        shutil.copyfile(HERE / "Dockerfile", context / "Dockerfile")
        print(f"building {tag}", flush=True)
        return builder.build(context, tag=tag, arguments={"BASE_IMAGE": base}, labels={}, step=lambda _: None)


def _add_clawbus(context: Path) -> None:
    """Put this checkout into the context's site/, as its wheel would install it."""
    wheels = context / "own"
    _run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels))
    (wheel,) = wheels.glob("clawbus-*.whl")
    _run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-index", "--no-deps"),
        *("--no-compile", "--target", str(context / "site"), "--upgrade", str(wheel)),
    )
    shutil.rmtree(wheels)


def _make_readable(site: Path) -> None:
    """Let every user read it: a build keeps the modes, and to change them there would copy each file."""
    for path in (site, *site.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-1000:]}")


def main() -> None:
    """Build by the command line's options."""
    parser = argparse.ArgumentParser(description="Build the image of daemon and runner for a pod.")
    parser.add_argument("--base", default=DEFAULT_BASE, help=f"the image to build on (default {DEFAULT_BASE})")
    parser.add_argument("--tag", default="clawbus:latest", help="the new image's name (default clawbus:latest)")
    chosen = parser.parse_args()
    try:
        image = build(chosen.base, chosen.tag, Path.home() / ".cache" / "clawbus" / "wheels")
    except ClawbusError as error:
        raise SystemExit(f"{error}\n{error.hint}") from error
    print(f"built {chosen.tag} ({image})")


if __name__ == "__main__":
    main()
