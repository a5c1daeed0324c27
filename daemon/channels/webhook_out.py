"""Outgoing webhook answers: a signed POST to the hook's reply_url.

Only a 2xx response is a receipt; any other outcome raises. The reply_url may hold a token, so errors and log lines show only
its host.
"""

from __future__ import annotations

import hashlib
import json
import logging
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Final, cast
from urllib.parse import quote

import anyio
import anyio.to_thread
import httpx

from daemon.channels.file_room import FileRoom
from daemon.channels.protocol import Outgoing, Receipt, Typing
from daemon.channels.signatures import retry_after_s, sign_at
from daemon.channels.webhook_bodies import encoded
from daemon.channels.webhook_files import Post, made_post
from daemon.channels.webhook_settings import Hook, Keys, WebhookSettings, hook_of
from daemon.core.clock import Clock
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.core.sent_files import NONE
from daemon.http.pool import HttpPool
from daemon.http.resolver import Resolver
from schema.errors import StorageError
from schema.ids import is_name
from schema.os_faults import typed_host_errors
from schema.rows import Address

# 409: a receiver that knows the key responds with this while it still works on the first delivery.
TRANSIENT: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Permanent server errors. Any other 5xx (507, a proxy's 52x) may be transient, and a retry costs less than a lost answer.
PERMANENT_5XX: Final = frozenset({501, 505})
_FILE_BYTES: Final = 32 * 1024**2  # of files in memory at once; a send needs about five times its own
_FILE_WAIT_S: Final = 3.0  # so that it and the send itself fit into delivery.send_timeout_s
_MAX_RESPONSE_BYTES: Final = 64 * 1024
_RESPONSE_S: Final = 2.0
_MAX_ID: Final = 200
_MAX_KEY: Final = 512
# Printable ASCII except the percent sign, so that different keys stay different when encoded.
_KEY_SAFE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


class WebhookOut:
    """Posts answers for the configured hooks. It delivers only inside `open()`; outside, every delivery fails as transient."""

    def __init__(self, name: str, settings: WebhookSettings, keys: Mapping[str, Keys], clock: Clock) -> None:
        self._name = name
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._pool: HttpPool | None = None
        self._room = FileRoom(_FILE_BYTES, _FILE_WAIT_S)
        self._agent = f"clawbus/{_version()}"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[ssl.SSLContext]:
        """Open the HTTP client, whose connections are reused until this context ends. Yield the trusted certificates."""
        # httpx logs every request's full URL at level info.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        # Load the machine's certificate store in a thread: it takes tens of milliseconds.
        trust = await anyio.to_thread.run_sync(ssl.create_default_context)
        settings = self._settings
        timeout = httpx.Timeout(
            connect=settings.connect_timeout_s,
            read=settings.read_timeout_s,
            write=settings.write_timeout_s,
            pool=None,  # no limit: the pool has a connection for each send, so none waits for one
        )
        async with HttpPool(self._name, timeout, trust, Resolver(self._clock)).open() as pool:
            self._pool = pool
            try:
                yield trust
            finally:
                self._pool = None

    async def deliver(self, message: Outgoing) -> Receipt:
        """Post one message. Return a receipt for a 2xx, or `not_wanted` if the hook asks for no answers.

        Raise TransientDeliveryError or PermanentDeliveryError otherwise.
        """
        hook_name = hook_of(message.address.platform_id)
        hook = self._settings.hooks.get(hook_name)
        if hook is not None and hook.reply == "none":
            return Receipt(not_wanted=True)
        url = hook.reply_url if hook is not None else None
        key = self._keys[hook_name].reply if hook is not None else None
        if hook is None or url is None:
            raise self._no_route(hook_name, hook)
        if self._pool is None:
            raise TransientDeliveryError(f"channel {self._name} is not running.")
        where = url.get_secret_value()
        if message.files == NONE:
            return await self._post(self._pool, where, hook_name, message, key, made_post(hook, message))
        async with self._room.hold(hook_name, sum(one.size for one in message.files.files)):
            try:
                with typed_host_errors("the answer's files cannot be read"):
                    post = await anyio.to_thread.run_sync(made_post, hook, message)
            except StorageError as error:
                raise TransientDeliveryError(str(error), hint=error.hint) from error
            return await self._post(self._pool, where, hook_name, message, key, post)

    async def _post(
        self, pool: HttpPool, url: str, hook_name: str, message: Outgoing, key: bytes | None, post: Post
    ) -> Receipt:
        async with pool.lease() as client:
            request = client.build_request("POST", url, content=post.body, headers=self._headers(message, key, post))
            return await self._send(client, request, f"{hook_name} ({request.url.host})")

    def shows_typing(self, address: Address) -> bool:
        """Return whether the place's hook asks for typing signs."""
        hook = self._settings.hooks.get(hook_of(address.platform_id))
        return hook is not None and hook.typing

    async def typing(self, sign: Typing) -> None:
        """Post a typing sign, once. Raise httpx.HTTPError when it fails."""
        name = hook_of(sign.address.platform_id)
        hook = self._settings.hooks[name]
        if self._pool is None or hook.reply_url is None:
            return
        body = encoded(
            {"type": "typing", "on": sign.on, "agent": sign.agent, "session": sign.session, "about": sign.about,
             "place": sign.address.platform_id, "thread": sign.address.thread_id}
        )  # fmt: skip
        headers = {"content-type": "application/json", "user-agent": self._agent}
        headers |= self._signature(self._keys[name].reply, body)
        url = hook.reply_url.get_secret_value()
        async with self._pool.lease() as client, client.stream("POST", url, content=body, headers=headers):
            pass  # the answer says nothing, and is not read

    async def _send(self, client: httpx.AsyncClient, request: httpx.Request, where: str) -> Receipt:
        """Make one attempt, with a timeout for each step and for the whole."""
        try:
            with anyio.fail_after(self._settings.total_timeout_s):
                response = await client.send(request, stream=True)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            raise PermanentDeliveryError(f"hook {where}: the request cannot be made: {_said(error)}.") from error
        except TimeoutError as error:
            seconds = self._settings.total_timeout_s
            raise TransientDeliveryError(f"hook {where}: no answer within {seconds:g} s.", in_doubt=True) from error
        except httpx.HTTPError as error:
            in_doubt = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            raise TransientDeliveryError(f"hook {where}: {_said(error)}.", in_doubt=in_doubt) from error
        try:
            if response.is_success:
                return Receipt(await _platform_id(response))
            raise self._failure(where, response)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    def _failure(self, where: str, response: httpx.Response) -> Exception:
        status = response.status_code
        text = f"hook {where}: answered {status}"
        wait = retry_after_s(response.headers.get("retry-after"), self._clock.now_ms())
        # Some receivers limit the rate with a 403 or a 413: a response that names a time to wait is not a refusal.
        named = wait is not None and status >= 400
        if named or status in TRANSIENT or (status >= 500 and status not in PERMANENT_5XX):
            return TransientDeliveryError(f"{text}.", retry_after_s=wait)
        hint = f"Look at the receiver, then requeue; channels.{self._name}.hooks holds its address."
        if 300 <= status < 400:
            text += ", a redirect, which is not followed"
            hint = "Set reply_url to the final address."
        return PermanentDeliveryError(f"{text}.", hint=hint)

    def _headers(self, message: Outgoing, key: bytes | None, post: Post) -> dict[str, str]:
        trace = {"traceparent": message.traceparent} if message.traceparent is not None else {}
        return {
            **trace,
            "content-type": post.content_type,
            "user-agent": self._agent,
            "accept-encoding": "identity",
            "idempotency-key": _header_key(message.key),
            **self._signature(key, post.body),
        }

    def _signature(self, key: bytes | None, body: bytes) -> dict[str, str]:
        """Return the headers that sign a body now. Each attempt needs new ones: a receiver may refuse an old signature."""
        if key is None:
            return {}
        timestamp = self._clock.now_ms() // 1000
        return {"x-clawbus-timestamp": str(timestamp), "x-clawbus-signature": sign_at(key, timestamp, body)}

    def _no_route(self, hook_name: str, hook: Hook | None) -> PermanentDeliveryError | TransientDeliveryError:
        """Return why the answer cannot go. A hook whose table is gone had one when the message came, and may have one again."""
        key = f"channels.{self._name}.hooks.{hook_name[:64]}"
        if hook is None and not is_name(hook_name):
            return PermanentDeliveryError(f"no hook can be named {hook_name[:64]!r}.")
        if hook is None:
            return TransientDeliveryError(
                f"there is no hook {hook_name!r}.", hint=f"Add a [{key}] table and restart; until then it is retried."
            )
        return PermanentDeliveryError(
            f"{key}.reply_url is not set, so its answers have nowhere to go.",
            hint=f'Set {key}.reply_url and reply_secret, restart and requeue; or set reply = "none" if answers are not wanted.',
        )


async def _platform_id(response: httpx.Response) -> str | None:
    """Return the receiver's own id for the message, if its response holds one. The 2xx is the receipt in any case."""
    given = response.headers.get("x-message-id")
    # Never decompress: a small body may become a very large one.
    plain = response.headers.get("content-encoding", "identity") == "identity"
    if given is None and plain and "json" in response.headers.get("content-type", ""):
        body = bytearray()
        try:
            with anyio.fail_after(_RESPONSE_S):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_RESPONSE_BYTES:
                        return None
            parsed: object = json.loads(body)
        except (httpx.HTTPError, TimeoutError, ValueError, RecursionError):
            return None
        if isinstance(parsed, dict):
            value = cast("dict[str, object]", parsed).get("id")
            given = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if given is None or not 0 < len(given) <= _MAX_ID or not given.isprintable():
        return None
    return given


def _said(error: Exception) -> str:
    text = str(error)[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _version() -> str:
    try:
        return version("clawbus")
    except PackageNotFoundError:
        return "unknown"


def _header_key(key: str) -> str:
    """Return the key as a header value: percent-encode anything but printable ASCII; replace a very long key by its digest."""
    written = quote(key, safe=_KEY_SAFE, errors="surrogatepass")
    return written if len(written) <= _MAX_KEY else hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
