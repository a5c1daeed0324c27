"""Configuration: one TOML file, overridden by CLAWBUS_* environment variables, checked before anything starts.

Every refusal is a ConfigError that names the key and the fix. Durations end in `_s` and are seconds; sizes end in
`_bytes`. docs/configuration.md lists every key (a test compares it with these classes).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from daemon.config.addresses import docker_address_fault, is_loopback, split_listen
from daemon.config.egress import Egress, egress_faults
from daemon.config.faults import booleans_for_numbers, fault_text
from daemon.config.mounts import HostPlaces, agent_faults
from daemon.config.presets import PRESETS
from daemon.config.routes import RouteTable, route_faults
from daemon.config.schedules import ScheduleTable, schedule_faults
from daemon.config.sources import NO_KEYS, NO_KEYS_BEGIN, is_service_link, read_toml
from daemon.config.user_commands import CommandTable, command_faults
from daemon.core.answering import AnswersFrom
from daemon.core.errors import ConfigError
from daemon.core.zones import zone
from schema.errors import InvalidNameError
from schema.ids import check_name
from schema.tools import TOOLS

_PREFIX: Final = "CLAWBUS_"
PROVIDERS: Final = ("echo", "command", "acp")  # of our own runner; another one (agents.NAME.runner) may have others
_SECRET_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
_LONGEST_S: Final = 10 * 366 * 86400.0
_HINT: Final = "Correct the named keys; docs/configuration.md lists them."
DEFAULT_IMAGE: Final = "clawbus-runner:latest"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: object, info: ValidationInfo) -> object:
        """Refuse longer times: no clock takes them, and none is meant."""
        name = info.field_name or ""
        if name.endswith("_s") and isinstance(value, float) and value > _LONGEST_S:
            raise ValueError(f"must be at most {_LONGEST_S:.0f} seconds (ten years)")
        return value


class Runtime(_Table):
    """[runtime]: where agents run."""

    kind: Literal["docker", "process"] = "docker"
    max_containers: int = Field(default=8, ge=1, le=1000)
    idle_stop_s: float = Field(default=900.0, gt=0)
    stop_grace_s: float = Field(default=10.0, gt=0, le=600)
    kill_confirm_s: float = Field(default=30.0, gt=0, le=600)
    spawn_backoff_s: float = Field(default=5.0, gt=0)
    spawn_backoff_max_s: float = Field(default=600.0, gt=0)


class Docker(_Table):
    """[docker]: the engine, and defaults of every container; an agent may override image, network, memory, cpus and pids."""

    host: str = ""
    image: str = DEFAULT_IMAGE
    network: str = "none"
    memory_bytes: int = Field(default=1024**3, ge=16 * 1024**2)
    cpus: float = Field(default=1.0, gt=0)
    pids: int = Field(default=256, ge=16)
    user: str = ""
    timeout_s: float = Field(default=30.0, gt=0)

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        fault = docker_address_fault(value) if value else None
        if fault is not None:
            raise ValueError(fault)
        return value


class Sweep(_Table):
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


class Delivery(_Table):
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


class Retention(_Table):
    """[retention]: how long what is done is kept. 0, or "never" for never pruned."""

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


class LimitsTable(_Table):
    """[limits]: what may come from outside and out of a container."""

    max_content_bytes: int = Field(default=1024**2, ge=1024, le=64 * 1024**2)
    max_outbound_file_bytes: int = Field(default=512 * 1024**2, ge=1024**2)
    max_out_folder_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    max_out_folder_files: int = Field(default=100_000, ge=100)
    max_home_folder_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    max_home_folder_files: int = Field(default=100_000, ge=100)
    read_deadline_s: float = Field(default=2.0, gt=0, le=60)


class Control(_Table):
    """[control]: the operator's socket. Empty: `<data>/control.sock`."""

    socket: str = ""

    @field_validator("socket")
    @classmethod
    def _path(cls, value: str) -> str:
        _check_path(value)
        return value


