"""Configuration: one TOML file, overridden by CLAWBUS_* environment variables, checked before anything starts.

Every refusal is a ConfigError that names the key and the fix. Durations end in `_s` and are seconds; sizes end in
`_bytes`. docs/configuration.md lists every key (a test compares it with these classes).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from daemon.errors import ConfigError
from daemon.listening import is_loopback, split_listen
from schema.errors import InvalidNameError
from schema.ids import check_name

CONFIG_NAME: Final = "clawbus.toml"
_PREFIX: Final = "CLAWBUS_"
# Ours and no keys: where the file is, what a runner and an agent's program are given, what tests and checks look at.
_NO_KEYS: Final = (
    "CONFIG", "RUNNER", "INCARNATION", "IN", "OUT", "AGENT", "AGENT_NAME", "SESSION_NAME", "CRASH_POINTS",
    "DOCKERD_LOG", "DEBIAN_MIRROR",
)  # fmt: skip
_NO_KEYS_BEGIN: Final = ("TEST_", "REQUIRE_")
DEFAULT_IMAGE: Final = "clawbus-runner:latest"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    """[docker]: defaults of every container; an agent may override image, network, memory, cpus and pids."""

    image: str = DEFAULT_IMAGE
    network: str = "none"
    memory_bytes: int = Field(default=1024**3, ge=16 * 1024**2)
    cpus: float = Field(default=1.0, gt=0)
    pids: int = Field(default=256, ge=16)
    user: str = ""
    timeout_s: float = Field(default=30.0, gt=0)


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
    max_sends_per_channel: int = Field(default=100, ge=1, le=10_000)
    max_sends_per_place: int = Field(default=16, ge=1, le=10_000)
    max_sends_per_session: int = Field(default=8, ge=1, le=10_000)


class Retention(_Table):
    """[retention]: how long what is done is kept. 0, or "never" for never pruned."""

    messages_s: float = Field(default=30 * 86400.0, ge=0)
    incarnations_s: float = Field(default=30 * 86400.0, ge=0)
    mailbox_s: float = Field(default=365 * 86400.0, ge=0)
    interval_s: float = Field(default=3600.0, gt=0)
    batch: int = Field(default=500, ge=1, le=10_000)

    @field_validator("messages_s", "incarnations_s", "mailbox_s", mode="before")
    @classmethod
    def _never(cls, value: object) -> object:
        return 0.0 if value == "never" else value


class LimitsTable(_Table):
    """[limits]: what may come from outside and out of a container."""

    max_content_bytes: int = Field(default=1024**2, ge=1024, le=64 * 1024**2)
    max_outbound_file_bytes: int = Field(default=512 * 1024**2, ge=1024**2)
    max_out_folder_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    max_out_folder_files: int = Field(default=100_000, ge=100)
    read_deadline_s: float = Field(default=2.0, gt=0, le=60)


class Control(_Table):
    """[control]: the operator's socket. Empty: `<data>/control.sock`."""

    socket: str = ""


class Logs(_Table):
    """[logs]: auto means JSON unless stderr is a terminal. The file `<data>/logs/clawbus.log` is always JSON."""

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


class AgentDestination(_Table):
    """[agents.NAME.destinations.PLACE]: a place besides its own that the agent may write to."""

    channel: str = Field(min_length=1)
    place: str = Field(min_length=1)
    display_name: str = ""


