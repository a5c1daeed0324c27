"""What others than the daemon do to a container with `docker`: a person, a restart policy, a container manager.

Each blow takes a container's id. Docker may refuse it because the daemon was quicker; that is fine.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any


def quietly(*arguments: str) -> None:
    """Run a docker command, whatever becomes of it."""
    subprocess.run(["docker", *arguments], capture_output=True, timeout=120, check=False)


def _config(container: str) -> dict[str, Any]:
    """A container's configuration; nothing once it is removed."""
    done = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, timeout=120, check=False)
    return json.loads(done.stdout)[0]["Config"] if done.returncode == 0 else {}


def restart(container: str) -> None:
    quietly("restart", "-t", "1", container)


def kill_and_start(container: str) -> None:
    quietly("kill", container)
    quietly("start", container)


def pause(container: str) -> None:
    quietly("pause", container)


def rename(container: str) -> None:
    quietly("rename", container, f"renamed-{container[:12]}")


def remove(container: str) -> None:
    quietly("rm", "-f", container)


def policy_and_kill(container: str) -> None:
    quietly("update", "--restart=always", container)
    quietly("kill", "-s", "KILL", container)


def kill_and_prune(container: str) -> None:
    if config := _config(container):
        quietly("kill", container)
        quietly("container", "prune", "-f", "--filter", f"label=clawbus.install={config['Labels']['clawbus.install']}")


def make_again(container: str) -> None:
    """A second container with the same labels, as `recreate` of a container manager makes it."""
    if config := _config(container):
        labels = [word for key, value in config["Labels"].items() for word in ("--label", f"{key}={value}")]
        quietly("run", "-d", "--network", "none", "--entrypoint", "sleep", *labels, config["Image"], "600")
