"""[egress]: what agents may reach through the gate. Types and the faults that one table alone can show."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from daemon.core.egress_usage import EVERY_AGENT, Budget
from daemon.core.public_addresses import is_public
from schema.errors import InvalidNameError
from schema.ids import check_name

DEFAULT_PORT: Final = 3128

_HEADER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
# Framing and routing are the gate's; a secret in one of these would break every request.
_NOT_FOR_SECRETS: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive"}
)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EgressRoute(_Table):
    """[egress.routes.NAME]: `http://127.0.0.1:3128/NAME/...` in the container becomes `upstream/...`, with the secret."""

    upstream: str
    agents: tuple[str, ...] = Field(min_length=1)
    header: str = ""
    value: str = ""
    secret_file: Path | None = None
    paths: tuple[str, ...] = ()
    api: Literal["anthropic", "openai", "gemini", "plain"] = "plain"
    env: dict[str, str] = Field(default_factory=dict[str, str])

    @field_validator("upstream")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = _split(value)
        if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be a URL, for example https://api.anthropic.com")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("must have no user name, query or fragment; a secret belongs in secret_file")
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("must be in printable ASCII, without blanks")
        return value.rstrip("/")

    @field_validator("header")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and (not _HEADER.match(value) or value.lower() in _NOT_FOR_SECRETS):
            raise ValueError('must be the name of a header that carries a key, such as "x-api-key" or "authorization"')
        return value.lower()

    @field_validator("value")
    @classmethod
    def _template(cls, value: str) -> str:
        if value and (value.count("{secret}") != 1 or not value.isascii() or not value.isprintable()):
            raise ValueError('must contain {secret} once, for example "Bearer {secret}"')
        return value

    @field_validator("paths")
    @classmethod
    def _paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            if not path.startswith("/") or "*" in path[:-1]:
                raise ValueError(f"{path!r} must begin with / and may have one * at its end")
        return value

    @field_validator("env")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _VARIABLE.match(name) or "\0" in text or name.upper().startswith("CLAWBUS_"):
                raise ValueError(
                    f"{name!r}: use letters, digits and _ for a variable, no CLAWBUS_ in front, and no NUL"
                )
        return value

    @property
    def secret_value(self) -> str:
        """Return the header's value with `{secret}` in it."""
        return self.value or ("Bearer {secret}" if self.header == "authorization" else "{secret}")


class EgressConnect(_Table):
    """[egress.connect.NAME]: hosts that agents may reach with CONNECT or a plain proxy request; nothing is added."""

    hosts: tuple[str, ...] = Field(min_length=1)
    agents: tuple[str, ...] = Field(min_length=1)

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            split_target(entry, wildcard=True)
        return tuple(entry.lower() for entry in value)


class EgressBudget(_Table):
    """[egress.budgets.AGENT]: what an agent may use in a day; `"*"` is for every agent without a table of its own."""

    requests_per_day: int | None = Field(default=None, ge=0)
    tokens_per_day: int | None = Field(default=None, ge=0)


class Egress(_Table):
    """[egress]: the gate between agents and the network. Without a route or a host for an agent, it has no gate."""

    port: int = Field(default=DEFAULT_PORT, ge=1024, le=65_535)
    max_connections: int = Field(default=128, ge=8, le=1024)
    max_body_bytes: int = Field(default=64 * 1024**2, ge=1024, le=1024**3)
    connect_timeout_s: float = Field(default=10.0, gt=0, le=300)
    silence_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    private_targets: tuple[str, ...] = ()
    routes: dict[str, EgressRoute] = Field(default_factory=dict[str, EgressRoute])
    connect: dict[str, EgressConnect] = Field(default_factory=dict[str, EgressConnect])
    budgets: dict[str, EgressBudget] = Field(default_factory=dict[str, EgressBudget])

    @field_validator("private_targets")
    @classmethod
    def _targets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            split_target(entry)
        return tuple(entry.lower() for entry in value)

    @property
    def is_open(self) -> bool:
        """Whether any agent may reach anything."""
        return bool(self.routes or self.connect)

    def may_use(self, agent: str) -> bool:
        """Return whether the agent has a gate: a route or a host is its own."""
        tables = (*self.routes.values(), *self.connect.values())
        return any(is_for(table.agents, agent) for table in tables)

    def daily(self) -> dict[str, Budget]:
        """Return the budgets by agent."""
        return {name: Budget(one.requests_per_day, one.tokens_per_day) for name, one in self.budgets.items()}

    def environment(self, agent: str) -> dict[str, str]:
        """Return the variables of the agent's routes; `{url}` stands for the route's address in the container."""
        found: dict[str, str] = {}
        for name, route in self.routes.items():
            if is_for(route.agents, agent):
                found |= {key: text.replace("{url}", f"{{gate}}/{name}") for key, text in route.env.items()}
        return found


