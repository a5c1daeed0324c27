"""The operator API: HTTP routes that parse requests and call `Operations`. It makes no decisions of its own.

Every response is JSON: {ok: true, result} or {ok: false, error: {code, message}, fix}. No exception reaches the client as
plain text or a traceback. A long poll is bounded, and ends when the client disconnects or the daemon stops.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

import anyio
import structlog
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daemon.api.operations import Operations
from daemon.channels.protocol import Incoming, PlaceMessage
from daemon.core.commands import VERBS, AnyVerb
from daemon.core.errors import BodyTooLargeError, RequestRefusedError
from daemon.core.routing import PlaceEvent
from daemon.http.asgi import CLOSING
from schema.errors import ClawbusError, ReadDeadlineError, ReadRaceError, StorageError
from schema.ids import check_name, check_session
from schema.os_faults import as_host_error
from schema.rows import Address, Kind

MAX_WAIT_S: Final = 60.0  # one long poll; to wait longer, the client repeats the request
MAX_LIMIT: Final = 1000
LOCAL: Final = "local"
DEFAULT_BODY_BYTES: Final = 4 * 1024 * 1024

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
        "ID_CONFLICT": 409,
        "CURSOR_AHEAD": 409,
        "AMBIGUOUS_ID": 409,
        "NO_ANSWER": 409,
        "NOT_A_DEAD_LETTER": 409,
        "MESSAGE_FINISHED": 409,
        "MESSAGE_RUNNING": 409,
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

_T = TypeVar("_T")
Handler = Callable[[Request], Awaitable[object]]


class _AddressBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    channel_type: str
    platform_id: str
    thread_id: str | None = None


class _MessageBody(BaseModel):
    """The body of POST /v1/messages. `process_after` and `not_after` are epoch milliseconds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    agent: str
    session: str
    content: Any
    id: str | None = None
    kind: str = Kind.CHAT.value
    address: _AddressBody | None = None
    trigger: bool = True
    on_wake: bool = False
    process_after: int | None = None
    recurrence: str | None = None
    create_session: bool = True
    not_after: int | None = None


