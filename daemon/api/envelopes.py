"""Turns a handler's result or error into the control API's response: {ok: true, result} or {ok: false, error, fix}.

No exception reaches the client as plain text or a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from schema.errors import ClawbusError, ReadDeadlineError, ReadRaceError, StorageError
from schema.os_faults import as_host_error

_STATUS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "REQUEST_REFUSED": 400,
        "CONTENT_INVALID": 400,
        "MESSAGE_INVALID": 400,
        "INVALID_NAME": 400,
        "UNKNOWN_AGENT": 404,
        "UNKNOWN_SESSION": 404,
        "UNKNOWN_MESSAGE": 404,
        "UNKNOWN_QUESTION": 404,
        "QUESTION_CLOSED": 409,
        "ANSWER_REFUSED": 400,
        "ANSWER_FORBIDDEN": 403,
        "ID_CONFLICT": 409,
        "CURSOR_AHEAD": 409,
        "AMBIGUOUS_ID": 409,
        "NO_ANSWER": 409,
        "NOT_A_DEAD_LETTER": 409,
        "MESSAGE_FINISHED": 409,
        "RESET_WOULD_LOSE": 409,
        "DEPLOY_RUNNING": 409,
        "DEPLOY_COOLDOWN": 409,
        "DEPLOY_STATE": 409,
        "UNKNOWN_RELEASE": 404,
        "RESTORE_REFUSED": 409,
        "STALE_ALIVE": 409,
        "STALE_CHANGED": 409,
        "STALE_INCONSISTENT": 409,
        "STALE_SCOPE_INVALID": 400,
        "STALE_SCOPE_TOO_BROAD": 409,
        "STALE_TOO_YOUNG": 400,
        "ROW_GONE": 410,
        "BODY_TOO_LARGE": 413,
        "RUNTIME_UNAVAILABLE": 503,
        "FILE_BUSY": 503,
        "EXIT_NOT_CONFIRMED": 504,
    }
)
Handler = Callable[[Request], Awaitable[object]]


def enveloped(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Wrap a handler, so that its result or its error becomes an envelope. A `Response` that it returns is sent as it is."""

    async def endpoint(request: Request) -> Response:
        try:
            status, body = await _envelope(request, handler)
        except ClientDisconnect:
            return Response(status_code=499)
        result = body.get("result")
        return result if isinstance(result, Response) else _json(status, body)

    return endpoint


class TwoEnvelopes(Response):
    """A response of two lines, each an envelope: `first` is sent at once, then what `rest` returns or raises."""

    def __init__(self, request: Request, first: object, rest: Handler) -> None:
        super().__init__(media_type="application/x-ndjson")
        self._request = request
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        first = _dump({"ok": True, "result": self._first}) + b"\n"
        await send({"type": "http.response.body", "body": first, "more_body": True})
        _, body = await _envelope(self._request, self._rest)
        await send({"type": "http.response.body", "body": _dump(body) + b"\n"})


async def _envelope(request: Request, handler: Handler) -> tuple[int, dict[str, Any]]:
    """Return the status and the envelope of a handler's result or error. Raise ClientDisconnect."""
    try:
        return 200, {"ok": True, "result": await handler(request)}
    except ClawbusError as error:
        return _refused(error)
    except ClientDisconnect:
        raise
    except Exception as error:  # noqa: BLE001 - the last handler: the log gets the traceback, the client a code
        host = as_host_error(error, "this request could not be answered")
        if host is not None:
            structlog.get_logger("control").warning(
                "control_request_refused", path=request.url.path, code=host.code, error=str(host), hint=host.hint
            )
            return _refused(host)
        structlog.get_logger("control").exception("control_request_failed", path=request.url.path)
        return _refusal(500, "INTERNAL", "the daemon failed to handle this request.", ClawbusError.default_hint)


def status_of(error: ClawbusError) -> int:
    """Return the HTTP status for an error. Only an error without a code of its own is a 500."""
    if error.code in _STATUS:
        return _STATUS[error.code]
    if isinstance(error, StorageError | ReadRaceError | ReadDeadlineError):
        return 503
    return 500 if error.code == ClawbusError.code else 409


async def http_error(_: Request, error: Exception) -> Response:
    """Answer a request that no route accepts."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = {404: "no such route.", 405: "this route does not accept this method."}.get(status, "refused.")
    return _json(*_refusal(status, "REQUEST_REFUSED", message, "Use the clawbus command of the daemon's own version."))


def _refused(error: ClawbusError) -> tuple[int, dict[str, Any]]:
    return _refusal(status_of(error), error.code, str(error), error.hint)


def _refusal(status: int, code: str, message: str, fix: str) -> tuple[int, dict[str, Any]]:
    return status, {"ok": False, "error": {"code": code, "message": message}, "fix": fix}


def _json(status: int, body: object) -> Response:
    return Response(_dump(body), status, media_type="application/json")


def _dump(body: object) -> bytes:
    # ASCII, because content may hold lone surrogates, which UTF-8 cannot encode.
    return json.dumps(body, separators=(",", ":"), default=str).encode()
