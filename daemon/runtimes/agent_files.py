"""Checks, before every start of a container, the host's files that its agent needs: mounts, environment file, secrets.

The daemon reads a secret only to check it. The container gets the file itself, read-only, so that the value is in no
environment, label, log or copy. A missing file is the host's fault: the container does not start, and the message waits and
loses no try.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from daemon.config.agents import Agent
from daemon.config.cross_checks import host_places
from daemon.config.models import Config
from daemon.config.mounts import source_fault
from daemon.core.errors import AgentFileError, EnvFileError, MountSourceError, SecretFileError
from daemon.runtimes.protocol import Mount
from schema.errors import ClawbusError
from schema.layout import CONTAINER_SECRETS
from schema.os_faults import host_error, passes

_MAX_BYTES: Final = 64 * 1024  # of an environment file or a secret
_LINE: Final = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)\Z", re.DOTALL)


def operator_mounts(name: str, agent: Agent, config: Config) -> tuple[Mount, ...]:
    """Return the mounts of `agents.NAME.mounts`. Raise MountSourceError for a source that is missing or not allowed."""
    found: list[Mount] = []
    for number, one in enumerate(agent.mounts):
        where = f"agents.{name}.mounts[{number}].source"
        # Check again, as loading the configuration did: a link in the path may have changed since.
        fault = source_fault(one.source, host_places(config, config.data_dir))
        if fault is not None:
            raise MountSourceError(f"{where}: {one.source} {fault}.")
        if not Path(one.source).exists():
            raise MountSourceError(f"{where}: {one.source} is missing.")
        found.append(Mount(Path(one.source), one.target.rstrip("/"), read_only=one.read_only))
    return tuple(found)


def environment_of(name: str, agent: Agent) -> dict[str, str]:
    """Return the variables of `env_file` and of `env`; where both set one, `env` wins.

    Raise EnvFileError if the file is unreadable, too large or malformed.
    """
    if not agent.env_file:
        return dict(agent.env)
    where = f"agents.{name}.env_file"
    text = _read(where, agent.env_file, EnvFileError)
    return {**_variables(f"{where}: {agent.env_file}", text), **agent.env}


def secret_mounts(name: str, agent: Agent, user: tuple[int, int]) -> tuple[Mount, ...]:
    """Return a read-only mount for each secret. `user` is the container's (uid, gid).

    Raise SecretFileError if a file is missing, empty or too large, or if `user` may not read it.
    """
    _check_secrets(name, agent)
    for secret, path in agent.secret_file.items():
        where = f"agents.{name}.secret_file.{secret}"
        try:
            status = Path(path).stat()
        except OSError as error:
            raise SecretFileError(f"{where}: {path} cannot be read: {error.strerror}.") from error
        if not _may_read(status, *user):
            uid, gid = user
            raise SecretFileError(
                f"{where}: the container's user {uid}:{gid} may not read {path}."
                f" `chgrp {gid} {path} && chmod 640 {path}` lets it.",
            )
    return tuple(
        Mount(Path(path), f"{CONTAINER_SECRETS}/{secret}", read_only=True)
        for secret, path in sorted(agent.secret_file.items())
    )


def secret_variables(name: str, agent: Agent, *, mounted: bool) -> dict[str, str]:
    """Return {NAME_FILE: path} for each secret, the path as the agent sees it.

    Raise SecretFileError if the files are not `mounted` and one of them is missing, empty or too large.
    """
    if (
        not mounted
    ):  # `secret_mounts` has not checked them: the agent runs as the daemon's user, and reads the host's files
        _check_secrets(name, agent)
    return {
        f"{secret}_FILE": f"{CONTAINER_SECRETS}/{secret}" if mounted else path
        for secret, path in agent.secret_file.items()
    }


def _check_secrets(name: str, agent: Agent) -> None:
    """Raise SecretFileError if the daemon cannot read a secret, or if one is empty."""
    for secret, path in agent.secret_file.items():
        where = f"agents.{name}.secret_file.{secret}"
        if not _read(where, path, SecretFileError).strip():
            raise SecretFileError(f"{where}: {path} is empty.")


def _unreadable(where: str, path: str, error: OSError, error_class: type[AgentFileError]) -> ClawbusError:
    """Return the error of a file, or the host's, if it cannot read any such file now."""
    if passes(error):
        return host_error(error, f"{where}: {path} cannot be read")
    return error_class(f"{where}: {path} cannot be read: {error.strerror}.")


def _read(where: str, path: str, error_class: type[AgentFileError]) -> str:
    """Return the text of a file of at most _MAX_BYTES. Raise `error_class`, which never quotes the text."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(where, path, error, error_class) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise error_class(f"{where}: {path} is not a regular file.")
        raw = os.read(descriptor, _MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(where, path, error, error_class) from error
    finally:
        with suppress(OSError):  # a mount that is gone refuses this, too, and would hide why
            os.close(descriptor)
    if len(raw) > _MAX_BYTES:
        raise error_class(f"{where}: {path} has more than {_MAX_BYTES} bytes.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise error_class(f"{where}: {path} is not UTF-8.") from None


def _variables(where: str, text: str) -> Mapping[str, str]:
    """Parse NAME=VALUE lines. Skip blank lines and comments (#), and remove quotes around a value. Raise EnvFileError."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None or "\0" in line:
            raise EnvFileError(f"{where}: line {number} is not NAME=VALUE.")
        name, value = match[1], match[2].strip()
        if name.startswith("CLAWBUS_"):
            raise EnvFileError(f"{where}: line {number}: names that begin with CLAWBUS_ are reserved for the daemon.")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        found[name] = value[1:-1] if quoted else value
    return found


def _may_read(status: os.stat_result, uid: int, gid: int) -> bool:
    """Return whether the file's mode lets the user read it.

    The kernel decides the same way for a user without other groups or capabilities.
    """
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IRUSR)
    return bool(status.st_mode & (stat.S_IRGRP if status.st_gid == gid else stat.S_IROTH))
