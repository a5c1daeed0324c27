"""Builds the runtime and the specs of its containers from the configuration. Called by the composition root only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from daemon.config.agents import Agent
from daemon.config.models import Config
from daemon.config.policies import engine_of, turn_limit_s
from daemon.core.clock import Clock
from daemon.core.destinations import NamedPlace
from daemon.core.errors import NotOwnedError, UnknownAgentError
from daemon.core.session_key import SessionKey
from daemon.runtimes.agent_files import environment_of, operator_mounts, secret_mounts, secret_variables
from daemon.runtimes.image_source import source_digest
from daemon.runtimes.process import ProcessRuntime
from daemon.runtimes.protocol import ContainerRuntime, ContainerSpec, Limits, Mount, WayOut
from daemon.runtimes.spec import build_spec
from daemon.runtimes.users import container_uid_gid, user_mounts
from daemon.runtimes.workspace import ensure_workspace, folder_error
from daemon.store import destinations
from daemon.store.agent_folders import AgentFolders
from daemon.store.data_layout import Layout
from daemon.store.session_files import SessionFiles
from schema.ids import session_path
from schema.layout import CONTAINER_GATE, SessionFolder
from schema.rows import RunnerSettings


def build_runtime(
    config: Config,
    folder: Layout,
    install_id: str,
    clock: Clock,
    kind: str | None = None,
    *,
    patience_s: float | None = None,
) -> ContainerRuntime:
    """Build the runtime that [runtime] kind names, or that of another `kind`, to ask what still runs there.

    `patience_s`: wait no longer than that for an answer, whatever the configuration says.
    """
    kind = kind or config.runtime.kind
    if kind == "process":
        return ProcessRuntime(install_id, folder.run_dir / "process", clock=clock)
    from daemon.runtimes.docker import DockerRuntime  # noqa: PLC0415 - a process-only install need not load docker-py

    timeout_s = min(config.docker.timeout_s, patience_s or config.docker.timeout_s)
    engine, url = engine_of(config, kind)
    return DockerRuntime(
        install_id, image=config.docker.image, source_digest=source_digest(), timeout_s=timeout_s,
        base_url=url, engine=engine,
    )  # fmt: skip


class SpecMaker:
    """Makes the specs of the containers of `agents`, a mapping that a reload may change.

    `owner` is the (uid, gid) that containers write as, None for our own. The source's digest is taken once, here.
    """

    def __init__(
        self,
        config: Config,
        folder: Layout,
        agents: Mapping[str, Agent],
        install_id: str,
        gate: WayOut | None = None,
        elsewhere: Mapping[str, str] = MappingProxyType({}),
        places: Callable[[str], tuple[NamedPlace, ...]] = lambda _agent: (),
    ) -> None:
        self._config = config
        self._places = places  # where an agent may write
        self._elsewhere = elsewhere  # agents of another role's daemons, with that role
        self._gate = gate
        self._folder = folder
        self._agent_folders = AgentFolders.of(folder)
        self._agents = agents
        self._install_id = install_id
        self._in_container = config.runtime.kind != "process"
        own = os.getuid(), os.getgid()
        self._user = container_uid_gid(config.docker.user) if self._in_container else own
        self._links = folder.run_dir / "workspace"
        self._digest = source_digest()
        self.owner = self._user if self._user != own else None

    def make(self, key: SessionKey, incarnation: str) -> ContainerSpec:
        """Return the spec of a session's next container. Raise UnknownAgentError, DataFolderError, StorageError or AgentFileError.

        Call it in a worker thread.
        """
        agent, config, folder = self._agents.get(key.agent), self._config, self._folder
        if agent is None and key.agent in self._elsewhere:
            raise NotOwnedError(f"agent {key.agent!r} belongs to the role {self._elsewhere[key.agent]}.")
        if agent is None:
            raise UnknownAgentError(f"there is no agent {key.agent!r} in the configuration any more.")
        uid, gid = self._user
        agent_folder = self._ready_folder(key.agent, agent)
        gate = self._gate.folder(key.agent, key.session) if self._gate is not None else None
        return build_spec(
            install_id=self._install_id,
            agent=key.agent,
            session=key.session,
            incarnation=incarnation,
            runner=_runner(agent, config) if gate is None else self._with_gate(_runner(agent, config), key.agent),
            agent_env={
                **environment_of(key.agent, agent),
                **secret_variables(key.agent, agent, mounted=self._in_container),
            },
            image=image_of(agent, config),
            image_digest=self._digest,
            network=agent.network or config.docker.network,
            limits=_limits(agent, config),
            user=f"{uid}:{gid}",
            folder=SessionFolder(session_path(folder.sessions_dir, key.agent, key.session)),
            agent_folder=agent_folder,
            own_runner=agent.runner,
            workspace=ensure_workspace(self._links) if agent.runner and self._in_container else None,
            extra_mounts=(
                *(self._extra_mounts(key.agent, agent) if self._in_container else ()),
                *((Mount(gate, CONTAINER_GATE, read_only=True),) if gate is not None else ()),
            ),
        )

    def _ready_folder(self, name: str, agent: Agent) -> Path:
        """Return the agent's folder, if it and the folders to mount lie where they lay. Raise as `make` does."""
        path = _agent_folder(self._agent_folders, name, self.owner)
        mounted = [Path(one.source) for one in agent.mounts] if self._in_container else []
        self._agent_folders.check(name, (path, *mounted))
        return path

    def named_files(self, agent: str) -> tuple[str, ...]:
        """Return the files and folders of the host that the agent's table names. Does no I/O."""
        found = self._agents.get(agent)
        if found is None:
            return ()
        mounts = [one.source for one in found.mounts] if self._in_container else []
        return tuple(filter(None, [found.env_file, *found.secret_file.values(), *mounts]))

    def _with_gate(self, runner: RunnerSettings, agent: str) -> RunnerSettings:
        """Return the settings with the way to the gate.

        Its port is fixed only where the loopback interface is the container's own.
        """
        egress = self._config.egress
        return replace(
            runner,
            egress_port=egress.port if self._in_container else 0,
            egress_env=tuple(f"{name}={text}" for name, text in sorted(egress.environment(agent).items())),
        )

    def _extra_mounts(self, name: str, agent: Agent) -> tuple[Mount, ...]:
        return (
            *user_mounts(self._folder.run_dir / "users", *self._user),
            *secret_mounts(name, agent, self._user),
            *operator_mounts(name, agent, self._config),
        )

    def prepare(self, key: SessionKey, files: SessionFiles) -> None:
        """Make what a runner expects to find in the session's files; only while no container runs."""
        files.prepare_outbound()
        files.prepare_home()
        if self._gate is not None:
            self._gate.open(key.agent, key.session)
        self.write_destinations(key, files)

    def write_destinations(self, key: SessionKey, files: SessionFiles) -> frozenset[tuple[str, str]]:
        """Write where the session's agent may write to now, also while a container runs. Return the places it lost."""
        agent = self._agents.get(key.agent)
        if agent is None:
            return frozenset()
        with files.inbound() as db:
            return destinations.write(
                db, self._places(key.agent), own_place=bool(agent.runner), keep_brought=agent.destinations is None
            )

    def images(self) -> set[tuple[str, bool]]:
        """Return the images that the runtime must have for the agents, and whether their own runner is inside."""
        return {
            (image_of(agent, self._config), self._in_container and bool(agent.runner))
            for agent in self._agents.values()
        }

    def max_containers(self, agent: str) -> int | None:
        """Return how many containers the agent may have at once; None if it has no limit of its own."""
        found = self._agents.get(agent)
        return found.max_containers if found is not None else None