class Logs(_Table):
    """[logs]: auto: pretty on a terminal, plain words in the journal, else JSON. The file `<data>/logs/clawbus.log` is always JSON."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "pretty"] = "auto"
    file_bytes: int = Field(default=10 * 1024**2, ge=64 * 1024)
    file_count: int = Field(default=5, ge=1, le=100)


class Telemetry(_Table):
    """[telemetry]: metrics are always on the control socket; `listen` adds a TCP address, `otlp_endpoint` sends traces."""

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
                f"{host} is not a loopback address, and metrics have no password; listen on 127.0.0.1 and put a proxy before"
                " it, or set telemetry.allow_remote = true"
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


class Deploy(_Table):
    """[deploy]: where releases lie, and the limits of a deploy's gates. An empty root: no releases are used."""

    root: str = ""
    warm_s: float = Field(default=30.0, ge=0, le=3600)
    warm_limit_s: float = Field(default=180.0, gt=0, le=7200)
    probe_s: float = Field(default=60.0, gt=0, le=600)
    drain_s: float = Field(default=60.0, gt=0, le=3600)
    cutover_s: float = Field(default=10.0, gt=0, le=600)
    bake_s: float = Field(default=600.0, ge=0, le=86400)
    bake_check_s: float = Field(default=5.0, gt=0, le=600)
    cooldown_s: float = Field(default=900.0, ge=0, le=3600)

    @field_validator("root")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not value.startswith("/"):
            raise ValueError("must be an absolute path, such as /opt/clawbus")
        return value


class OwnershipGroup(_Table):
    """[ownership.host] and [ownership.cluster]: the agents and channels of one role."""

    agents: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


class OwnershipTable(_Table):
    """[ownership]: how daemons of two roles divide one configuration."""

    host: OwnershipGroup = Field(default_factory=OwnershipGroup)
    cluster: OwnershipGroup = Field(default_factory=OwnershipGroup)


class AgentDestination(_Table):
    """[agents.NAME.destinations.PLACE]: a place besides its own that the agent may write to."""

    channel: str = Field(min_length=1)
    place: str = Field(min_length=1)
    display_name: str = ""


ToolKind = Literal[
    "default", "read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other"
]


class AgentMount(_Table):
    """[[agents.NAME.mounts]]: a file or folder of the host that the agent's container sees."""

    source: str = Field(min_length=1)
    target: str = Field(min_length=1)
    read_only: bool = True

    @field_validator("source", "target")
    @classmethod
    def _path(cls, value: str) -> str:
        _check_path(value)
        return value


