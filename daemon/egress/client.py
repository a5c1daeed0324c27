"""One connection of a container, from the gate's side: parses requests with h11 and writes responses. Everything is hostile.

Bytes go from the socket to the parser and from the target to the socket; nothing is held but the piece that is passed on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final

import anyio
import h11

from daemon.egress.headers import Headers
from daemon.egress.refusals import (
    BadRequestError,
    BudgetExceededError,
    EgressRefusal,
    HeadTooLargeError,
    RequestTooLargeError,
    RequestTooSlowError,
    UpstreamError,
    error_body,
)

_MAX_HEAD: Final = 64 * 1024
_PIECE: Final = 64 * 1024
_IDLE_S: Final = 75.0  # seconds without a byte between two requests
_HEAD_S: Final = 15.0  # seconds from a request head's first byte to its last
_PIECE_S: Final = 60.0  # seconds for the next piece of a body, in either direction
_BODY_S: Final = 900.0  # seconds for a whole request body


class ClientGoneError(Exception):
    """The container closed the connection, or does not read."""


class Client:
    """Owns the socket, which is closed by `close`. `max_body` bounds a request's body, in bytes."""

    def __init__(self, sock: socket.socket, max_body: int) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._max_body = max_body
        self.received = 0  # bytes of the current request's body
        self.sent = 0  # bytes of the current response's body
        self.whole = False  # the current request was read to its end
        self.answering = False  # the current response has begun
        self._bodiless = False  # the current request is a HEAD, whose answer has no body
        self._gone: Callable[[], None] | None = None  # what ends the work on the current request

    async def request(self) -> h11.Request | None:
        """Return the next request; None when the container has no more. Raise EgressRefusal or ClientGoneError."""
        self.received = self.sent = 0
        self.whole = False
        self.answering = self._bodiless = False
        event = self._next()
        with anyio.move_on_after(_IDLE_S) as idle:
            while event is h11.NEED_DATA and not self._parser.trailing_data[0]:
                if not await self._feed():
                    return None
                event = self._next()
        if idle.cancelled_caught:
            return None
        with anyio.move_on_after(_HEAD_S) as slow:
            while event is h11.NEED_DATA:
                if not await self._feed():
                    raise ClientGoneError
                event = self._next()
        if slow.cancelled_caught:
            raise RequestTooSlowError(f"the request's head did not come within {_HEAD_S:g} s.")
        if isinstance(event, h11.Request):
            self._bodiless = event.method == b"HEAD"
            _check_framing(event)
            return event
        return None

    async def body(self) -> AsyncGenerator[bytes]:
        """Yield the request's body piece by piece, as it comes. Raise EgressRefusal or ClientGoneError."""
        if self._parser.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        deadline = anyio.current_time() + _BODY_S
        while True:
            event = self._next()
            if event is h11.NEED_DATA:
                with anyio.move_on_after(min(_PIECE_S, deadline - anyio.current_time())) as slow:
                    if not await self._feed():
                        raise ClientGoneError
                if slow.cancelled_caught:
                    raise RequestTooSlowError("the request's body came too slowly.")
            elif isinstance(event, h11.Data):
                self.received += len(event.data)
                if self.received > self._max_body:
                    raise RequestTooLargeError(f"the body has more than {self._max_body} bytes.")
                yield event.data
            else:
                self.whole = True
                if self._gone is not None:
                    self._loop.add_reader(self._socket, self._look)
                return

    @contextmanager
    def watched(self) -> Generator[None]:
        """Cancel the block when the container closes its side after a whole request."""
        with anyio.CancelScope() as scope:
            self._gone = scope.cancel
            try:
                yield
            finally:
                self._gone = None
                self._loop.remove_reader(self._socket)

    def _look(self) -> None:
        """Return whether the readable bytes are the end of the stream, or a request that was sent ahead."""
        self._loop.remove_reader(self._socket)
        try:
            ahead = self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            ahead = b"?"
        except OSError:
            ahead = b""
        if not ahead and self._gone is not None:
            self._gone()

    async def begin(self, status: int, headers: Headers) -> None:
        """Write the response's head. Without Content-Length it gets chunks, so that a cut is seen as one."""
        self.answering = True
        try:
            response = h11.Response(status_code=status, headers=headers)
        except h11.LocalProtocolError as error:
            self.answering = False
            raise UpstreamError(f"the target's answer is not HTTP: {error}.") from error
        await self._send(response)

    async def piece(self, data: bytes) -> None:
        """Write a piece of the response's body."""
        self.sent += len(data)
        await self._send(h11.Data(data=data))

    async def end(self) -> bool:
        """Write the response's end. Return whether the connection can carry another request."""
        await self._send(h11.EndOfMessage())
        if self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE:
            self._parser.start_next_cycle()
            return True
        return False

    async def refuse(self, refusal: EgressRefusal, api: str = "plain") -> None:
        """Answer with the refusal and give the connection up: what is left of the request is not read."""
        if self.answering or self._parser.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        body = error_body(refusal, api)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-clawbus-code", refusal.code.encode()),
        ]
        if isinstance(refusal, BudgetExceededError):
            # The providers' own clients obey the second header; others would try again for minutes.
            headers += [(b"retry-after", str(refusal.retry_after_s).encode()), (b"x-should-retry", b"false")]
        elif refusal.status == 503:
            headers.append((b"retry-after", b"5"))
        await self.begin(refusal.status, headers)
        if not self._bodiless:
            await self.piece(body)
        await self._send(h11.EndOfMessage())

    async def switch(self) -> bytes:
        """Accept a CONNECT. Return what the container sent behind it already."""
        self.answering = True
        self._next()  # the end of a request that has no body
        self.whole = True
        await self._send(h11.Response(status_code=200, headers=[], reason=b"Connection Established"))
        return bytes(self._parser.trailing_data[0])

    async def receive(self) -> bytes:
        """Return bytes of a tunnel; empty at the end."""
        try:
            data = await self._loop.sock_recv(self._socket, _PIECE)
        except OSError:
            return b""
        self.received += len(data)
        return data

    async def send(self, data: bytes) -> None:
        """Write bytes of a tunnel. Raise ClientGoneError."""
        self.sent += len(data)
        await self._write([data])

    async def linger(self) -> None:
        """Tell the container that nothing follows, and read what it still sends for a moment.

        Closed with unread bytes in it, the socket would lose the response that says why.
        """
        with anyio.move_on_after(1.0):
            try:
                self._socket.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(self._socket, _PIECE):
                    pass
            except OSError:
                return

    def close(self) -> None:
        """Close the socket. A response that is not complete is seen as cut."""
        self._socket.close()

    def _next(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        try:
            return self._parser.next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                raise HeadTooLargeError(f"the request's head has more than {_MAX_HEAD} bytes.") from error
            raise BadRequestError(f"this is not HTTP/1.1: {str(error)[:120]}.") from error

    async def _feed(self) -> bool:
        """Read once. Return False at the end of the container's side."""
        try:
            data = await self._loop.sock_recv(self._socket, _PIECE)
        except OSError as error:
            raise ClientGoneError from error
        if data:
            self._parser.receive_data(data)
        return bool(data)

    async def _send(self, event: h11.Event) -> None:
        pieces = self._parser.send_with_data_passthrough(event)
        if pieces:
            await self._write(pieces)

    async def _write(self, pieces: Sequence[bytes]) -> None:
        total = sum(len(piece) for piece in pieces)
        try:
            try:
                done = self._socket.sendmsg(pieces)  # the kernel gathers them: no copy of ours
            except BlockingIOError:
                done = 0
            if done < total:
                with anyio.fail_after(_PIECE_S):
                    await self._loop.sock_sendall(self._socket, memoryview(b"".join(pieces))[done:])
        except (OSError, TimeoutError) as error:
            raise ClientGoneError from error


def _check_framing(request: h11.Request) -> None:
    """Refuse what two parsers may frame differently (RFC 9112, section 6.3), although h11 would take it."""
    if request.http_version not in {b"1.0", b"1.1"}:
        raise BadRequestError("this is not HTTP/1.1.")
    names = [name for name, _ in request.headers]
    chunked = b"transfer-encoding" in names
    if chunked and (b"content-length" in names or request.http_version < b"1.1"):
        raise BadRequestError("the request frames its body in two ways.")
    if request.method == b"CONNECT" and (chunked or b"content-length" in names):
        raise BadRequestError("CONNECT has no body.")
