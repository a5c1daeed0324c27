"""Reads requests of the control API: bodies, query values, and whether the client is still there. Decides nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeVar, cast

import anyio
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from starlette.requests import Request

from daemon.core.attachments import Attachment
from daemon.core.errors import BodyTooLargeError, RequestRefusedError
from daemon.core.verb import AnyVerb
from daemon.http.asgi import CLOSING
from schema.errors import ClawbusError
from schema.ids import check_name, check_session
from schema.rows import Kind

MAX_WAIT_S: Final = 60.0  # seconds that one long poll may take; to wait longer, the client repeats the request
_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


class AddressBody(BaseModel):
    """Where a message's answer goes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    channel_type: str
    platform_id: str
    thread_id: str | None = None


class FileBody(BaseModel):
    """A file that comes with a message: its name and its bytes in base64."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    data: str


class MessageBody(BaseModel):
    """The body of POST /v1/messages. `process_after` and `not_after` are epoch milliseconds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    agent: str
    session: str
    content: Any
    id: str | None = None
    kind: str = Kind.CHAT.value
    address: AddressBody | None = None
    trigger: bool = True
    on_wake: bool = False
    process_after: int | None = None
    recurrence: str | None = None
    create_session: bool = True
    not_after: int | None = None
    stop_late: bool = False
    files: list[FileBody] = []


class EventBody(BaseModel):
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
    files: list[FileBody] = []


async def read_body(request: Request, limit: int) -> bytes:
    """Return the request's body. Raise BodyTooLargeError if it is over `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLargeError(f"the request's body is over {limit} bytes.")
    return bytes(body)


def parse_body(model: type[_Model], body: bytes) -> _Model:
    """Parse JSON into the model. Raise RequestRefusedError, which names each invalid field and its fault."""
    try:
        return model.model_validate(json.loads(body))
    except ValidationError as error:
        raise _wrong(error) from error
    except (ValueError, RecursionError) as error:
        raise RequestRefusedError(f"the request's body is not JSON: {error}") from error


def decode_files(files: Sequence[FileBody]) -> tuple[Attachment, ...]:
    """Return the files with their bytes. Raise RequestRefusedError if one is not base64."""
    try:
        return tuple(Attachment(one.name, base64.b64decode(one.data, validate=True)) for one in files)
    except ValueError as error:
        raise RequestRefusedError(f"a file's data is not base64: {error}") from error


def parse_verb(verb: type[AnyVerb], values: Mapping[str, Any], body: bytes) -> AnyVerb:
    """Build a verb from a request's values and body. Raise RequestRefusedError, or what the verb's own checks raise."""
    try:
        given: object = json.loads(body or b"{}")
        if not isinstance(given, dict):
            raise RequestRefusedError("the request's body is not a JSON object.")
        # Encode as JSON again: in strict mode, pydantic builds a dataclass from JSON only.
        return _validator(verb).validate_json(json.dumps({**cast("dict[str, Any]", given), **values}))
    except ValidationError as error:
        raise _wrong(error) from error
    except (ValueError, RecursionError) as error:
        raise RequestRefusedError(f"the request's body is not JSON: {error}") from error


@cache
def _validator(verb: type[AnyVerb]) -> TypeAdapter[AnyVerb]:
    """Built at the verb's first request: those of all verbs take 10 ms of processor time."""
    return TypeAdapter(verb)


def session_named(values: Mapping[str, str]) -> tuple[str, str]:
    """Return the agent and the session that a request names. Raise InvalidNameError."""
    agent, session = values.get("agent", ""), values.get("session", "")
    return check_name("agent", agent), check_session(session)


def integer(request: Request, name: str, default: int, lowest: int, highest: int) -> int:
    """Return a whole number of the query, `default` when it is missing. Raise RequestRefusedError."""
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


def seconds(request: Request, name: str) -> float:
    """Return a number of seconds of the query, from 0 to MAX_WAIT_S. Raise RequestRefusedError."""
    text = request.query_params.get(name, "0")
    try:
        value = float(text)
    except ValueError as error:
        raise RequestRefusedError(f"{name} must be a number of seconds.") from error
    # NaN compares false with everything, so it becomes 0.
    return min(value, MAX_WAIT_S) if value >= 0 else 0.0


async def until_gone(request: Request, work: Callable[[], Awaitable[_T]]) -> _T | None:
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


def _wrong(error: ValidationError) -> RequestRefusedError:
    faults = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors())
    return RequestRefusedError(f"the request is wrong: {faults}")
