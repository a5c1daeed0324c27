"""Finds channel types through the entry-point group `clawbus.channels` and builds the configured ones.

A type that is not configured is never imported. An unknown type, a misspelt key or a wrong value prevents the start, with an
error that names the full key. No error repeats a value, because a channel's table may hold secrets.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Protocol, cast, get_args, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.channels.local import LocalChannel
from daemon.channels.protocol import Channel, ChannelContext
from daemon.config.faults import booleans_for_numbers, fault_text
from daemon.config.models import Config
from daemon.core.clock import Clock
from daemon.core.delivery_plan import HeadRule
from daemon.core.destinations import AGENT_CHANNEL
from daemon.core.errors import ChannelError, ConfigError
from schema.errors import ClawbusError, InvalidNameError
from schema.ids import check_name

GROUP: Final = "clawbus.channels"
LOCAL: Final = "local"
_HINT: Final = "Correct the named key in clawbus.toml; docs/channels.md describes every channel's keys."


class Channels(Mapping[str, Channel]):
    """The channels that were built, by name (an address's `channel_type`). Immutable; `local` is always included."""

    def __init__(self, built: Mapping[str, Channel]) -> None:
        self._built = MappingProxyType(dict(built))

    def __getitem__(self, name: str) -> Channel:
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._built)

    def __len__(self) -> int:
        return len(self._built)

    @property
    def local(self) -> LocalChannel:
        """The `local` channel, whose mailboxes clients read over the control socket."""
        channel = self._built[LOCAL]
        assert isinstance(channel, LocalChannel)
        return channel


class _Common(BaseModel):
    """The keys that every channel's table may have; all others belong to the channel."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str | None = None
    enabled: bool = True
    head_blocks_attempts: int | None = Field(default=None, ge=1)
    head_blocks_s: Annotated[float, Field(ge=0)] | Literal["always"] | None = None


def find_types() -> dict[str, EntryPoint]:
    """Return every installed channel type by name, without importing it. Raise ChannelError if two packages use one name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise ChannelError(
                f"two packages offer a channel type {point.name!r}: {_origin(other)} and {_origin(point)}.",
                hint="Uninstall one of them.",
            )
    return found


def build_channels(config: Config, clock: Clock, types: Mapping[str, EntryPoint] | None = None) -> Channels:
    """Build every configured channel, and `local`. `types` defaults to the installed types.

    Raise ConfigError for an invalid table, ChannelError for a type that is unknown or cannot be loaded.
    """
    known = find_types() if types is None else types
    tables: dict[str, dict[str, Any]] = {LOCAL: {}, **config.channels}
    built: dict[str, Channel] = {}
    faults: list[ClawbusError] = []
    for name, table in tables.items():
        try:
            common = _common(name, table)
            if common.enabled:
                own = {key: value for key, value in table.items() if key not in _Common.model_fields}
                built[name] = _build(name, common.type or name, own, config, clock, known)
        except (ConfigError, ChannelError) as error:
            faults.append(error)
    if len(faults) > 1:
        raise ConfigError("; ".join(str(fault).rstrip(".") for fault in faults) + ".", hint=_HINT)
    if faults:
        raise faults[0]
    return Channels(built)


def _common(name: str, table: Mapping[str, Any]) -> _Common:
    try:
        check_name("channel", name)
        common = _Common.model_validate(table)
    except InvalidNameError as error:
        raise ConfigError(f"channels.{name}: {error}", hint=error.hint) from None
    except ValidationError as error:
        raise _explained(name, error, _Common) from None
    if name == AGENT_CHANNEL:
        raise ConfigError(
            f"channels.{name}: this name belongs to messages between agents.", hint="Give the table another name."
        )
    if name == LOCAL and not common.enabled:
        raise ConfigError("channels.local.enabled: the local channel is always on.", hint="Remove that key.")
    if (name == LOCAL) != ((common.type or name) == LOCAL):
        raise ConfigError(
            f"channels.{name}.type: `local` is the built-in channel; use another name and type.",
            hint="Give the table another name or another type.",
        )
    return common


def _build(
    name: str, type_name: str, table: Mapping[str, Any], config: Config, clock: Clock, known: Mapping[str, EntryPoint]
) -> Channel:
    cls = _load(name, type_name, known)
    try:
        settings = cls.Settings.model_validate(table)
    except ValidationError as error:
        # Do not chain the original error: it quotes its input, which may be a secret.
        raise _explained(name, error, cls.Settings) from None
    faults = list(booleans_for_numbers(cls.Settings, table, f"channels.{name}."))
    if faults:
        raise ConfigError("; ".join(faults) + ".", hint=_HINT)
    _check_agents(name, settings, config)
    _check_places(name, settings, config)
    _check_times(name, settings, config)
    context = ChannelContext(
        name=name,
        settings=settings,
        data_dir=Path(config.data_dir),
        clock=clock,
        max_content_bytes=config.limits.max_content_bytes,
    )
    return cls(context)


def head_rules(config: Config) -> dict[str, HeadRule]:
    """Return, for each configured channel, how long a failing answer holds back later ones. Call after `build_channels`."""
    found: dict[str, HeadRule] = {}
    for name, table in {LOCAL: {}, **config.channels}.items():
        own, delivery = _common(name, table), config.delivery
        seconds = delivery.head_blocks_s if own.head_blocks_s is None else own.head_blocks_s
        found[name] = HeadRule(
            own.head_blocks_attempts or delivery.head_blocks_attempts, None if seconds == "always" else seconds
        )
    return found