def is_for(agents: Collection[str], agent: str) -> bool:
    """Return whether a table that names `agents` is meant for `agent`."""
    return agent in agents or EVERY_AGENT in agents


def split_target(text: str, *, wildcard: bool = False) -> tuple[str, int]:
    """Return (host, port) of `HOST:PORT`; an IPv6 address stands in brackets. Raise ValueError."""
    host, colon, port = text.lower().rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65_536:
        raise ValueError(f"{text!r} must be HOST:PORT, for example pypi.org:443")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare != host:
        try:
            return str(ipaddress.IPv6Address(bare)), int(port)
        except ValueError:
            raise ValueError(f"{text!r}: {bare!r} is not an IPv6 address") from None
    name = host.removeprefix("*.") if wildcard else host
    if not _HOST.match(name) or ".." in name:
        more = " or *.NAME" if wildcard else ""
        raise ValueError(f"{text!r}: {host!r} is not a host name{more}")
    return host, int(port)


def target_of(upstream: str) -> tuple[str, str, int, str]:
    """Return (scheme, host, port, path) of a route's checked URL. The host is in lower case, without brackets."""
    parts = urlsplit(upstream)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or (443 if parts.scheme == "https" else 80),
        parts.path.rstrip("/"),
    )


def egress_faults(egress: Egress, agents: Collection[str]) -> Iterator[str]:
    """Yield the faults that only several keys together show."""
    private = {split_target(entry) for entry in egress.private_targets}
    for name, route in egress.routes.items():
        where = f"egress.routes.{name}"
        yield from _named(where, name)
        yield from _unknown_agents(where, route.agents, agents)
        if bool(route.header) != (route.secret_file is not None):
            yield f"{where}: header and secret_file belong together; give both or neither"
        if route.value and not route.header:
            yield f"{where}.value: needs a header that it is the value of"
        _, host, port, _ = target_of(route.upstream)
        if (host, port) not in private and not _may_be_public(host):
            yield (
                f"{where}.upstream: {host} is not a public address; if that is meant, add"
                f' "{host}:{port}" to egress.private_targets'
            )
    for name in egress.budgets:
        yield from _unknown_agents("egress.budgets", (name,), agents)
    for name in egress.connect.keys() & egress.routes.keys():
        yield f"egress.connect.{name}: a route has this name, too; they are counted by name"
    for name, table in egress.connect.items():
        yield from _named(f"egress.connect.{name}", name)
        yield from _unknown_agents(f"egress.connect.{name}", table.agents, agents)


def _named(where: str, name: str) -> Iterator[str]:
    try:
        check_name("route", name)
    except InvalidNameError as error:
        yield f"{where}: {str(error).rstrip('.')}; {error.hint.rstrip('.')}"


def _unknown_agents(where: str, named: Collection[str], agents: Collection[str]) -> Iterator[str]:
    for agent in named:
        if agent != EVERY_AGENT and agent not in agents:
            yield f"{where}: there is no agent {agent!r} (known: {', '.join(sorted(agents)) or 'none'})"


def _may_be_public(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return is_public(host)
    except ValueError:  # a name: what it resolves to is checked at every connection
        return True


def _split(value: str) -> SplitResult | None:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return None
    return parts