class Agent(_Table):
    """[agents.NAME]: one agent group. `provider` is the runner's: echo, or command or acp with an argument list.

    A table with a preset and no provider means the provider `acp`; with a command alone, `command`. What a preset holds
    is filled in where the table does not say otherwise.
    """

    provider: str = "echo"
    command: tuple[str, ...] = ()
    preset: str = ""
    mode: str = Field(default="", max_length=200)
    permissions: dict[ToolKind, Literal["allow", "ask", "deny"]] = Field(default_factory=dict)
    tools: tuple[str, ...] = ()
    timeout_s: float = Field(default=600.0, gt=0)
    claim_max_s: float | None = Field(default=None, gt=0)
    lifetime: Literal["turn", "container"] = "turn"
    output: Literal["auto", "text", "lines"] = "auto"
    leftovers: Literal["end", "keep"] = "end"
    error_detail: Literal["operator", "sender"] = "operator"
    max_batch: int = Field(default=10, ge=1, le=1000)
    order: Literal["strict", "ready"] = "strict"
    later_for_s: float = Field(default=24 * 3600.0, gt=0, le=366 * 86400.0)
    answers_from: AnswersFrom = AnswersFrom.ASKER
    cancel_grace_s: float = Field(default=15.0, ge=0, le=3600.0)
    expire_after_s: float = Field(default=0.0, ge=0, le=10 * 366 * 86400.0)
    env: dict[str, str] = Field(default_factory=dict[str, str])
    env_file: str = ""
    secret_file: dict[str, str] = Field(default_factory=dict[str, str])
    mounts: tuple[AgentMount, ...] = ()
    image: str | None = None
    network: str | None = None
    memory_bytes: int | None = Field(default=None, ge=16 * 1024**2)
    cpus: float | None = Field(default=None, gt=0)
    pids: int | None = Field(default=None, ge=16)
    max_containers: int | None = Field(default=None, ge=1, le=1000)
    runner: tuple[str, ...] = ()
    destinations: dict[str, AgentDestination] | None = None

    @property
    def ends_turns(self) -> bool:
        """Whether the runner ends a turn at timeout_s. With acp it does so only when that is set."""
        return self.provider == "command" or (self.provider == "acp" and "timeout_s" in self.model_fields_set)

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: object) -> object:
        """Fill in the provider and what the preset holds. An unknown preset is named later, with all other faults."""
        if not isinstance(values, dict):
            return values
        given = cast("dict[str, object]", values)
        preset, env = PRESETS.get(str(given.get("preset"))), given.get("env", {})
        if preset is not None and isinstance(env, dict):
            merged = {**preset.env, **cast("dict[str, object]", env)}
            given = {"command": preset.command, "mode": preset.mode, **given, "env": merged}
        provider = "acp" if given.get("preset") else "command" if "command" in given else "echo"
        return {"provider": provider, **given}

    @field_validator("env")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not name or "=" in name or "\0" in name + text:
                raise ValueError(f"{name!r}: a variable's name is not empty and has no '=', and neither has NUL")
        return value

    @field_validator("secret_file")
    @classmethod
    def _secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for name, path in value.items():
            if not _SECRET_NAME.match(name) or name.upper().startswith(_PREFIX):
                raise ValueError(
                    f"{name!r}: a secret's name has letters, digits and _, and does not begin with {_PREFIX}"
                )
            _check_path(path)
        return value

    @field_validator("command", "runner")
    @classmethod
    def _arguments(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("\0" in part for part in value):
            raise ValueError("must not contain NUL")
        if value and not value[0].strip():
            raise ValueError("the first part names the program and must not be empty")
        return value


def _check_path(text: str) -> None:
    """Raise ValueError for what no file can be called in this process."""
    if "\0" in text:
        raise ValueError("must not contain NUL")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise ValueError(
            f"has characters that this locale ({encoding}) cannot express; set LC_ALL=C.UTF-8 for the command"
        ) from None


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
            _check_path(str(value))
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
        """Where the daemon answers."""
        return Path(self.control.socket) if self.control.socket else self.data_dir / "control.sock"


_TABLES: Final = frozenset(name for name in Config.model_fields if name not in ("data_dir", "timezone", "role"))


def load_config(
    path: Path | None, *, data_dir: Path | None = None, warn: Callable[[str], object] | None = None
) -> Config:
    """Read and check. `path` None means defaults and environment only. A relative data_dir is relative to the file.

    `data_dir` comes from the command line and overrides environment and file. With `warn`, a variable that is no key is
    reported to it instead of refused: a command that only reads must not fail because of it.

    Raise ConfigError naming every wrong key, its place and its fix.
    """
    values = read_toml(path) if path is not None else {}
    if path is not None and isinstance(values.get("data_dir"), str) and str(values["data_dir"]).strip():
        with contextlib.suppress(ValueError):  # a NUL, which the key's own check names
            values["data_dir"] = (path.absolute().parent / str(values["data_dir"])).resolve()
    booleans = list(booleans_for_numbers(Config, values))
    if booleans:
        raise ConfigError(f"{path}: {'; '.join(booleans)}.", hint=_HINT)
    try:
        config = Config(**values)
    except ValidationError as error:
        raise _explained(error, path) from error
    except Exception as error:  # pydantic-settings wraps an unparsable environment variable in its own error
        raise ConfigError(f"{error}", hint="Correct or unset that environment variable.") from error
    wanted = (data_dir if data_dir is not None else config.data_dir).absolute()
    faults = [*_faults(config), *_faults_of_files(config, wanted)]
    unknown = [*_unknown_variables(config, os.environ)]
    if warn is None:
        faults += unknown
    else:
        for fault in unknown:
            warn(fault)
    if wanted.resolve() == Path("/"):
        faults.append("data_dir: name a folder for clawbus alone, not the root of the file system")
    if faults:
        text = "; ".join(faults)
        raise ConfigError(
            text if text.endswith("?") else f"{text}.",
            hint=_HINT,
        )
    return config.model_copy(update={"data_dir": wanted})


def _explained(error: ValidationError, path: Path | None) -> ConfigError:
    lines: list[str] = []
    for item in error.errors():
        where = _place(item["loc"])
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(item["loc"][-1]), _keys_at(item["loc"][:-1]), n=1)
            advice = f"did you mean {close[0]!r}?" if close else "remove it."
            lines.append(f"{where}: unknown key; {advice}")
        else:
            got = "" if item["type"] == "missing" else f" (got {item['input']!r:.80})"
            lines.append(f"{where}: {fault_text(item)}{got}")
    place = str(path) if path is not None else "the environment"
    return ConfigError(f"{place}: " + "; ".join(lines), hint=_HINT)


