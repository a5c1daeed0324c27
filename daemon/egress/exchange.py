"""Carries out requests at the gate: checks each one, adds the secret, and passes both bodies on as they arrive."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import anyio
import h11
import httpcore

from daemon.core.egress_usage import Usage
from daemon.egress.client import Client, ClientGoneError
from daemon.egress.headers import request_headers, response_headers
from daemon.egress.ledger import Ledger
from daemon.egress.refusals import BadRequestError, EgressRefusal, HostTroubledError, PrivateTargetError, UpstreamError
from daemon.egress.rules import Rules, Target
from daemon.egress.secrets import Secrets
from daemon.egress.upstream import Upstream, as_refusals
from daemon.egress.usage import Meter, is_model_call
from schema.frozen import frozen

_PIECE: Final = 64 * 1024
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


@dataclass(slots=True)
class Outcome:
    """The result of a request. `code` is the refusal's error code, or None where the target answered in full, with any status.

    `admitted`: the budget allowed the request. `usage`: the tokens that it cost.
    """

    method: str
    target: Target | None = None
    status: int = 0
    code: str | None = None
    error: str = ""
    admitted: bool = False
    usage: Usage = field(default_factory=Usage)


class Exchanges:
    """Carries out requests. Built once."""

    def __init__(self, rules: Rules, upstream: Upstream, ledger: Ledger, secrets: Secrets, *, silence_s: float) -> None:
        self._rules = rules
        self._secrets = secrets
        self._ledger = ledger
        self._upstream = upstream
        self._silence_s = silence_s

    async def carry_out(self, agent: str, client: Client, request: h11.Request, outcome: Outcome) -> bool:
        """Carry out one request and fill in `outcome`. Return whether the connection can carry another request.

        Send a refusal to the client; do not raise it. Raise ClientGoneError when the container hangs up before the answer ends.
        """
        api = "plain"
        try:
            target = outcome.target = self._target(agent, request)
            if target.route is not None:
                api = target.route.api
            self._ledger.admit(agent, target.name)
            outcome.admitted = True
            if request.method == b"CONNECT":
                return await self._tunnel(client, target, outcome)
            return await self._while_wanted(client, request, target, outcome)
        except EgressRefusal as refusal:
            outcome.code, outcome.error = refusal.code, str(refusal)
            outcome.status = outcome.status or refusal.status
            await client.refuse(refusal, api)
            return False

    def _target(self, agent: str, request: h11.Request) -> Target:
        if request.method == b"CONNECT":
            return self._rules.tunnel(agent, request.target)
        if request.method == b"TRACE":
            raise BadRequestError("TRACE would show the container what the gate adds.")
        if request.target.startswith(b"/"):
            return self._rules.routed(agent, request.target)
        return self._rules.proxied(agent, request.target)

    async def _while_wanted(self, client: Client, request: h11.Request, target: Target, outcome: Outcome) -> bool:
        """Pass the request on. If the container hangs up, drop the connection to the target, so that it stops working, too."""
        with client.watched():
            return await self._pass_on(client, request, target, outcome)
        raise ClientGoneError  # the block was cancelled

    async def _pass_on(self, client: Client, request: h11.Request, target: Target, outcome: Outcome) -> bool:
        secret = None
        if target.route is not None and target.route.secret is not None:
            secret = await self._secrets.header(target.route.secret)
        headers = request_headers(request.headers, target, secret)
        async with aclosing(client.body()) as body:
            framed = any(name in _FRAMING for name, _ in request.headers)
            if not framed:
                async for _ in body:
                    pass
            costs = _costs_tokens(request, target)
            meter = Meter(stream=False) if costs else None  # the answer's head decides below which meter it needs
            whole = False
            try:
                async with self._upstream.request(
                    target, request.method, headers, body if framed else None
                ) as response:
                    outcome.status = response.status
                    if meter is not None:
                        meter = _meter_of(response)
                    await client.begin(response.status, response_headers(response.headers, target, secret))
                    with as_refusals(f"{target.host}:{target.port}"):
                        async for piece in response.aiter_stream():
                            if meter is not None:
                                meter.feed(piece)
                            await client.piece(piece)
                    whole = True
            except (UpstreamError, PrivateTargetError, HostTroubledError):
                meter = meter if outcome.status else None  # a target that sent no head is taken to have done no work
                raise
            finally:
                if meter is not None:
                    outcome.usage = meter.result(request_bytes=client.received, whole=whole)
        return await client.end()

    async def _tunnel(self, client: Client, target: Target, outcome: Outcome) -> bool:
        """Copy bytes between container and target until one side ends, or both are silent for `silence_s`. Do not look at them."""
        stream = await self._upstream.connect(target)
        try:
            ahead = await client.switch()  # what the client has already sent into the tunnel
            outcome.status = 200
            with anyio.CancelScope(deadline=anyio.current_time() + self._silence_s) as silence:
                async with anyio.create_task_group() as tasks:
                    tunnel = _Tunnel(client, stream, silence, self._silence_s, tasks.cancel_scope)
                    tasks.start_soon(tunnel.outwards, ahead)
                    tasks.start_soon(tunnel.inwards)
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
        return False


@frozen
class _Tunnel:
    """Both directions of a tunnel. `silence` is the scope that ends it at a deadline; each copied piece postpones that."""

    client: Client
    stream: httpcore.AsyncNetworkStream
    silence: anyio.CancelScope
    silence_s: float
    both: anyio.CancelScope

    async def outwards(self, ahead: bytes) -> None:
        """Copy from the container to the target."""
        piece = ahead or await self.client.receive()
        try:
            while piece:
                self._postpone()
                await self.stream.write(piece, self.silence_s)
                piece = await self.client.receive()
        except (httpcore.NetworkError, httpcore.TimeoutException):
            pass
        self.both.cancel()

    async def inwards(self) -> None:
        """Copy from the target to the container."""
        try:
            while piece := await self.stream.read(_PIECE, None):
                self._postpone()
                await self.client.send(piece)
        except (httpcore.NetworkError, httpcore.TimeoutException, ClientGoneError):
            pass
        self.both.cancel()

    def _postpone(self) -> None:
        self.silence.deadline = anyio.current_time() + self.silence_s


def _costs_tokens(request: h11.Request, target: Target) -> bool:
    """Return whether the request asks a model for an answer."""
    path = target.path.partition(b"?")[0].decode("ascii", "replace")
    return target.route is not None and target.route.api != "plain" and is_model_call(request.method.decode(), path)


def _meter_of(response: httpcore.Response) -> Meter | None:
    """Return the meter that counts an answer's tokens. None for an error or a redirect, which cost nothing."""
    if response.status >= 300:
        return None
    kinds = [value for name, value in response.headers if name.lower() == b"content-type"]
    return Meter(stream=any(b"text/event-stream" in kind for kind in kinds))