@runtime_checkable
class NamesAgents(Protocol):
    """Implemented by settings that name agents, so that an unconfigured agent is found at start-up, not at a message."""

    def named_agents(self) -> Mapping[str, str]:
        """Return the agents' names by the key that names each, relative to the channel's table."""
        ...


def _check_agents(name: str, settings: BaseModel, config: Config) -> None:
    if not isinstance(settings, NamesAgents):
        return
    unknown = [(key, agent) for key, agent in settings.named_agents().items() if agent not in config.agents]
    if unknown:
        there = ", ".join(sorted(config.agents)) or "none"
        lines = [f"channels.{name}.{key}: there is no agent {agent!r} (known: {there})" for key, agent in unknown]
        raise ConfigError("; ".join(lines) + ".", hint="Add an [agents.NAME] table, or correct the named keys.")


@runtime_checkable
class KnowsPlaces(Protocol):
    """Implemented by settings that name the channel's places, so that a place that cannot exist is found at start-up."""

    def place_fault(self, place: str) -> str | None:
        """Return why no answer can ever go to a place, or None."""
        ...


def _check_places(name: str, settings: BaseModel, config: Config) -> None:
    """Check the places that other tables name: what is sent there would be a dead letter after all the work."""
    if not isinstance(settings, KnowsPlaces):
        return
    named = {
        f"agents.{agent}.destinations.{key}.place": one.place
        for agent, table in config.agents.items()
        for key, one in (table.destinations or {}).items()
        if one.channel == name
    } | {f"schedules.{key}.place": one.place or key for key, one in config.schedules.items() if one.channel == name}
    faults = [f"{key}: {fault}" for key, place in named.items() if (fault := settings.place_fault(place)) is not None]
    if faults:
        raise ConfigError("; ".join(faults) + ".", hint=_HINT)


@runtime_checkable
class HasCautions(Protocol):
    """Implemented by settings that can be valid and yet not what is meant."""

    def cautions(self) -> Sequence[str]:
        """Return sentences about what to look at."""
        ...


def cautions(config: Config) -> list[str]:
    """Return what to look at in the channels' tables. Call after `build_channels`."""
    known, found = find_types(), list[str]()
    for name, table in config.channels.items():
        common = _common(name, table)
        own = {key: value for key, value in table.items() if key not in _Common.model_fields}
        settings = _load(name, common.type or name, known).Settings.model_validate(own) if common.enabled else None
        if isinstance(settings, HasCautions):
            found += [f"channels.{name}: {one}" for one in settings.cautions()]
    return found


def _check_times(name: str, settings: BaseModel, config: Config) -> None:
    """Check the timeouts: if the channel's were longer than the bus's, every slow send would be in doubt."""
    total: object = getattr(settings, "total_timeout_s", None)
    if isinstance(total, float) and total > config.delivery.send_timeout_s:
        raise ConfigError(
            f"channels.{name}.total_timeout_s: must be at most delivery.send_timeout_s, {config.delivery.send_timeout_s:g}"
            f" (it is {total:g}).",
            hint="Lower the one or raise the other: the bus gives a send up after delivery.send_timeout_s.",
        )


def _load(name: str, type_name: str, known: Mapping[str, EntryPoint]) -> type[Channel]:
    point = known.get(type_name)
    if point is None:
        key = f"channels.{name}" if type_name == name else f"channels.{name}.type"
        raise ChannelError(
            f"{key}: unknown channel type {type_name!r} (known: {', '.join(sorted(known)) or 'none'}).",
            hint="Set `type` to one of these, or install the package that brings it into clawbus's environment.",
        )
    try:
        loaded = point.load()
    except Exception as error:  # importing another package may raise anything
        raise ChannelError(
            f"channels.{name}: channel type {type_name!r} of {_origin(point)} cannot be imported:"
            f" {type(error).__name__}: {error}"
        ) from error
    _check_class(name, type_name, loaded)
    return cast("type[Channel]", loaded)


def _check_class(name: str, type_name: str, loaded: object) -> None:
    settings = getattr(loaded, "Settings", None)
    lacking = [member for member in ("run", "deliver") if not callable(getattr(loaded, member, None))]
    if not isinstance(loaded, type) or lacking or not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        raise ChannelError(
            f"channels.{name}: {type_name!r} is not a channel: it must be a class with Settings (pydantic), run and deliver.",
            hint="docs/channels.md has a complete example.",
        )
    if settings.model_config.get("extra") != "forbid":
        raise ChannelError(
            f"channels.{name}: the Settings of {type_name!r} would let a mistyped key pass.",
            hint='Its author sets model_config = ConfigDict(extra="forbid").',
        )


def _explained(name: str, error: ValidationError, model: type[BaseModel]) -> ConfigError:
    """Return an error with one line for each wrong key, without its value."""
    lines: list[str] = []
    for item in error.errors(include_url=False, include_input=False):
        key = ".".join(("channels", name, *map(str, item["loc"])))
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(item["loc"][-1]), _keys(model, item["loc"][:-1]), n=1)
            lines.append(f"{key}: unknown key" + (f"; did you mean {close[0]!r}?" if close else ""))
        else:
            lines.append(f"{key}: {fault_text(item)}")
    return ConfigError("; ".join(lines), hint=_HINT)


def _keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys at a location in a model, following fields and tables of named sub-tables."""
    current: object = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field is not None else None
        else:  # dict[str, Table]: this part of the location is a name; go on with the value's type
            arguments = get_args(current)
            current = arguments[-1] if arguments else None
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [*current.model_fields, *(() if location else _Common.model_fields)]
    return []


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
