"""Docker as the tests of the bus use it: the image built by the real command line, and looks at real containers."""

import json
import shutil
import subprocess
from typing import Any, Final

from tests.support.agents import ECHO, PROGRAM, command_agent
from tests.support.daemon import RealDaemon

TMP_MARK: Final = "/workspace/agent"
ACP_PROGRAM: Final = PROGRAM.with_name("scripted_acp_agent.py")


def docker(*arguments: str, stdin: str | None = None) -> str:
    """What a docker command prints; it must succeed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False, input=stdin)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", container))[0]
    return found


def exists(container: str) -> bool:
    done = subprocess.run(["docker", "inspect", container], capture_output=True, timeout=120, check=False)
    return done.returncode == 0


def agents(image: str) -> str:
    """`prog` obeys (agent_program.py), `bare` does so with an ordinary interpreter, `small` in 48 MiB; `acp` speaks ACP."""
    path = f"{TMP_MARK}/{PROGRAM.name}"
    return (
        f'[docker]\nimage = "{image}"\n'
        + ECHO
        + command_agent("prog", ("python3", "-I", "-S", path))
        + command_agent("bare", ("python3", path))
        + command_agent("small", ("python3", "-I", "-S", path))
        + f"memory_bytes = {48 * 1024**2}\n"
        + '[agents.acp]\nprovider = "acp"\n'
        + f'command = ["python3", "-I", "-S", "{TMP_MARK}/{ACP_PROGRAM.name}", "resume=ok", "stay"]\n'
    )


def give_program(daemon: RealDaemon) -> None:
    """Put the program where the agents' containers see it."""
    programs = {"prog": PROGRAM, "bare": PROGRAM, "small": PROGRAM, "acp": ACP_PROGRAM}
    for name, program in programs.items():
        folder = daemon.data / "agents" / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(program, folder / program.name)
    for folder in (daemon.data, daemon.data / "agents"):
        folder.chmod(0o700)
