"""The `webhook` channel: signed HTTP requests in, signed HTTP requests out.

This file joins the two directions and owns the listening socket. The socket is bound before the channel reports that it
has started, so that an address in use fails the start instead of only appearing in the log later.
"""

from __future__ import annotations

import socket
from typing import ClassVar, Final, cast

import structlog
from anyio.abc import TaskStatus
from pydantic import BaseModel

from daemon.channels.protocol import Accept, Capabilities, ChannelContext, Outgoing, Receipt, Typing
from daemon.channels.webhook_fetch import FileFetcher
from daemon.channels.webhook_in import WebhookIn
from daemon.channels.webhook_out import WebhookOut
from daemon.channels.webhook_settings import WebhookSettings, read_keys
from daemon.config.addresses import bind_tcp, bound_address
from daemon.core.errors import ChannelError, ListenError
from daemon.http.asgi import serve
from daemon.http.connections import ConnectionLimits, guarded
from daemon.http.resolver import Resolver
from schema.rows import Address

_FULL_LOG_S: Final = 60.0  # a flood of connections must not become a flood of log lines


class WebhookChannel:
    """One listening address with any number of hooks. `bound_address` is (host, port) while it serves, else None."""

    Settings: ClassVar[type[BaseModel]] = WebhookSettings

    def __init__(self, context: ChannelContext) -> None:
        """Build the channel. Raise ConfigError when a secret is missing or too short."""
        settings = cast("WebhookSettings", context.settings)
        keys = read_keys(context.name, settings)
        self.name = context.name
        self.capabilities = Capabilities(
            deduplicates=settings.receiver_deduplicates, threads=False, files=True, in_doubt=settings.in_doubt
        )
        self.bound_address: tuple[str, int] | None = None
        self._settings = settings
        self._clock = context.clock
        self._full_logged: float | None = None
        self._fetcher = FileFetcher(Resolver(context.clock), settings.max_body_bytes, settings.total_timeout_s)
        self._in = WebhookIn(context.name, settings, keys, context.clock, self._fetcher)
        self._out = WebhookOut(context.name, settings, keys, context.clock)
        self._log = structlog.get_logger("webhook")

    async def run(self, accept: Accept, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled. Raise ChannelError when the address cannot be bound."""
        sock = self._bind()
        try:
            self.bound_address = bound_address(sock)
            host, port = self.bound_address
            async with self._out.open() as trust, self._fetcher.open(trust):
                self._log.info("webhook_listening", host=host, port=port, hooks=sorted(self._settings.hooks))
                settings = self._settings
                limits = ConnectionLimits(settings.max_connections, settings.per_peer, settings.body_timeout_s)
                protocol = guarded(limits, self._full)
                await serve(self._in.app(accept), sock, task_status=task_status, http=protocol)
        finally:
            self.bound_address = None
            sock.close()

    async def deliver(self, message: Outgoing) -> Receipt:
        """POST one answer to its hook's reply_url. Raise TransientDeliveryError or PermanentDeliveryError on failure."""
        return await self._out.deliver(message)

    def shows_typing(self, address: Address) -> bool:
        """Return whether the hook's receiver asks for typing signs."""
        return self._out.shows_typing(address)

    async def typing(self, sign: Typing) -> None:
        """POST a typing sign to the hook's reply_url. Raise the errors of the request."""
        await self._out.typing(sign)

    def _full(self, turned_away: bool) -> None:
        now = self._clock.monotonic()
        if self._full_logged is None or now - self._full_logged >= _FULL_LOG_S:
            self._full_logged = now
            self._log.warning(
                "webhook_connections_full",
                max_connections=self._settings.max_connections,
                max_connections_per_peer=self._settings.per_peer,
                turned_away=turned_away,
            )

    def _bind(self) -> socket.socket:
        try:
            return bind_tcp(self._settings.listen)
        except ListenError as error:
            raise ChannelError(
                f"channel {self.name} {error}",
                hint=f"Free the address, or set channels.{self.name}.listen to another one.",
            ) from error