class _EventBody(BaseModel):
    """The body of POST /v1/events: something that happened at a place of the local channel."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    place: str
    text: str
    thread: str | None = None
    sender: str | None = None
    direct: bool = False
    mention: bool = False
    not_after: int | None = None


def build_api(
    operations: Operations, more: Sequence[BaseRoute] = (), *, max_body_bytes: int = DEFAULT_BODY_BYTES
) -> Starlette:
    """Build the ASGI app. `max_body_bytes` limits a request's body; the ingress has its own limit for the content.

    `more` are other routes on the same socket: telemetry and the event stream.
    """
    api = _Api(operations, max_body_bytes)

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, enveloped(handler), methods=[method])

    return Starlette(
        routes=[
            route("/v1/messages", api.accept, "POST"),
            route("/v1/events", api.event, "POST"),
            route("/v1/replies", api.reply),
            route("/v1/mailbox/{name}", api.mailbox),
            route("/v1/status", api.status),
            route("/v1/live", api.live),
            route("/v1/sessions", api.sessions),
            # A name may hold slashes, so the routes that end in a verb come first.
            *(route(verb.route, partial(api.execute, TypeAdapter(verb)), "POST") for verb in VERBS),
            route("/v1/sessions/{agent}/{session:path}", api.session),
            route("/v1/dead", api.dead),
            route("/v1/dead/show", api.dead_show),
            *more,
        ],
        exception_handlers={HTTPException: _http_error},
    )


class _Api:
    def __init__(self, operations: Operations, max_body_bytes: int) -> None:
        self._operations = operations
        self._max_body_bytes = max_body_bytes

    async def accept(self, request: Request) -> object:
        body = parse_body(_MessageBody, await read_body(request, self._max_body_bytes))
        address = body.address
        accepted = await self._operations.accept(
            Incoming(
                agent=body.agent,
                session=body.session,
                content=body.content,
                message_id=body.id,
                kind=body.kind,
                address=Address(address.channel_type, address.platform_id, address.thread_id) if address else None,
                trigger=body.trigger,
                on_wake=body.on_wake,
                process_after=body.process_after,
                recurrence=body.recurrence,
                create_session=body.create_session,
                traceparent=request.headers.get("traceparent"),
                not_after=body.not_after,
            )
        )
        return asdict(accepted)

    async def event(self, request: Request) -> object:
        body = parse_body(_EventBody, await read_body(request, self._max_body_bytes))
        event = PlaceEvent(
            LOCAL, body.place, body.id, body.text, thread=body.thread, sender=body.sender, direct=body.direct,
            mention=body.mention,
        )  # fmt: skip
        content = {"text": body.text, "sender": body.sender} if body.sender is not None else {"text": body.text}
        address = Address(LOCAL, body.place, body.thread)
        routed = await self._operations.event(PlaceMessage(event, content, address, not_after=body.not_after))
        return {
            "messages": [asdict(one) for one in routed.accepted],
            "refused": [
                {
                    "agent": one.agent or None,
                    "route": one.route or None,
                    "reason": one.reason.value,
                    "why": one.why,
                    "code": one.code,
                }
                for one in routed.refusals
            ],
        }

    async def reply(self, request: Request) -> object:
        agent, session = _named(request.query_params)
        message_id = request.query_params.get("message_id")
        if not message_id:
            raise RequestRefusedError("message_id is missing.")
        wait_s = _seconds(request, "wait_s")
        after = _integer(request, "after", 0, 0, 2**63 - 1) if "after" in request.query_params else None
        entry = await _until_gone(
            request, lambda: self._operations.wait_reply(agent, session, message_id, wait_s, after)
        )
        return {"entry": asdict(entry) if entry is not None else None}

    async def mailbox(self, request: Request) -> object:
        name = request.path_params["name"]
        after = _integer(request, "after", 0, 0, 2**63 - 1)
        limit = _integer(request, "limit", 100, 1, MAX_LIMIT)
        wait_s = _seconds(request, "wait_s")
        found = await _until_gone(request, lambda: self._operations.read_mailbox(name, after, limit, wait_s))
        entries = found or []
        return {
            "mailbox": name,
            "entries": [asdict(entry) for entry in entries],
            "next_after": entries[-1].cursor if entries else after,
        }

    async def status(self, _: Request) -> object:
        return await self._operations.status()

    async def live(self, _: Request) -> object:
        await self._operations.check_holders()
        return self._operations.live()

    async def sessions(self, _: Request) -> object:
        return {"sessions": await self._operations.sessions()}

    async def session(self, request: Request) -> object:
        return await self._operations.session(*_named(request.path_params))

    async def execute(self, adapter: TypeAdapter[AnyVerb], request: Request) -> object:
        """Execute a verb. Its values come from the body; names also from the path, operator and reason from the query."""
        body = await read_body(request, self._max_body_bytes)
        values: dict[str, Any] = {**request.query_params, **request.path_params}
        return await self._operations.execute(parse_verb(adapter, values, body))

    async def dead(self, request: Request) -> object:
        query = request.query_params
        session = _named(query) if "agent" in query or "session" in query else None
        limit = _integer(request, "limit", 100, 1, MAX_LIMIT)
        order = query.get("order", "newest")
        if order not in ("newest", "oldest"):
            raise RequestRefusedError(f"order must be newest or oldest, not {order[:40]!r}.")
        return await self._operations.dead_letters(
            session, query.get("id"), limit, code=query.get("code"), oldest_first=order == "oldest"
        )

    async def dead_show(self, request: Request) -> object:
        letter_id = request.query_params.get("id")
        if not letter_id:
            raise RequestRefusedError("id is missing.")
        return await self._operations.dead_letter(*_named(request.query_params), letter_id)


def enveloped(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Wrap a handler, so that its result or its error becomes an envelope."""

    async def endpoint(request: Request) -> Response:
        try:
            return _json(200, {"ok": True, "result": await handler(request)})
        except ClawbusError as error:
            return _refused(error)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - the last handler: traceback to the log, a code to the client
            host = as_host_error(error, "this request could not be answered")
            if host is not None:
                structlog.get_logger("control").warning(
                    "control_request_refused", path=request.url.path, code=host.code, error=str(host), hint=host.hint
                )
                return _refused(host)
            structlog.get_logger("control").exception("control_request_failed", path=request.url.path)
            return _refusal(500, "INTERNAL", "the daemon failed at this request.", ClawbusError.default_hint)

    return endpoint


