"""Cold start in Docker: a message for a session without a container, until its answer is delivered.

Beside it, in turn, a bare `docker run` of the same image whose Python imports sqlite3 and ends. Without Docker, or without
an image to build on, it says so and measures nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Final

from bench.figures import Figure, Of, Result, Target
from bench.floor import commits_cpu_ms
from bench.round_trip import DAEMON_COMMITS, ask
from bench.settings import Settings
from bench.spread import median, noise, spread
from bench.stage import ECHO, BenchFailed, BenchStage
from daemon.core.session_verbs import KillSession
from daemon.runtimes.image_build import DEFAULT_BASE
from daemon.runtimes.image_source import source_digest

_REPEATS: Final = 15
_WARM_UP: Final = 2
_FLOOR: Final = 40
_BUILD_S: Final = 900.0
_DOCKER_S: Final = 60.0
_TARGET: Final = Target(Of.RATIO, 1.2)
_NAME: Final = "cold start in Docker"
_NOTE: Final = (
    "From before the client's POST to the answer in its hands, each for a session that never had a container. The floor is"
    " `docker run --rm` of the same image with `python3 -c 'import sqlite3'`, until the command is back."
)


def measure(settings: Settings) -> Result:
    """Build the image once, then floor and figure in turn."""
    why_not = _unusable()
    if why_not is None:
        tag = f"clawbus-bench:{source_digest()[:12]}"
        why_not = _build(settings, tag)
    else:
        tag = ""
    if why_not is not None:
        return Result((Figure(_NAME, None, "s", target=_TARGET, note=why_not),), (why_not,))
    try:
        return _measure(settings, tag)
    finally:
        _docker("image", "rm", tag)


def _measure(settings: Settings, tag: str) -> Result:
    floors: list[float] = []
    found: list[float] = []
    cpu: list[float] = []
    with BenchStage(settings.folder, runtime="docker", tables=f"[docker]\nimage = {json.dumps(tag)}\n") as stage:
        stage.start()
        with stage.client() as client:
            for number in range(settings.count(_REPEATS, 2) + _WARM_UP):
                floors.append(_bare_run(tag))
                session, before = f"cold-{number}", stage.usage().cpu_s
                found.append(ask(client, session, number).took / 1000)
                cpu.append((stage.usage().cpu_s - before) * 1000)
                client.execute(KillSession(ECHO, session, reason="measured"))
    floor, own = spread(floors[_WARM_UP:]), spread(found[_WARM_UP:])
    text = f"{own.count} starts, half {own.quarter:.3f} .. {own.three_quarters:.3f}, p99 {own.p99:.3f}"
    half = len(floors) // 2
    return Result(
        figures=(
            Figure(_NAME, own.p50, "s", floor.p50, _TARGET, text),
            Figure(
                "cold start: the daemon's processor time", fmean(cpu[_WARM_UP:]), "ms",
                median(commits_cpu_ms(settings.folder, DAEMON_COMMITS, _FLOOR)), None,
                f"floor: the {DAEMON_COMMITS} commits of a warm message",
            ),
        ),
        notes=(_NOTE,),
        noisy=noise([floors[_WARM_UP:half], floors[half:]]),
    )  # fmt: skip


def _unusable() -> str | None:
    if shutil.which("docker") is None:
        return "skipped: there is no `docker` command"
    answer = _docker("version", "--format", "{{.Server.Version}}")
    return None if answer.returncode == 0 else f"skipped: Docker does not answer ({answer.stderr.strip()[:100]})"


def _build(settings: Settings, tag: str) -> str | None:
    """Make the image of this very source; why not, if it cannot be."""
    base = settings.base_image or DEFAULT_BASE
    command = [str(Path(sys.executable).with_name("clawbus")), "image", "build", "--tag", tag, "--base", base, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_S, cwd=settings.folder, check=False)
    if done.returncode == 0:
        return None
    try:
        error = str(json.loads(done.stdout)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        error = done.stderr.strip()[-200:]
    return f"skipped: no image could be built on {base} (--base-image names another): {error}"


def _bare_run(tag: str) -> float:
    """Seconds of one."""
    began = time.perf_counter()
    done = _docker("run", "--rm", "--network", "none", "--entrypoint", "python3", tag, "-c", "import sqlite3")
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise BenchFailed(f"a bare docker run failed: {done.stderr.strip()}")
    return seconds


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=_DOCKER_S, check=False)