def _place(location: tuple[int | str, ...]) -> str:
    """Return the key and the variable that set it, if one did: then it is not in the file."""
    key = ".".join(str(part) for part in location)
    wanted = _PREFIX + "__".join(str(part) for part in location).upper()
    variable = next((name for name in sorted(os.environ) if name.upper() == wanted), None)
    return key if variable is None else f"{key} (environment variable {variable})"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        if model is Config and part == "agents":
            model = Agent
        elif part in model.model_fields:
            annotation = model.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
    return list(model.model_fields)


def _acp_faults(name: str, agent: Agent) -> Iterator[str]:
    if agent.preset and agent.preset not in PRESETS:
        close = difflib.get_close_matches(agent.preset, PRESETS, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(PRESETS)}"
        yield f"agents.{name}.preset: there is no preset {agent.preset!r}; {advice}"
    elif agent.provider == "acp" and not agent.command:
        yield f"agents.{name}.command: provider 'acp' needs a program, or a preset: preset = \"claude\""
    for tool in agent.tools:
        if tool not in TOOLS:
            yield f"agents.{name}.tools: there is no tool {tool!r}; use any of {', '.join(TOOLS)}"
    if agent.provider != "acp":
        for key in ("preset", "mode", "permissions", "tools"):
            if getattr(agent, key):
                yield f"agents.{name}.{key}: is for the provider 'acp' alone, and this one is {agent.provider!r}"


