"""The agents' image for `RUNTIME=docker`: looked for, and built when the right one is missing."""

from __future__ import annotations

import shutil
import subprocess

from daemon.config.models import DEFAULT_IMAGE
from daemon.runtimes.image_build import source_digest
from daemon.runtimes.spec import LABEL_SOURCE_DIGEST
from demo.stage import DemoFailed, Stage

_BUILD_S = 900.0


def check_docker() -> None:
    """DemoFailed, with what to do, unless Docker answers."""
    advice = "start Docker, or run the demo without it: make demo"
    if shutil.which("docker") is None:
        raise DemoFailed(f"RUNTIME=docker needs Docker, and there is no `docker` command on the path; {advice}")
    done = _docker("version", "--format", "{{.Server.Version}}")
    if done.returncode != 0:
        raise DemoFailed(f"Docker does not answer: {done.stderr.strip()}; {advice}")


def ensure_image(stage: Stage, base: str) -> bool:
    """Whether the image had to be built. `base` empty: the default base."""
    label = f'{{{{index .Config.Labels "{LABEL_SOURCE_DIGEST}"}}}}'
    found = _docker("image", "inspect", "--format", label, DEFAULT_IMAGE)
    if found.returncode == 0 and found.stdout.strip() == source_digest():
        return False
    print(f"building {DEFAULT_IMAGE}" + (f" on {base}" if base else ""), flush=True)
    stage.clawbus("image", "build", *(("--base", base) if base else ()), timeout_s=_BUILD_S)
    return True


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=False)
