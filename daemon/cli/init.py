"""`clawbus init`: a first configuration and its data folder. Never overwrites a file."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from daemon.cli.command import add
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from schema.durable_files import write_new_file

if TYPE_CHECKING:
    from rich.console import Console

_TEMPLATE: Final = """\
# clawbus. Every key and its default: docs/configuration.md. Check with `clawbus config check`.

# Sessions, registry, mailbox, logs and the control socket. A relative path is relative to this file.
data_dir = {data_dir}

[runtime]
# docker, podman: one container a session (build its image once: `clawbus image build`).
# process: plain subprocesses without any isolation, for a first look.
kind = "{runtime}"
max_containers = 8       # at once; the others wait their turn
idle_stop_s = 900.0      # a container with nothing to do is stopped after this

# An agent answers the messages of its sessions. This one repeats what it is told.
[agents.echo]
provider = "echo"

# Any program can be an agent: the turn comes as JSON on its standard input, the answer is what it prints. It starts in
# the agent's own folder, agents/helper in the data folder.
# [agents.helper]
# provider = "command"
# command = ["python3", "helper.py"]
# timeout_s = 600.0
"""

# What link(2) says on a file system without hard links.
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "init", init)


RuntimeOption = Annotated[
    Literal["docker", "podman", "process"],
    typer.Option("--runtime", help="Where agents run: in containers of Docker or Podman, or as plain processes."),
]


def init(invocation: Invocation, runtime: RuntimeOption = "docker") -> Outcome:
    """Write a first clawbus.toml with an agent `echo`, and make the data folder.

    Use it once on a new machine. It never overwrites: an existing file is an error. --config names the file (default
    ./clawbus.toml), --data the folder (default ./clawbus-data).

    \b
    Example:
      clawbus init --runtime process --data ./data
    """
    file = (invocation.options.config or Path("clawbus.toml")).absolute()
    data = (invocation.options.data or file.parent / "clawbus-data").absolute()
    problem = _write(file, _TEMPLATE.format(data_dir=_toml_path(data, file.parent), runtime=runtime), data)
    if problem is not None:
        return Outcome(problem=problem)
    named = "" if file == Path.cwd() / "clawbus.toml" else f" --config {file}"
    steps = [NextAction(f"clawbus serve{named}", "start the daemon")]
    if runtime != "process":
        steps.insert(0, NextAction(f"clawbus image build{named}", "build the agents' image, once"))
    steps.append(NextAction(f"clawbus send{named} 'hello' --agent echo --session demo --wait 30", "then talk to it"))

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(console, f"wrote {file}", f"made  {data}")

    result = {"config": str(file), "data_dir": str(data), "runtime": runtime, "agents": ["echo"]}
    return Outcome(result, people, tuple(steps))


def _write(file: Path, text: str, data: Path) -> Problem | None:
    """Make the data folder, then the file: what fails or is killed on the way can be repeated."""
    try:
        if os.path.lexists(file):
            return _exists(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_whole(file, text)
    except FileExistsError as error:
        return _exists(error.filename)
    except OSError as error:
        fix = "Choose a place that you may write, with --config and --data."
        return Problem("NOT_WRITABLE", f"{error.filename}: {error.strerror}.", fix)
    return None


def _exists(path: Path | str) -> Problem:
    fix = "Use it as it is, move it away, or name another one with --config."
    return Problem("EXISTS", f"{path} exists; nothing was overwritten.", fix)


def _write_whole(file: Path, text: str) -> None:
    """Write the file under another name, then give it its own. Raise FileExistsError if something has it."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    try:
        write_new_file(draft, text.encode(), 0o644)
        try:
            os.link(draft, file)  # unlike a rename, it never replaces a file
        except FileExistsError as error:
            raise FileExistsError(error.errno, error.strerror, str(file)) from error
        except OSError as error:
            if error.errno not in _NO_LINKS or os.path.lexists(file):
                raise
            draft.rename(file)
    finally:
        draft.unlink(missing_ok=True)


def _toml_path(data: Path, base: Path) -> str:
    """Return a path as a TOML string: relative if it is beside the file, so that the folder can be moved."""
    return json.dumps(str(data.relative_to(base)) if data.is_relative_to(base) else str(data))
