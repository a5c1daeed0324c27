"""Builds the specification of a container and its labels from configuration and session. Pure.

No I/O, no clock, no log. The same input always gives the same spec, and all of it but the incarnation is in the
fingerprint, by which a restarted daemon tells whether a container that it finds is still the one it wants.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from daemon.core.errors import ConfigError
from daemon.runtimes.protocol import ContainerSpec, Limits, Mount
from schema.layout import (
    CONTAINER_AGENT,
    CONTAINER_HOME,
    CONTAINER_IN,
    CONTAINER_OUT,
    CONTAINER_WORKSPACE,
    ENV_AGENT_NAME,
    ENV_INCARNATION,
    ENV_RUNNER,
    ENV_SESSION_NAME,
    FOR_THE_LOADER,
    FOR_THE_PROGRAM,
    SessionFolder,
)
from schema.rows import RunnerSettings

if TYPE_CHECKING:
    from pathlib import Path

LABEL_INSTALL: Final = "clawbus.install"
LABEL_AGENT: Final = "clawbus.agent"
LABEL_SESSION: Final = "clawbus.session"
LABEL_INCARNATION: Final = "clawbus.incarnation"
LABEL_FINGERPRINT: Final = "clawbus.fingerprint"
LABEL_SOURCE_DIGEST: Final = "clawbus.source-digest"  # on images, and from there on their containers
LABEL_STDERR_LOG: Final = "clawbus.stderr-log"  # where a container's output is kept when it is removed

STDERR_LOG: Final = "container.log"  # in the session's logs/

# Counts what the runtimes do with a spec; raise it when a container started by older code must not be adopted.
SPEC_VERSION: Final = 1

_RESERVED: Final = "CLAWBUS_"
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]")


def build_spec(
    *,
    install_id: str,
    agent: str,
    session: str,
    incarnation: str,
    runner: RunnerSettings,
    agent_env: Mapping[str, str],
    image: str,
    image_digest: str,
    network: str,
    limits: Limits,
    user: str,
    folder: SessionFolder,
    agent_folder: Path,
    own_runner: tuple[str, ...] = (),
    workspace: Path | None = None,
    extra_mounts: tuple[Mount, ...] = (),
) -> ContainerSpec:
    """Return the spec of one incarnation. `image_digest` tells two builds of `image` apart; `user` is "uid:gid".

    `own_runner` is the operator's own runner program; `workspace` is then the folder of links (`workspace.py`) to mount.
    `extra_mounts` come after those that every container has.

    Raise ConfigError when the agent's own environment names a variable that is reserved or not one.
    """
    environment = _environment(agent, session, runner, agent_env, own_runner=bool(own_runner))
    spec = ContainerSpec(
        install_id=install_id,
        agent=agent,
        session=session,
        incarnation=incarnation,
        name=container_name(install_id, agent, session),
        fingerprint="",
        image=image,
        environment=environment,
        mounts=(*_mounts(folder, agent_folder, workspace), *extra_mounts),
        limits=limits,
        network=network,
        user=user,
        stderr_log=folder.logs / STDERR_LOG,
        runner=own_runner,
    )
    return replace(
        spec,
        fingerprint=_fingerprint(spec, image_digest),
        environment={**environment, ENV_INCARNATION: incarnation},
    )


def _mounts(folder: SessionFolder, agent_folder: Path, workspace: Path | None) -> tuple[Mount, ...]:
    """Return the mounts that every container has."""
    mounts = (
        Mount(folder.inbox, CONTAINER_IN, read_only=True),
        Mount(folder.outbox, CONTAINER_OUT, read_only=False),
        Mount(agent_folder, CONTAINER_AGENT, read_only=False),
        Mount(folder.home, CONTAINER_HOME, read_only=False),
    )
    return mounts if workspace is None else (Mount(workspace, CONTAINER_WORKSPACE, read_only=True), *mounts)


def _fingerprint(spec: ContainerSpec, image_digest: str) -> str:
    """Return the digest of all that makes two containers of a session differ. The incarnation is not part of it."""
    return _digest(
        {
            "version": SPEC_VERSION,
            "install": spec.install_id,
            "agent": spec.agent,
            "session": spec.session,
            "name": spec.name,
            "image": [spec.image, image_digest],
            "environment": spec.environment,
            "mounts": [[str(mount.source), mount.target, mount.read_only] for mount in spec.mounts],
            "limits": asdict(spec.limits),
            "network": spec.network,
            "user": spec.user,
            "stderr_log": str(spec.stderr_log),
            **({"runner": list(spec.runner)} if spec.runner else {}),
        }
    )


def container_name(install_id: str, agent: str, session: str) -> str:
    """Return `clawbus-<install>-<agent>-<session>-<hash>`, at most 88 characters. Parts may be cut; the hash makes it unique.

    It depends on the session alone, so that a runtime which refuses a name twice refuses a session's second container.
    """
    unique = hashlib.sha256(f"{install_id}\0{agent}\0{session}".encode()).hexdigest()[:12]
    # The end of an install id is its random part; its start is the time of `clawbus init`.
    parts = (install_id[-8:].lower(), agent[:28], session[:28], unique)
    return "-".join(("clawbus", *(_NOT_IN_NAMES.sub("_", part) for part in parts)))


def labels(spec: ContainerSpec) -> dict[str, str]:
    """Return the container's labels: the listing's truth about its owner and the incarnation in it."""
    return {
        LABEL_INSTALL: spec.install_id,
        LABEL_AGENT: spec.agent,
        LABEL_SESSION: spec.session,
        LABEL_INCARNATION: spec.incarnation,
        LABEL_FINGERPRINT: spec.fingerprint,
        LABEL_STDERR_LOG: str(spec.stderr_log),
    }


def _environment(
    agent: str, session: str, runner: RunnerSettings, agent_env: Mapping[str, str], *, own_runner: bool
) -> dict[str, str]:
    """Return the variables. A library for the agent's program is none for our runner: it could stop it, or change its clock."""
    for key, value in agent_env.items():
        where = f"agents.{agent}.env.{key}"
        if key.upper().startswith(_RESERVED):
            raise ConfigError(f"{where}: names with {_RESERVED} are the daemon's own.", hint="Rename that variable.")
        if not _ENV_NAME.match(key) or "\0" in value:
            raise ConfigError(f"{where} is not an environment variable.", hint="Use letters, digits and _; no NUL.")
    given = {
        f"{FOR_THE_PROGRAM}{key}" if key.startswith(FOR_THE_LOADER) and not own_runner else key: value
        for key, value in agent_env.items()
    }
    return {
        **given,
        ENV_RUNNER: json.dumps(asdict(runner), sort_keys=True, separators=(",", ":")),
        ENV_AGENT_NAME: agent,
        ENV_SESSION_NAME: session,
    }


def _digest(content: Mapping[str, object]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
