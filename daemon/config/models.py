"""The configuration's tables and their keys. `agents.py` has an agent's keys; `loading.py` reads and checks all.

Keys that end in `_s` are seconds, those that end in `_bytes` are bytes. docs/configuration.md lists every key (a test compares it with these classes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from daemon.config.addresses import docker_address_fault, is_loopback, split_listen
from daemon.config.agents import Agent
from daemon.config.egress import Egress
from daemon.config.routes import RouteTable
from daemon.config.schedules import ScheduleTable
from daemon.config.table import MAX_MEMORY_BYTES, MAX_PIDS, MIN_CPUS, Table, check_path, check_word
from daemon.config.user_commands import CommandTable
from daemon.core.zones import zone

DEFAULT_IMAGE: Final = "clawbus-runner:latest"

EngineKind = Literal["docker", "podman"]


class Runtime(Table):
    """[runtime]: where agents run."""

    kind: Literal["docker", "podman", "process"] = "docker"
    max_containers: int = Field(default=8, ge=1, le=1000)
    idle_stop_s: float = Field(default=900.0, gt=0)
    stop_grace_s: float = Field(default=10.0, gt=0, le=600)
    kill_confirm_s: float = Field(default=30.0, gt=0, le=600)
    spawn_backoff_s: float = Field(default=5.0, gt=0)
    spawn_backoff_max_s: float = Field(default=600.0, gt=0)


class Docker(Table):
    """[docker]: the engine, and the defaults of every container. An agent may override image, network, memory, cpus and pids."""

    host: str = ""
    image: str = DEFAULT_IMAGE
    network: str = "none"
    memory_bytes: int = Field(default=1024**3, ge=16 * 1024**2, le=MAX_MEMORY_BYTES)
    cpus: float = Field(default=1.0, ge=MIN_CPUS)
    pids: int = Field(default=256, ge=16, le=MAX_PIDS)
    user: str = ""
    timeout_s: float = Field(default=30.0, gt=0)

    @field_validator("image", "network")
    @classmethod
    def _word(cls, value: str) -> str:
        if not value:
            raise ValueError("must not be empty: Docker would take a default of its own")
        check_word(value)
        return value

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        fault = docker_address_fault(value) if value else None
        if fault is not None:
            raise ValueError(fault)
        return value


class Podman(Table):
    """[podman]: where its service answers. All other settings of its containers are in [docker]."""

    host: str = ""

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        fault = docker_address_fault(value) if value else None
        if fault is not None:
            raise ValueError(fault)
        return value


class Sweep(Table):
    """[sweep]: the repair pass."""

    interval_s: float = Field(default=60.0, gt=0)
    ceiling_s: float = Field(default=1800.0, gt=0)
    claim_stuck_s: float = Field(default=60.0, gt=0)
    max_declared_s: float = Field(default=6 * 3600.0, gt=0)
    claim_max_s: float = Field(default=0.0, ge=0)
    max_tries: int = Field(default=5, ge=1, le=100)
    backoff_base_s: float = Field(default=5.0, gt=0)
    session_timeout_s: float = Field(default=30.0, gt=0)
    full_pass_s: float = Field(default=3 * 3600.0, gt=0)


class Delivery(Table):
    """[delivery]: sending answers."""

    send_timeout_s: float = Field(default=30.0, gt=0)
    retry_base_s: float = Field(default=5.0, gt=0)
    retry_max_s: float = Field(default=3600.0, gt=0)
    retry_for_s: float = Field(default=24 * 3600.0, gt=0)
    batch: int = Field(default=200, ge=1, le=1000)
    max_dead_letters: int = Field(default=10_000, ge=1)
    head_blocks_attempts: int = Field(default=5, ge=1)
    head_blocks_s: Annotated[float, Field(ge=0)] | Literal["always"] = 300.0
    max_open_answers: int = Field(default=10_000, ge=1)
    max_scheduled_answers: int = Field(default=1_000, ge=0)
    max_ahead_s: float = Field(default=366 * 86400.0, gt=0)
    max_sends_per_channel: int = Field(default=100, ge=1, le=10_000)
    max_sends_per_place: int = Field(default=16, ge=1, le=10_000)
    max_sends_per_session: int = Field(default=8, ge=1, le=10_000)


class Retention(Table):
    """[retention]: how long finished things are kept. 0 or "never" keeps them forever."""

    messages_s: float = Field(default=30 * 86400.0, ge=0)
    incarnations_s: float = Field(default=30 * 86400.0, ge=0)
    mailbox_s: float = Field(default=365 * 86400.0, ge=0)
    dead_letters_s: float = Field(default=0.0, ge=0)
    idle_sessions_s: float = Field(default=0.0, ge=0)
    interval_s: float = Field(default=3600.0, gt=0)
    batch: int = Field(default=500, ge=1, le=10_000)

    @field_validator("messages_s", "incarnations_s", "mailbox_s", "idle_sessions_s", "dead_letters_s", mode="before")
    @classmethod
    def _never(cls, value: object) -> object:
        return 0.0 if value == "never" else value


class LimitsTable(Table):
    """[limits]: how much senders and containers may hand in."""

    max_content_bytes: int = Field(default=1024**2, ge=1024, le=64 * 1024**2)
    max_attachments: int = Field(default=10, ge=0, le=100)
    max_attachment_bytes: int = Field(default=8 * 1024**2, ge=1024, le=64 * 1024**2)
    max_sent_bytes: int = Field(default=1024**3, ge=1024)
    max_outbound_file_bytes: int = Field(default=512 * 1024**2, ge=1024**2)
    max_out_folder_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    max_out_folder_files: int = Field(default=100_000, ge=100)
    max_home_folder_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    max_home_folder_files: int = Field(default=100_000, ge=100)
    read_deadline_s: float = Field(default=2.0, gt=0, le=60)


class Control(Table):
    """[control]: the operator's socket; by default `<data>/control.sock`."""

    socket: str = ""

    @field_validator("socket")
    @classmethod
    def _path(cls, value: str) -> str:
        check_path(value)
        return value


