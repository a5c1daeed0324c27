"""MCP over stdio: JSON-RPC 2.0, one message a line (https://modelcontextprotocol.io/specification, transports: stdio).

Each call runs in its own thread, because it may wait minutes for a person.
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
from pathlib import Path
from typing import IO, Any, Final, cast

from container_runner.tools.calls import Calls, ToolError

VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
MAX_LINE: Final = 4 * 1024**2


class Server:
    """Answers one client over an unbuffered output. `ready` is made when it has listed the tools."""

    def __init__(self, calls: Calls, ready: Path, output: io.FileIO) -> None:
        self._calls = calls
        self._ready = ready
        self._output = output
        self._writing = threading.Lock()

    def serve(self, source: IO[bytes]) -> None:
        """Read requests until the input ends. Calls that still wait then are given up with the process."""
        while line := source.readline(MAX_LINE):
            if line.strip():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message: object = json.loads(line)
        except (ValueError, RecursionError):
            self._fail(None, PARSE_ERROR, "the line is not JSON")
            return
        fields = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
        method, number = fields.get("method"), fields.get("id")
        if not isinstance(method, str):
            if "result" not in fields and "error" not in fields:
                self._fail(number, INVALID_REQUEST, "the message has no method")
            return
        if number is None:  # a notification: none of MCP's changes anything here
            return
        given = fields.get("params")
        params = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
        if method == "tools/call":
            threading.Thread(target=self._call, args=(number, params), daemon=True).start()
        else:
            self._answer(number, method, params)

    def _answer(self, number: object, method: str, params: dict[str, Any]) -> None:
        match method:
            case "initialize":
                wanted = params.get("protocolVersion")
                self._result(
                    number,
                    {
                        "protocolVersion": wanted if wanted in VERSIONS else VERSIONS[0],
                        "capabilities": {"tools": {"listChanged": False}},
                        "serverInfo": {"name": "clawbus", "version": "1"},
                    },
                )
            case "ping":
                self._result(number, {})
            case "tools/list":
                with contextlib.suppress(OSError):  # the runner then waits for the file until its time limit
                    self._ready.touch()
                self._result(number, {"tools": self._calls.listed()})
            case _:
                self._fail(number, METHOD_NOT_FOUND, f"there is no method {method[:100]}")

    def _call(self, number: object, params: dict[str, Any]) -> None:
        name, arguments = params.get("name"), params.get("arguments")
        if not isinstance(name, str) or not self._calls.has(name):
            self._fail(number, INVALID_PARAMS, f"there is no tool {str(name)[:100]}")
            return
        try:
            found = self._calls.call(name, cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else {})
            answer: dict[str, object] = {"ok": True, **found}
        except ToolError as error:
            answer = {"ok": False, "error": {"code": error.code, "message": str(error), "fix": error.fix}}
        text = json.dumps(answer, ensure_ascii=False)
        self._result(number, {"content": [{"type": "text", "text": text}], "isError": not answer["ok"]})

    def _result(self, number: object, result: dict[str, object]) -> None:
        self._write({"jsonrpc": "2.0", "id": number, "result": result})

    def _fail(self, number: object, code: int, message: str) -> None:
        self._write({"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}})

    def _write(self, message: dict[str, object]) -> None:
        with self._writing, contextlib.suppress(OSError, ValueError):  # the client has gone
            left = memoryview(json.dumps(message, ensure_ascii=True).encode() + b"\n")
            while left:
                left = left[self._output.write(left) :]
