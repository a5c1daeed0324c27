"""[channels.webhook]: checks the webhook channel's settings and reads its secrets. Opens no socket.

A secret never appears in an error, a log line or a repr: it is a SecretStr until it becomes the bytes of an HMAC key.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator

from daemon.channels.protocol import InDoubt
from daemon.channels.webhook_bodies import check_body
from daemon.channels.webhook_forms import Clawbus, GitHub, GitLab, Hmac, SignatureForm, Slack, Stripe
from daemon.config.addresses import split_listen
from daemon.config.egress import split_target
from daemon.config.routes import session_template
from daemon.core.errors import ConfigError
from daemon.core.templates import parse
from schema.errors import InvalidNameError
from schema.frozen import frozen
from schema.ids import check_name
from schema.os_faults import read_own_file
from schema.rows import Kind

ANY_SESSION: Final = "*"
OF_PLACE: Final = ":"  # between the hook's name and what its `place` template says
HOOK_VALUES: Final = frozenset(("event", "hook", "body", "text"))  # the fields that a hook's templates may use
_HEADER: Final = re.compile(r"[A-Za-z0-9-]{1,100}\Z")
_EVENT: Final = re.compile(r"[A-Za-z0-9_:.-]{1,100}\Z")
MAX_EVENTS: Final = 100
MIN_SECRET: Final = 8
_MAX_SECRET_FILE: Final = 4096
# RFC 1918, RFC 4193, loopback and link-local. Listed, because `ipaddress.is_private` includes 0.0.0.0, which means everybody.
_PRIVATE: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)


class Hook(BaseModel):
    """[channels.webhook.hooks.NAME]: who may post to this hook, and where its answers go."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    agent: str | None = None
    session: str | None = None
    place: str | None = None
    thread: str | None = None
    sender: str | None = None
    text: str | None = None
    signature: Literal["clawbus", "github", "gitlab", "slack", "stripe", "hmac"] = "clawbus"
    signature_header: str | None = None
    id_header: str | None = None
    keep_raw: bool = False
    file_hosts: tuple[str, ...] = ()
    secret: SecretStr | None = None
    secret_env: str | None = None
    secret_file: Path | None = None
    kind: Literal[Kind.CHAT, Kind.CHAT_SDK, Kind.TASK, Kind.WEBHOOK] = Kind.WEBHOOK
    events: tuple[str, ...] = ()
    reply: Literal["url", "none"] = "url"
    reply_format: Literal["clawbus", "slack", "discord", "teams", "body"] = "clawbus"
    reply_body: dict[str, Any] | None = None
    reply_url: SecretStr | None = None
    reply_secret: SecretStr | None = None
    reply_secret_env: str | None = None
    reply_secret_file: Path | None = None
    typing: bool = False

    @field_validator("agent")
    @classmethod
    def _agent(cls, value: str | None) -> str | None:
        return value if value is None else _named("agent", value)

    @field_validator("session")
    @classmethod
    def _session(cls, value: str | None) -> str | None:
        if value is not None and value != ANY_SESSION:
            session_template(value, HOOK_VALUES)
        return value

    @field_validator("place", "thread", "sender", "text")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is not None:
            unknown = sorted(parse(value).first_words - HOOK_VALUES)
            if unknown:
                raise ValueError(f"there is no field {{{unknown[0]}}}; the fields are {', '.join(sorted(HOOK_VALUES))}")
        return value

    @model_validator(mode="after")
    def _way(self) -> Self:
        if (self.agent is None) != (self.session is None):
            raise ValueError("agent and session go together; without both, [[routes]] decide")
        if self.agent is not None and (self.place, self.thread, self.sender, self.text) != (None,) * 4:
            raise ValueError("place, thread, sender and text are for [[routes]]: remove them, or agent and session")
        return self

    @field_validator("reply_url")
    @classmethod
    def _url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_url(value.get_secret_value())
        return value

    @field_validator("file_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            split_target(one, wildcard=True)
        return value

    @field_validator("signature_header", "id_header")
    @classmethod
    def _header(cls, value: str | None) -> str | None:
        if value is not None and not _HEADER.match(value):
            raise ValueError("must be the name of a header, such as X-Signature")
        return value

    @field_validator("events")
    @classmethod
    def _events(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > MAX_EVENTS or not all(_EVENT.match(one) for one in value):
            raise ValueError(f"holds at most {MAX_EVENTS} names such as push or pull_request.opened")
        return value

    @field_validator("reply_body")
    @classmethod
    def _body(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            check_body(value)
        return value

    @model_validator(mode="after")
    def _format(self) -> Self:
        if (self.reply_format == "body") != (self.reply_body is not None):
            raise ValueError('reply_format = "body" needs reply_body, and no other format has one')
        if self.reply_format != "clawbus" and self.reply_url is None:
            raise ValueError("reply_format goes with reply_url")
        if self.typing and (self.reply_format != "clawbus" or self.reply_url is None):
            raise ValueError(
                'typing needs reply_url, and reply_format = "clawbus": the other formats have no typing sign'
            )
        return self

    @model_validator(mode="after")
    def _headers(self) -> Self:
        if (self.signature == "hmac") != (self.signature_header is not None):
            raise ValueError('signature = "hmac" needs signature_header, and no other signature has it')
        if self.id_header is not None and self.signature != "hmac":
            raise ValueError('id_header goes with signature = "hmac"')
        return self

    @property
    def form(self) -> SignatureForm:
        """How the hook's requests are signed."""
        if self.signature_header is not None:
            return Hmac(self.signature_header, self.id_header)
        forms: dict[str, SignatureForm] = {
            "clawbus": Clawbus(), "github": GitHub(), "gitlab": GitLab(), "slack": Slack(), "stripe": Stripe(),
        }  # fmt: skip
        return forms[self.signature]

    @model_validator(mode="after")
    def _secrets(self) -> Self:
        if sum(one is not None for one in (self.secret, self.secret_env, self.secret_file)) != 1:
            raise ValueError("set exactly one of secret, secret_env and secret_file")
        if self.reply == "none" and self.reply_url is not None:
            raise ValueError('reply = "none" and reply_url exclude each other: remove one of them')
        given = sum(one is not None for one in (self.reply_secret, self.reply_secret_env, self.reply_secret_file))
        if self.reply_url is not None and self.reply_format != "clawbus":
            if given > 1:
                raise ValueError("set at most one of reply_secret, reply_secret_env and reply_secret_file")
        elif given != (0 if self.reply_url is None else 1):
            raise ValueError(
                "with reply_url set exactly one of reply_secret, reply_secret_env and reply_secret_file; without it none"
            )
        return self


class WebhookSettings(BaseModel):
    """The table [channels.webhook]. Times are in seconds, sizes in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    allow_public: bool = False  # must come before `listen`, whose validator needs it
    listen: str = "127.0.0.1:8650"
    max_body_bytes: int = Field(default=1024**2, ge=1, le=64 * 1024**2)
    body_timeout_s: float = Field(default=10.0, gt=0, le=600)
    max_connections: int = Field(default=200, ge=1, le=10_000)
    max_connections_per_peer: int = Field(default=0, ge=0, le=10_000)
    connect_timeout_s: float = Field(default=5.0, gt=0, le=600)
    read_timeout_s: float = Field(default=20.0, gt=0, le=600)
    write_timeout_s: float = Field(default=10.0, gt=0, le=600)
    pool_timeout_s: float = Field(default=5.0, gt=0, le=600)
    total_timeout_s: float = Field(default=25.0, gt=0, le=600)
    receiver_deduplicates: bool = False
    in_doubt: InDoubt = InDoubt.RESEND
    hooks: dict[str, Hook] = Field(default_factory=dict[str, Hook])

    @property
    def per_peer(self) -> int:
        """The number of connections that one address may have at once: half of all by default."""
        return self.max_connections_per_peer or max(1, self.max_connections // 2)

    def named_agents(self) -> dict[str, str]:
        """See daemon.channels.registry.NamesAgents."""
        return {f"hooks.{name}.agent": hook.agent for name, hook in self.hooks.items() if hook.agent is not None}

    def place_fault(self, place: str) -> str | None:
        """See daemon.channels.registry.KnowsPlaces."""
        hook = self.hooks.get(hook_of(place))
        if hook is None:
            return f"there is no hook {hook_of(place)!r} (known: {', '.join(sorted(self.hooks)) or 'none'})"
        return None if hook.reply_url is not None or hook.reply == "none" else "its hook has no reply_url"

    def cautions(self) -> list[str]:
        """See daemon.channels.registry.HasCautions.

        A person is known by the channel and the sender's name. A service vouches for its names at each of its hooks; with a
        signature of one's own, each holder of a secret vouches for others.
        """
        named = {
            name: hook
            for name, hook in sorted(self.hooks.items())
            if hook.agent is None and hook.sender is not None and "hook" not in parse(hook.sender).first_words
        }
        own = ("clawbus", "hmac")
        vouchers = {(one.signature, one.sender, name if one.signature in own else "") for name, one in named.items()}
        if len(vouchers) <= 1:
            return []
        hooks = ", ".join(named)
        return [f"hooks {hooks} share people: the same `sender` is the same person. Put {{hook}} into it if it is not."]

    @field_validator("hooks")
    @classmethod
    def _names(cls, value: dict[str, Hook]) -> dict[str, Hook]:
        for name in value:
            _named("hook", name)
        return value

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        host, _ = split_listen(value)
        if not (info.data.get("allow_public", False) or is_private(host)):
            raise ValueError(
                f"{host} is neither a loopback nor a private address; put a TLS proxy before the daemon,"
                " or set allow_public = true"
            )
        return value


def hook_of(place: str) -> str:
    """Return the name of the hook that a place belongs to."""
    return place.partition(OF_PLACE)[0]


@frozen
class Keys:
    """A hook's secrets as HMAC keys, hidden from the repr."""

    inbound: bytes
    reply: bytes | None

    def __repr__(self) -> str:
        return "Keys(...)"


def is_private(host: str) -> bool:
    """Return whether an IP address is loopback, link-local or private, so that the Internet cannot reach it."""
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in _PRIVATE)


def read_keys(channel: str, settings: WebhookSettings) -> dict[str, Keys]:
    """Read every hook's secrets. Raise ConfigError, naming the key, for a secret that is missing, too short or used twice."""
    keys: dict[str, Keys] = {}
    for name, hook in settings.hooks.items():
        where = f"channels.{channel}.hooks.{name}"
        inbound = _key(f"{where}.secret", hook.secret, hook.secret_env, hook.secret_file, os.environ)
        assert inbound is not None
        reply = _key(
            f"{where}.reply_secret", hook.reply_secret, hook.reply_secret_env, hook.reply_secret_file, os.environ
        )
        if reply == inbound:
            # Both directions sign alike: with the same key, our own answer would be accepted as a request to this hook.
            raise ConfigError(
                f"{where}.reply_secret: must not be the hook's own secret.",
                hint="Give the receiver a different secret.",
            )
        keys[name] = Keys(inbound, reply)
    return keys


def _key(
    where: str, plain: SecretStr | None, env: str | None, file: Path | None, environ: Mapping[str, str]
) -> bytes | None:
    if plain is not None:
        found = plain.get_secret_value().encode("utf-8")
    elif env is not None:
        if env not in environ:
            raise ConfigError(f"{where}_env: the environment variable {env} is not set.")
        where, found = f"{where}_env", environ[env].encode("utf-8", "surrogateescape")
    elif file is not None:
        where, found = f"{where}_file", _read(f"{where}_file", file)
    else:
        return None
    if len(found) < MIN_SECRET:
        raise ConfigError(
            f"{where}: a secret needs at least {MIN_SECRET} characters.", hint="Make one with `openssl rand -hex 32`."
        )
    return found


def _read(where: str, path: Path) -> bytes:
    try:
        found = read_own_file(path, _MAX_SECRET_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {path} cannot be read: {error.strerror}.") from error
    if len(found) > _MAX_SECRET_FILE:
        raise ConfigError(f"{where}: {path} is over {_MAX_SECRET_FILE} bytes; that is too short for a secret.")
    return found.rstrip(b"\r\n")  # editors end a file with a newline, which is not part of the secret


def _named(what: str, value: str) -> str:
    try:
        return check_name(what, value)
    except InvalidNameError as error:
        raise ValueError(f"{error} {error.hint}") from error


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("must be a URL") from None
    if parts.scheme not in {"http", "https"} or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be an http:// or https:// URL with a host, in ASCII")
    if parts.username is not None or parts.fragment:
        raise ValueError("must have neither a user name nor a fragment")