def status_of(error: ClawbusError) -> int:
    """Return the HTTP status of a refusal. An error that names its cause is never a 500."""
    if error.code in _STATUS:
        return _STATUS[error.code]
    if isinstance(error, StorageError | ReadRaceError | ReadDeadlineError):
        return 503
    return 500 if error.code == ClawbusError.code else 409


def _refused(error: ClawbusError) -> Response:
    return _refusal(status_of(error), error.code, str(error), error.hint)


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = {404: "no such route.", 405: "this route has another method."}.get(status, "refused.")
    return _refusal(status, "REQUEST_REFUSED", message, "Use the clawbus command of the daemon's own version.")


def _refusal(status: int, code: str, message: str, fix: str) -> Response:
    return _json(status, {"ok": False, "error": {"code": code, "message": message}, "fix": fix})


def _json(status: int, body: object) -> Response:
    # ASCII, because content may hold lone surrogates that UTF-8 cannot.
    return Response(json.dumps(body, separators=(",", ":"), default=str), status, media_type="application/json")


async def _until_gone(request: Request, work: Callable[[], Awaitable[_T]]) -> _T | None:
    """Return the result of `work`, or None as soon as the client disconnects or the daemon is stopping."""
    result: _T | None = None
    refusal: ClawbusError | None = None
    closing = request.scope.get(CLOSING)

    async def watch_client(scope: anyio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def watch_daemon(scope: anyio.CancelScope, event: anyio.Event) -> None:
        await event.wait()
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch_client, group.cancel_scope)
        if isinstance(closing, anyio.Event):
            group.start_soon(watch_daemon, group.cancel_scope, closing)
        try:
            result = await work()
        except ClawbusError as error:
            refusal = error  # raised below: a task group would wrap it
        group.cancel_scope.cancel()
    if refusal is not None:
        raise refusal
    return result


async def read_body(request: Request, limit: int) -> bytes:
    """Return the request's body. Raise BodyTooLargeError if it is over `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLargeError(f"the request's body is over {limit} bytes.")
    return bytes(body)


_Model = TypeVar("_Model", bound=BaseModel)


def parse_body(model: type[_Model], body: bytes) -> _Model:
    """Parse JSON into the model. Raise RequestRefusedError, which names each invalid field and its fault."""
    try:
        return model.model_validate(json.loads(body))
    except ValidationError as error:
        raise _wrong(error) from error
    except (ValueError, RecursionError) as error:
        raise RequestRefusedError(f"the request's body is not JSON: {error}") from error


def parse_verb(adapter: TypeAdapter[AnyVerb], values: Mapping[str, Any], body: bytes) -> AnyVerb:
    """Build a verb from a request's values and body. Raise RequestRefusedError, or what the verb's own checks raise."""
    try:
        given: object = json.loads(body or b"{}")
        if not isinstance(given, dict):
            raise RequestRefusedError("the request's body is not a JSON object.")
        # Encode as JSON again: in strict mode, pydantic builds a dataclass from JSON only.
        return adapter.validate_json(json.dumps({**cast("dict[str, Any]", given), **values}))
    except ValidationError as error:
        raise _wrong(error) from error
    except (ValueError, RecursionError) as error:
        raise RequestRefusedError(f"the request's body is not JSON: {error}") from error


def _wrong(error: ValidationError) -> RequestRefusedError:
    faults = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors())
    return RequestRefusedError(f"the request is wrong: {faults}")


def _named(values: Mapping[str, str]) -> tuple[str, str]:
    agent, session = values.get("agent", ""), values.get("session", "")
    return check_name("agent", agent), check_session(session)


def _integer(request: Request, name: str, default: int, lowest: int, highest: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = int(text[:20])
    except ValueError as error:
        raise RequestRefusedError(f"{name} must be a whole number.") from error
    if not lowest <= value <= highest:
        raise RequestRefusedError(f"{name} must be between {lowest} and {highest}.")
    return value


def _seconds(request: Request, name: str) -> float:
    text = request.query_params.get(name, "0")
    try:
        value = float(text)
    except ValueError as error:
        raise RequestRefusedError(f"{name} must be a number of seconds.") from error
    # NaN compares false with everything, so it becomes 0.
    return min(value, MAX_WAIT_S) if value >= 0 else 0.0