def image_of(agent: Agent, config: Config) -> str:
    """Return the image of the agent's containers; the process runtime takes the same name for its processes."""
    return (agent.image or config.docker.image) if config.runtime.kind != "process" else sys.executable


def _runner(agent: Agent, config: Config) -> RunnerSettings:
    # The runner must be done, or have given its claims back, before we escalate.
    grace = max(config.runtime.stop_grace_s * 0.8, config.runtime.stop_grace_s - 2.0)
    return RunnerSettings(
        provider=agent.provider,
        command=agent.command,
        mode=agent.mode,
        permissions=tuple(f"{kind}={policy}" for kind, policy in sorted(agent.permissions.items())),
        tools=agent.tools,
        timeout_s=turn_limit_s(agent),
        max_batch=agent.max_batch,
        grace_s=grace,
        max_answer_bytes=config.limits.max_content_bytes,
        max_files=config.limits.max_attachments,
        max_file_bytes=config.limits.max_attachment_bytes,
        keep_s=config.retention.messages_s,
        prune_batch=config.retention.batch,
        lifetime=agent.lifetime,
        output=agent.output,
        leftovers=agent.leftovers,
        error_detail=agent.error_detail,
    )


def _limits(agent: Agent, config: Config) -> Limits:
    return Limits(
        memory_bytes=agent.memory_bytes or config.docker.memory_bytes,
        cpus=agent.cpus or config.docker.cpus,
        pids=agent.pids or config.docker.pids,
    )


def _agent_folder(folders: AgentFolders, name: str, owner: tuple[int, int] | None) -> Path:
    try:
        path = folders.make(name)
        if owner is not None:
            os.chown(path, *owner, follow_symlinks=False)
    except OSError as error:
        raise folder_error(folders.path(name), error) from error
    return path
