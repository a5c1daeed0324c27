"""JSON-RPC 2.0 over an agent's standard input and output, one JSON object a line.

Nothing is read unless `serve` runs, so between two turns the agent's output waits in the pipe. What the agent sends is
bounded: a line's length, the requests under way. Lines that are not JSON-RPC are handed to `stray` and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from container_runner.providers.acp.errors import AcpTooLongError

MAX_LINE: Final = 16 * 1024 * 1024
_MAX_ASKED: Final = 256
_SHOWN: Final = 300
METHOD_NOT_FOUND: Final = -32601
INTERNAL_ERROR: Final = -32603

Params = Mapping[str, object]
_Spawn = Callable[[Callable[[], Coroutine[object, object, None]]], object]


class RpcError(Exception):
    """An error response: ours to the agent's request, or the agent's to ours."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class AgentGoneError(Exception):
    """The agent closed its output or no longer reads its input, so no response will come."""


class NotSentError(AgentGoneError):
    """The agent did not even get the message."""


class Handler(Protocol):
    """Takes the requests and notifications that the agent sends."""

    async def notified(self, method: str, params: Params) -> None:
        """Take a notification. It is called in the order of arrival, and the next line waits for it."""
        ...

    async def asked(self, method: str, params: Params) -> object:
        """Return the result of the agent's request, or raise RpcError. It may take long: other lines do not wait."""
        ...


@dataclass(slots=True)
class _Call:
    """A request of ours that waits for its response."""

    done: anyio.Event = field(default_factory=anyio.Event)
    result: object = None
    error: RpcError | None = None


class Peer:
    """One agent's end of the conversation. `stray` is called with each line that is not JSON-RPC, shortened."""

    def __init__(self, stdin: ByteSendStream, stdout: ByteReceiveStream, stray: Callable[[str], None]) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._stray = stray
        self._rest = bytearray()
        self._next = 0
        self._calls: dict[int, _Call] = {}
        self._asked = 0
        self._sending = anyio.Lock()
        self.gone = False
        self.too_long: AcpTooLongError | None = None

    async def request(self, method: str, params: Params) -> object:
        """Send a request and return its result. Raise RpcError or AgentGoneError. Another task must run `serve`."""
        self._next += 1
        number, call = self._next, _Call()
        self._calls[number] = call
        try:
            await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            if not self.gone:
                await call.done.wait()
        finally:
            self._calls.pop(number, None)  # a response that comes later is ignored
        if call.error is not None:
            raise call.error
        if not call.done.is_set() or self.gone:
            raise AgentGoneError
        return call.result

    async def notify(self, method: str, params: Params) -> None:
        """Send a notification. Raise NotSentError."""
        await self._send({"jsonrpc": "2.0", "method": method, "params": params})

    async def serve(self, handler: Handler) -> None:
        """Read and dispatch until the agent closes its output. Then every open request raises AgentGoneError."""
        async with anyio.create_task_group() as group:
            try:
                while not self.gone:
                    for line in self._lines(await self._stdout.receive()):
                        await self._take(line, handler, group.start_soon)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self.close()
            except AcpTooLongError as error:
                self.too_long = error
                self.close()
            group.cancel_scope.cancel()

    def close(self) -> None:
        """Fail every open request with AgentGoneError: no response will come."""
        self.gone = True
        for call in self._calls.values():
            call.done.set()

    def _lines(self, chunk: bytes) -> list[bytes]:
        """Return the lines that this chunk completes. Raise AcpTooLongError."""
        self._rest += chunk
        if b"\n" not in chunk:
            if len(self._rest) > MAX_LINE:
                raise AcpTooLongError(f"The agent sent a line of more than {MAX_LINE} bytes.")
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return lines

    async def _take(self, line: bytes, handler: Handler, spawn: _Spawn) -> None:
        if not line.strip():
            return
        message = _parse(line)
        method, number = message.get("method"), message.get("id")
        if isinstance(method, str):
            params = _mapping(message.get("params"))
            if "id" not in message:
                await handler.notified(method, params)
            else:
                self._begin_answer(number, method, params, handler, spawn)
        elif isinstance(number, int) and ("result" in message or "error" in message):
            self._resolve(number, message)
        else:
            self._stray(line[:_SHOWN].decode("utf-8", errors="replace"))

    def _begin_answer(
        self,
        number: object,
        method: str,
        params: Params,
        handler: Handler,
        spawn: _Spawn,
    ) -> None:
        if self._asked >= _MAX_ASKED:
            raise AcpTooLongError(f"The agent has {_MAX_ASKED} requests under way at once.")
        self._asked += 1

        async def answer() -> None:
            try:
                await self._answer(number, method, params, handler)
            finally:
                self._asked -= 1

        spawn(answer)

    async def _answer(self, number: object, method: str, params: Params, handler: Handler) -> None:
        reply: dict[str, object] = {"jsonrpc": "2.0", "id": number}
        try:
            reply["result"] = await handler.asked(method, params)
        except RpcError as error:
            reply["error"] = {"code": error.code, "message": str(error)}
        try:
            await self._send(reply)
        except AgentGoneError:
            return  # callers that wait for this agent get the error from their own requests

    def _resolve(self, number: int, message: Params) -> None:
        call = self._calls.get(number)
        if call is None:
            return
        if "error" in message:
            error = _mapping(message["error"])
            code, text = error.get("code"), error.get("message")
            call.error = RpcError(
                code if isinstance(code, int) else INTERNAL_ERROR,
                text if isinstance(text, str) else "no reason given",
                error.get("data"),
            )
        else:
            call.result = message["result"]
        call.done.set()

    async def _send(self, message: Params) -> None:
        """Write one line. Two tasks may send, and a line must not be torn: so a cancellation waits for its end."""
        line = json.dumps(message, ensure_ascii=True).encode() + b"\n"
        try:
            async with self._sending:
                await self._stdin.send(line)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError) as error:
            raise NotSentError from error


def _parse(line: bytes) -> Params:
    """Return the JSON object in this line, or an empty one."""
    try:
        return _mapping(json.loads(line))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: object) -> Params:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