class Agent(_Table):
    """[agents.NAME]: one agent group. `provider` is the runner's: echo, or command with its argument list."""

    provider: str = "echo"
    command: tuple[str, ...] = ()
    timeout_s: float = Field(default=600.0, gt=0)
    claim_max_s: float | None = Field(default=None, gt=0)
    leftovers: Literal["end", "keep"] = "end"
    error_detail: Literal["operator", "sender"] = "operator"
    env: dict[str, str] = Field(default_factory=dict[str, str])
    image: str | None = None
    network: str | None = None
    memory_bytes: int | None = Field(default=None, ge=16 * 1024**2)
    cpus: float | None = Field(default=None, gt=0)
    pids: int | None = Field(default=None, ge=16)
    runner: tuple[str, ...] = ()
    destinations: dict[str, AgentDestination] | None = None

    @field_validator("command", "runner")
    @classmethod
    def _arguments(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("\0" in part for part in value):
            raise ValueError("must not contain NUL")
        if value and not value[0].strip():
            raise ValueError("the first part names the program and must not be empty")
        return value


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
    runtime: Runtime = Field(default_factory=Runtime)
    docker: Docker = Field(default_factory=Docker)
    sweep: Sweep = Field(default_factory=Sweep)
    delivery: Delivery = Field(default_factory=Delivery)
    retention: Retention = Field(default_factory=Retention)
    limits: LimitsTable = Field(default_factory=LimitsTable)
    control: Control = Field(default_factory=Control)
    logs: Logs = Field(default_factory=Logs)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    agents: dict[str, Agent] = Field(default_factory=dict[str, Agent])
    # Not in the repr: a channel's table may hold secrets.
    channels: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]], repr=False)

    @field_validator("data_dir", mode="before")
    @classmethod
    def _folder(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError("must name a folder")
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("is no time zone of this machine; use a name like Europe/Vienna, or UTC") from None
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
        """Environment over file; nothing else."""
        return env_settings, init_settings

    @property
    def control_socket(self) -> Path:
        """Where the daemon answers."""
        return Path(self.control.socket) if self.control.socket else self.data_dir / "control.sock"


def find_config(explicit: Path | None) -> Path | None:
    """The file to read: `--config`, $CLAWBUS_CONFIG, ./clawbus.toml or /etc/clawbus/clawbus.toml: the first of them."""
    if explicit is not None:
        return explicit
    named = os.environ.get("CLAWBUS_CONFIG")
    if named:
        return Path(named)
    for candidate in (Path.cwd() / CONFIG_NAME, Path("/etc/clawbus") / CONFIG_NAME):
        if candidate.is_file():
            return candidate
    return None


def load_config(path: Path | None, *, data_dir: Path | None = None) -> Config:
    """Read and check. `path` None means defaults and environment only. A relative data_dir is relative to the file.

    `data_dir` is the command line's word and wins over environment and file.

    Raises ConfigError naming every wrong key, its place and its fix.
    """
    values = _read_toml(path) if path is not None else {}
    if path is not None and isinstance(values.get("data_dir"), str) and str(values["data_dir"]).strip():
        values["data_dir"] = (path.absolute().parent / str(values["data_dir"])).resolve()
    try:
        config = Config(**values)
    except ValidationError as error:
        raise _explained(error, path) from error
    except Exception as error:  # pydantic-settings wraps an unparsable environment variable in its own error
        raise ConfigError(f"{error}", hint="Correct or unset that environment variable.") from error
    wanted = (data_dir if data_dir is not None else config.data_dir).absolute()
    faults = [*_faults(config), *_unknown_variables(config)]
    if wanted.resolve() == Path("/"):
        faults.append("data_dir: must be a folder of its own, not the root of the file system")
    if faults:
        raise ConfigError("; ".join(faults) + ".", hint="Correct the named keys; docs/configuration.md lists them all.")
    return config.model_copy(update={"data_dir": wanted})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist.", hint="Run `clawbus init`, or name it with --config.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", hint="Make it readable UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}.", hint="Correct that line.") from error


def _explained(error: ValidationError, path: Path | None) -> ConfigError:
    lines: list[str] = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(item["loc"][-1]), _keys_at(item["loc"][:-1]), n=1)
            advice = f"did you mean {close[0]!r}?" if close else "remove it."
            lines.append(f"{where}: unknown key; {advice}")
        else:
            lines.append(f"{where}: {item['msg']} (got {item['input']!r:.80})")
    place = str(path) if path is not None else "the environment"
    return ConfigError(
        f"{place}: " + "; ".join(lines), hint="Correct the named keys; docs/configuration.md lists them."
    )


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


def _faults(config: Config) -> Iterator[str]:
    """What the tables' own types cannot see."""
    for name, agent in config.agents.items():
        try:
            check_name("agent", name)
        except InvalidNameError as error:
            yield f"agents.{name}: {str(error).rstrip('.')}; {error.hint.rstrip('.')}"
        if agent.provider == "command" and not agent.command:
            yield f'agents.{name}.command: provider \'command\' needs a program: command = ["program", "argument"]'
        longest = agent.claim_max_s or config.sweep.claim_max_s
        if agent.provider == "command" and 0 < longest <= agent.timeout_s:
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

    for key in ("messages_s", "mailbox_s"):
        age = float(getattr(config.retention, key))
        if 0 < age < config.delivery.retry_for_s:
            # Within it a send may be repeated, and what makes the repetition the same send must still be there.
            yield f"retention.{key}: must be 0 (never) or at least delivery.retry_for_s, {config.delivery.retry_for_s:g}"


def _unknown_variables(config: Config) -> Iterator[str]:
    """A mistyped variable must not be a setting that silently does nothing."""
    known = [*(key.upper() for key in Config.model_fields), *_NO_KEYS]
    for name in sorted(os.environ):
        rest = name.upper().removeprefix(_PREFIX)
        if rest == name.upper() or rest.startswith(_NO_KEYS_BEGIN) or name in _secret_variables(config.channels):
            continue
        first = rest.partition("__")[0]
        if first not in known:
            close = difflib.get_close_matches(first, known, n=1)
            advice = f"did you mean {_PREFIX}{close[0]}?" if close else "unset it."
            yield f"environment variable {name}: no such key; {advice.rstrip('.')}"


def _secret_variables(table: object) -> set[str]:
    """The variables that channels' tables name for their secrets: an operator may call them what he likes."""
    found: set[str] = set()
    if isinstance(table, dict):
        for key, value in cast("dict[str, object]", table).items():
            found |= {value} if key.endswith("_env") and isinstance(value, str) else _secret_variables(value)
    return found