def _faults(config: Config) -> Iterator[str]:
    """Return the faults that the tables' own types cannot see."""
    yield from schedule_faults(config.schedules, config.timezone, config.agents, {"local", *config.channels})
    for name, agent in config.agents.items():
        try:
            check_name("agent", name)
        except InvalidNameError as error:
            yield f"agents.{name}: {str(error).rstrip('.')}; {error.hint.rstrip('.')}"
        if agent.provider not in PROVIDERS and not agent.runner:
            close = difflib.get_close_matches(agent.provider, PROVIDERS, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(PROVIDERS)}"
            yield f"agents.{name}.provider: the runner has no provider {agent.provider!r}; {advice}"
        if agent.provider == "command" and not agent.command:
            yield f'agents.{name}.command: provider \'command\' needs a program: command = ["program", "argument"]'
        yield from _acp_faults(name, agent)
        if agent.lifetime == "container" and (agent.provider != "command" or agent.output == "text"):
            what = "is for provider 'command'" if agent.provider != "command" else 'needs output = "lines"'
            yield f'agents.{name}.lifetime: "container" {what}'
        longest = agent.claim_max_s or config.sweep.claim_max_s
        if agent.ends_turns and 0 < longest <= agent.timeout_s:
            # The sweep would end turns that are within their time.
            key = f"agents.{name}.claim_max_s" if agent.claim_max_s else "sweep.claim_max_s"
            yield f"{key}: must be longer than agents.{name}.timeout_s, {agent.timeout_s:g}"
        known = {"local", *config.channels}
        for place, destination in (agent.destinations or {}).items():
            if destination.channel not in known:
                there = ", ".join(sorted(known))
                yield (
                    f"agents.{name}.destinations.{place}.channel: no channel {destination.channel!r} is configured"
                    f" (there is: {there})"
                )

    yield from egress_faults(config.egress, config.agents)
    yield from _contradictions(config)
    for name, fault in route_faults((one.route() for one in config.routes), config.agents, {"local", *config.channels}):
        yield f"routes.{name}: {fault}"
    yield from command_faults(config.commands)
    for key in ("messages_s", "mailbox_s", "idle_sessions_s"):
        age = float(getattr(config.retention, key))
        if 0 < age < config.delivery.retry_for_s:
            # Within it a send may be repeated, and what makes the repetition the same send must still be there.
            yield f"retention.{key}: must be 0 (never) or at least delivery.retry_for_s, {config.delivery.retry_for_s:g}"


def _faults_of_files(config: Config, data_dir: Path) -> Iterator[str]:
    for name, agent in config.agents.items():
        yield from agent_faults(name, agent, host_places(config, data_dir), mountable=config.runtime.kind != "process")


def host_places(config: Config, data_dir: Path) -> HostPlaces:
    """Return what no agent's mount may contain. `data_dir` is the one that is used, whatever the file says."""
    return HostPlaces(data_dir, config.docker.host, (Path(config.control.socket),) if config.control.socket else ())


def _contradictions(config: Config) -> Iterator[str]:
    """Return pairs that contradict each other: a first wait that is longer than the longest."""
    for table, first, longest in (
        ("runtime", "spawn_backoff_s", "spawn_backoff_max_s"),
        ("delivery", "retry_base_s", "retry_max_s"),
    ):
        values = getattr(config, table)
        if getattr(values, first) > getattr(values, longest):
            yield f"{table}.{first}: must be at most {table}.{longest}, {getattr(values, longest):g}"


def _unknown_variables(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """Refuse unknown variables: a mistyped one must not silently do nothing."""
    known = [*(key.upper() for key in Config.model_fields), *NO_KEYS]
    for name in sorted(environ):
        rest = name.upper().removeprefix(_PREFIX)
        if rest == name.upper() or rest.startswith(NO_KEYS_BEGIN) or is_service_link(name, environ[name]):
            continue
        if name in _secret_variables(config.channels):
            continue
        first, nested, _ = rest.partition("__")
        if nested and first.lower() in _TABLES:
            continue  # the tables' own types have checked what is below
        if first not in known or nested:
            yield f"environment variable {name}: no such key; {_advice(first, rest, known)}"


def _advice(first: str, rest: str, known: Sequence[str]) -> str:
    for table in sorted(_TABLES):
        if rest.startswith(f"{table.upper()}_") and not rest.startswith(f"{table.upper()}__"):
            return f"did you mean {_PREFIX}{table.upper()}__{rest.removeprefix(f'{table.upper()}_')}?"
    close = difflib.get_close_matches(first, [one for one in known if one != first], n=1)
    return f"did you mean {_PREFIX}{close[0]}{rest.removeprefix(first)}?" if close else "unset it"


def _secret_variables(table: object) -> set[str]:
    """Return the variables that channels' tables name for their secrets; an operator chooses these names."""
    found: set[str] = set()
    if isinstance(table, dict):
        for key, value in cast("dict[str, object]", table).items():
            found |= {value} if key.endswith("_env") and isinstance(value, str) else _secret_variables(value)
    return found
