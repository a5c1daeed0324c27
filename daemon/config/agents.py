"""[agents.NAME]: the keys of one agent group, and the faults that their types cannot see. No I/O."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from typing import Final, Literal, cast

from pydantic import Field, field_validator, model_validator

from daemon.config.presets import PRESETS
from daemon.config.sources import PREFIX
from daemon.config.table import MAX_MEMORY_BYTES, MAX_PIDS, MIN_CPUS, Table, check_path, check_word
from daemon.core.answer_place import MAX_NAME, check_address, is_mailbox_name
from daemon.core.answering import AnswersFrom
from daemon.core.budgets import AgentBudget
from daemon.core.destinations import OWN_PLACE
from daemon.core.errors import MessageError
from schema.errors import InvalidNameError
from schema.ids import check_name
from schema.rows import Address
from schema.tools import TOOLS

PROVIDERS: Final = ("echo", "command", "acp")  # of our own runner; another one (agents.NAME.runner) may have others


_SECRET_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")


class AgentDestination(Table):
    """[agents.NAME.destinations.PLACE]: another place that the agent may write to, or another agent."""

    channel: str = ""
    place: str = ""
    agent: str = ""
    display_name: str = ""

    @field_validator("display_name")
    @classmethod
    def _shown(cls, value: str) -> str:
        if not value.isprintable() or len(value) > MAX_NAME:
            raise ValueError(f"must have at most {MAX_NAME} printable characters")
        return value

    @model_validator(mode="after")
    def _one_of_two(self) -> AgentDestination:
        if bool(self.channel) != bool(self.place) or bool(self.channel) == bool(self.agent):
            raise ValueError("needs a channel and a place, or an agent")
        return self


ToolKind = Literal[
    "default", "read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other"
]


class AgentMount(Table):
    """[[agents.NAME.mounts]]: a file or folder of the host that the agent's container sees."""

    source: str = Field(min_length=1)
    target: str = Field(min_length=1)
    read_only: bool = True

    @field_validator("source", "target")
    @classmethod
    def _path(cls, value: str) -> str:
        check_path(value)
        return value


class Agent(Table):
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
    pause_schedules_after: int = Field(default=5, ge=0, le=100)
    max_schedules: int = Field(default=20, ge=0, le=1000)
    min_schedule_s: float = Field(default=60.0, ge=1, le=366 * 86400.0)
    answers_from: AnswersFrom = AnswersFrom.ASKER
    cancel_grace_s: float = Field(default=15.0, ge=0, le=3600.0)
    expire_after_s: float = Field(default=0.0, ge=0, le=10 * 366 * 86400.0)
    env: dict[str, str] = Field(default_factory=dict[str, str])
    env_file: str = ""
    secret_file: dict[str, str] = Field(default_factory=dict[str, str])
    mounts: tuple[AgentMount, ...] = ()
    image: str | None = None
    network: str | None = None
    memory_bytes: int | None = Field(default=None, ge=16 * 1024**2, le=MAX_MEMORY_BYTES)
    cpus: float | None = Field(default=None, ge=MIN_CPUS)
    pids: int | None = Field(default=None, ge=16, le=MAX_PIDS)
    max_containers: int | None = Field(default=None, ge=1, le=1000)
    runner: tuple[str, ...] = ()
    destinations: dict[str, AgentDestination] | None = None
    destinations_from_routes: bool = True
    turns_per_day: int | None = Field(default=None, ge=0, le=10**9)
    tokens_per_day: int | None = Field(default=None, ge=0, le=10**15)
    cost_per_day: float | None = Field(default=None, ge=0, le=10**9)

    @property
    def budget(self) -> AgentBudget:
        """What the agent may use in a day."""
        return AgentBudget(self.turns_per_day, self.tokens_per_day, self.cost_per_day)

    @property
    def ends_turns(self) -> bool:
        """Whether the runner ends a turn at timeout_s. With acp it does so only when that is set."""
        return self.provider == "command" or (self.provider == "acp" and "timeout_s" in self.model_fields_set)

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: object) -> object:
        """Fill in the provider and the preset's values. An unknown preset is reported later, with all other faults."""
        if not isinstance(values, dict):
            return values
        given = cast("dict[str, object]", values)
        preset, env = PRESETS.get(str(given.get("preset"))), given.get("env", {})
        if preset is not None and isinstance(env, dict):
            merged = {**preset.env, **cast("dict[str, object]", env)}
            given = {"command": preset.command, "mode": preset.mode, **given, "env": merged}
        provider = "acp" if given.get("preset") else "command" if "command" in given else "echo"
        return {"provider": provider, **given}

    @field_validator("image", "network")
    @classmethod
    def _word(cls, value: str | None) -> str | None:
        check_word(value or "")
        return value

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
            if not _SECRET_NAME.match(name) or name.upper().startswith(PREFIX):
                raise ValueError(
                    f"{name!r}: a secret's name has letters, digits and _, and does not begin with {PREFIX}"
                )
            check_path(path)
        return value

    @field_validator("command", "runner")
    @classmethod
    def _arguments(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("\0" in part for part in value):
            raise ValueError("must not contain NUL")
        if value and not value[0].strip():
            raise ValueError("the first part names the program and must not be empty")
        return value


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


def agent_table_faults(
    name: str, agent: Agent, claim_max_s: float, channels: Collection[str], agents: Collection[str]
) -> Iterator[str]:
    """Yield the faults of [agents.NAME]. `claim_max_s` is [sweep]'s, which holds where the agent has none."""
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
    longest = agent.claim_max_s or claim_max_s
    if agent.ends_turns and 0 < longest <= agent.timeout_s:
        # The sweep would end turns that are within their time.
        key = f"agents.{name}.claim_max_s" if agent.claim_max_s else "sweep.claim_max_s"
        yield f"{key}: must be longer than agents.{name}.timeout_s, {agent.timeout_s:g}"
    for place, destination in (agent.destinations or {}).items():
        yield from _destination_faults(f"agents.{name}.destinations.{place}", place, destination, channels, agents)


def _destination_faults(
    key: str, name: str, destination: AgentDestination, channels: Collection[str], agents: Collection[str]
) -> Iterator[str]:
    if not is_mailbox_name(name):
        yield f"{key!r}: the name of a destination has 1 to {MAX_NAME} printable characters"
    elif name == OWN_PLACE:
        yield f"{key}: `{OWN_PLACE}` is the name of a session's own place; choose another one"
    if destination.agent:
        if destination.agent not in agents:
            there = ", ".join(sorted(agents))
            yield f"{key}.agent: there is no agent {destination.agent!r} (known: {there})"
    elif destination.channel not in channels:
        there = ", ".join(sorted(channels))
        yield f"{key}.channel: no channel {destination.channel!r} is configured (known: {there})"
    else:
        try:
            check_address(Address(destination.channel, destination.place))
        except MessageError as error:
            yield f"{key}.place: {str(error).rstrip('.')}; {error.hint.rstrip('.')}"