class Logs(Table):
    """[logs]. `auto` is pretty on a terminal, plain text in the journal, else JSON. `<data>/logs/clawbus.log` is always JSON."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "pretty"] = "auto"
    file_bytes: int = Field(default=10 * 1024**2, ge=64 * 1024)
    file_count: int = Field(default=5, ge=1, le=100)


class Telemetry(Table):
    """[telemetry]. Metrics are always on the control socket; `listen` adds a TCP address, `otlp_endpoint` sends traces."""

    allow_remote: bool = False  # before `listen`, whose check needs it
    listen: str = ""
    otlp_endpoint: str = ""
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1)

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        host, _ = split_listen(value)
        if not (info.data.get("allow_remote", False) or is_loopback(host)):
            raise ValueError(
                f"{host} is not a loopback address, and metrics have no password; listen on 127.0.0.1 behind a"
                " proxy, or set telemetry.allow_remote = true"
            )
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value:
            return value
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("must be a URL, for example http://127.0.0.1:4318") from None
        if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment:
            raise ValueError("must be an http:// or https:// URL of a collector, for example http://127.0.0.1:4318")
        if parts.username is not None:
            raise ValueError("must have no user name; put credentials into OTEL_EXPORTER_OTLP_HEADERS")
        return value.rstrip("/")


class Deploy(Table):
    """[deploy]: the folder of releases, and the limits of a deploy's gates. Without a `root`, clawbus uses no releases."""

    root: str = ""
    warm_s: float = Field(default=30.0, ge=0, le=3600)
    warm_limit_s: float = Field(default=180.0, gt=0, le=7200)
    probe_s: float = Field(default=60.0, gt=0, le=600)
    drain_s: float = Field(default=60.0, gt=0, le=3600)
    cutover_s: float = Field(default=10.0, gt=0, le=600)
    unready_s: float = Field(default=6.0, gt=0, le=600)
    bake_s: float = Field(default=600.0, ge=0, le=86400)
    bake_check_s: float = Field(default=5.0, gt=0, le=600)
    slow_s: float = Field(default=5.0, gt=0, le=3600)
    cooldown_s: float = Field(default=900.0, ge=0, le=3600)

    @field_validator("root")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not value.startswith("/"):
            raise ValueError("must be an absolute path, such as /opt/clawbus")
        return value


class AgentMessages(Table):
    """[agent_messages]: the limits of messages between agents."""

    max_hops: int = Field(default=8, ge=1, le=64)
    per_minute: float = Field(default=60.0, gt=0, le=60_000)
    burst: int = Field(default=20, ge=1, le=10_000)


class OwnershipGroup(Table):
    """[ownership.host] and [ownership.cluster]: the agents and channels of one role."""

    agents: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


class OwnershipTable(Table):
    """[ownership]: how the daemons of two roles divide one configuration."""

    host: OwnershipGroup = Field(default_factory=OwnershipGroup)
    cluster: OwnershipGroup = Field(default_factory=OwnershipGroup)


class Config(BaseSettings):
    """The whole configuration, checked."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="CLAWBUS_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Path("/var/lib/clawbus")
    timezone: str = "UTC"
    role: Literal["", "host", "cluster"] = ""
    runtime: Runtime = Field(default_factory=Runtime)
    docker: Docker = Field(default_factory=Docker)
    podman: Podman = Field(default_factory=Podman)
    sweep: Sweep = Field(default_factory=Sweep)
    delivery: Delivery = Field(default_factory=Delivery)
    retention: Retention = Field(default_factory=Retention)
    limits: LimitsTable = Field(default_factory=LimitsTable)
    control: Control = Field(default_factory=Control)
    logs: Logs = Field(default_factory=Logs)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    deploy: Deploy = Field(default_factory=Deploy)
    ownership: OwnershipTable = Field(default_factory=OwnershipTable)
    egress: Egress = Field(default_factory=Egress)
    agent_messages: AgentMessages = Field(default_factory=AgentMessages)
    agents: dict[str, Agent] = Field(default_factory=dict[str, Agent])
    routes: tuple[RouteTable, ...] = ()
    commands: dict[str, CommandTable] = Field(default_factory=dict[str, CommandTable])
    schedules: dict[str, ScheduleTable] = Field(default_factory=dict[str, ScheduleTable])
    # Not in the repr: a channel's table may hold secrets.
    channels: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]], repr=False)

    @field_validator("data_dir", mode="before")
    @classmethod
    def _folder(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError("must name a folder")
        if isinstance(value, str | Path):
            check_path(str(value))
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        zone(value)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file. Use no other source."""
        return env_settings, init_settings

    @property
    def control_socket(self) -> Path:
        """The path of the control socket."""
        return Path(self.control.socket) if self.control.socket else self.data_dir / "control.sock"
