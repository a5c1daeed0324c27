"""The real agent image, built once for whoever needs real containers, under a tag of its own."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.runtimes.docker_image import ImageBuilder
from daemon.runtimes.image_build import build_image
from schema.ids import new_id


@contextmanager
def agent_image(base: str) -> Iterator[str]:
    """The image's tag, for as long as the block runs."""
    tag = f"clawbus-faults:{new_id(time.time_ns() // 1_000_000).lower()}"
    builder = ImageBuilder()
    try:
        with tempfile.TemporaryDirectory() as cache:
            build_image(builder, cache=Path(cache), base=base, tag=tag)
        yield tag
    finally:
        builder.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False, timeout=120)
