"""Incoming webhook requests: POST /hooks/NAME[/SESSION], as an ASGI app.

It responds 202 only after the bus has committed the row. Until the signature is checked, a request is untrusted: nothing is
parsed, at most `max_body_bytes` are kept, and a refusal gives the reason without revealing what would have been accepted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.channels import webhook_refusals as refusals
from daemon.channels.protocol import Accept, Incoming, Intake, PlaceMessage
from daemon.channels.webhook_events import HookRequest, is_wanted, message_of
from daemon.channels.webhook_fetch import FileFetcher
from daemon.channels.webhook_forms import Signed, raw_of, slack_challenge
from daemon.channels.webhook_settings import Hook, Keys, WebhookSettings
from daemon.channels.webhook_uploads import MULTIPART, Upload, files_in, read_multipart
from daemon.core.clock import Clock
from daemon.core.errors import BodyTooLargeError
from daemon.http.connections import TRUSTED
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.instants import from_text
from schema.os_faults import as_host_error

_DRAIN_BYTES: Final = 4 * 1024**2
_DRAIN_S: Final = 1.0
_FORM_FIELDS: Final = 1000
_REFUSALS: Final = 60
_REFUSALS_S: Final = 60.0
_IN_THREAD_BYTES: Final = 64 * 1024
# Headers stored with the message because they describe it. Leave out headers that differ between two deliveries of one
# event (a date, a client's version): the same id with other content is refused as a conflict.
_KEPT_HEADERS: Final = (
    "content-type",
    "x-github-hook-id",
    "x-github-hook-installation-target-id",
    "x-github-hook-installation-target-type",
)


@frozen
class Ignored:
    """A signed request of a kind that the hook does not want. It is answered with a 2xx, so that the sender does not repeat it."""

    id: str
    event: str


class _RefusalLog:
    """Limits the log lines for refusals per minute and counts the rest, so that a flood cannot push out other log lines."""

    def __init__(self) -> None:
        self.unlogged = 0
        self._begun: float | None = None
        self._count = 0

    def allows(self, now: float) -> bool:
        """Return whether this refusal gets its own log line. `now` is monotonic seconds."""
        if self._begun is None or now - self._begun >= _REFUSALS_S:
            self._begun, self._count = now, 0
        self._count += 1
        if self._count > _REFUSALS:
            self.unlogged += 1
            return False
        return True

    def take_unlogged(self) -> int:
        """Return how many refusals were not logged since the last log line, and reset the count."""
        found, self.unlogged = self.unlogged, 0
        return found


class WebhookIn:
    """Accepts signed requests for the configured hooks and passes them to the bus."""

    def __init__(
        self, name: str, settings: WebhookSettings, keys: Mapping[str, Keys], clock: Clock, fetcher: FileFetcher
    ) -> None:
        self._fetcher = fetcher
        self._name = name
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._refusals = _RefusalLog()
        self._log = structlog.get_logger("webhook")

    def app(self, accept: Accept) -> Starlette:
        """Return the ASGI app that hands valid requests to `accept`."""

        async def hook(request: Request) -> Response:
            return await self._answer(request, accept)

        async def lost(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            if error.status_code == 405:
                return await self._refuse(request, refusals.MethodRefusedError(f"{request.method} is not taken here."))
            return await self._refuse(request, refusals.UnknownHookError("there is nothing at this path."))

        return Starlette(
            routes=[
                Route("/hooks/{hook}", hook, methods=["POST"]),
                Route("/hooks/{hook}/{session:path}", hook, methods=["POST"]),
            ],
            exception_handlers={404: lost, 405: lost},
        )

    async def _answer(self, request: Request, accept: Accept) -> Response:
        name = request.path_params["hook"]
        try:
            incoming = await self._checked(request, name)
            if isinstance(incoming, str):
                return JSONResponse({"challenge": incoming})
            if isinstance(incoming, Ignored):
                self._log.debug("webhook_ignored", hook=name, event_id=incoming.id, kind=incoming.event)
                return JSONResponse({"ok": True, "id": incoming.id, "ignored": True}, status_code=202)
            if isinstance(incoming, PlaceMessage):
                return await self._routed(name, incoming, accept)
            accepted = await accept(incoming)
        except ClientDisconnect:
            self._log.info("webhook_client_gone", hook=name[:64])
            return Response(status_code=400)
        except ClawbusError as error:
            return await self._refuse(request, error)
        except Exception as error:  # noqa: BLE001 - logged and answered; a bug in the bus must not close the channel
            host = as_host_error(error, "the request cannot be taken")
            if host is not None:
                return await self._refuse(request, host)
            # A bug, not a refusal: tell the caller only that the fault is ours and that it may send again.
            self._log.exception("webhook_failed", hook=name)
            return _failure(500, "INTERNAL", "the bus failed; nothing is known to be stored.", "Send it again later.")
        self._log.info(
            "webhook_accepted",
            hook=name,
            agent=accepted.agent,
            session=accepted.session,
            message=accepted.message_id,
            duplicate=accepted.duplicate,
        )
        body: dict[str, object] = {"ok": True, "id": accepted.message_id, "duplicate": accepted.duplicate}
        if accepted.duplicate:
            body["state"] = accepted.state
        if accepted.previous is not None:
            body |= {"previous": accepted.previous, "requeued_as": accepted.requeued_as}
        return JSONResponse(body, status_code=202)

    async def _routed(self, name: str, message: PlaceMessage, accept: Accept) -> Response:
        """Route an event, and answer once every message is stored. Answer an event without a target as well."""
        if not isinstance(accept, Intake):
            raise TypeError("the bus takes no events")
        routed = await accept.event(message)
        self._log.info(
            "webhook_routed", hook=name, event_id=message.event.id,
            to=[f"{one.agent}/{one.session}" for one in routed.accepted],
            refused=[one.reason.value for one in routed.refusals],
        )  # fmt: skip
        body = {
            "ok": True,
            "id": message.event.id,
            "messages": [
                {"agent": one.agent, "session": one.session, "id": one.message_id, "duplicate": one.duplicate}
                for one in routed.accepted
            ],
            "refused": [one.reason.value for one in routed.refusals],
            "codes": [one.code for one in routed.refusals if one.code is not None],
        }
        return JSONResponse(body, status_code=202)

    async def _checked(self, request: Request, name: str) -> Incoming | PlaceMessage | Ignored | str:
        """Return the request's message, or a text that the sender expects in the response."""
        hook = self._settings.hooks.get(name)
        if hook is None:
            raise refusals.UnknownHookError("there is no such hook.")
        form = hook.form
        form.early(request.headers, self._clock.now_ms())
        body = await self._body(request)
        message_id = form.check(
            self._keys[name].inbound, Signed(request.headers, request.scope["path"], body, self._clock.now_ms())
        )
        # The sender is authenticated from here on, so responses may reveal more.
        setattr(request.state, TRUSTED, True)
        content_type = request.headers.get("content-type", "")
        event = request.headers.get(form.event_header or "", "")[:200]
        kept = {key: request.headers[key][:200] for key in _KEPT_HEADERS if key in request.headers}
        if len(body) > _IN_THREAD_BYTES:
            payload, upload = await anyio.to_thread.run_sync(read_request, hook, content_type, body)
        else:
            payload, upload = read_request(hook, content_type, body)
        if content_type.lower().startswith(MULTIPART):  # its boundary differs between two deliveries of one event
            kept["content-type"] = MULTIPART
        if hook.signature == "slack" and (challenge := slack_challenge(payload)) is not None:
            return challenge
        if not is_wanted(hook, event, payload):
            return Ignored(message_id, event)
        if hook.keep_raw:
            payload |= raw_of(body)
        return message_of(
            hook,
            HookRequest(
                channel=self._name,
                hook=name,
                message_id=message_id,
                event=event,
                content={"event": event or None, "headers": kept, **payload},
                payload=payload,
                session=request.path_params.get("session"),
                traceparent=request.headers.get("traceparent"),
                not_after=_not_after(request.headers.get("x-clawbus-not-after")),
                files=upload.files,
                to_fetch=self._fetcher.later(upload.urls, hook.file_hosts, upload.files),
            ),
        )

    async def _body(self, request: Request) -> bytes:
        """Read the raw body.

        Raise BodyTooLargeError as soon as it exceeds the limit, BodyTimeoutError when it arrives too slowly.
        """
        limit = self._settings.max_body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            raise self._too_large()
        body = bytearray()
        try:
            with anyio.fail_after(self._settings.body_timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise self._too_large()
        except TimeoutError:
            seconds = self._settings.body_timeout_s
            raise refusals.BodyTimeoutError(f"the body did not come within {seconds:g} s.") from None
        request.state.body_read = True
        return bytes(body)

    def _too_large(self) -> BodyTooLargeError:
        limit = self._settings.max_body_bytes
        return BodyTooLargeError(
            f"the body is over {limit} bytes.", hint="Send less, or raise the channel's max_body_bytes."
        )

    async def _refuse(self, request: Request, error: ClawbusError) -> Response:
        status = refusals.status_of(error)
        level = self._log.warning if status >= 500 else self._log.info
        client = request.client.host if request.client else None
        logged = True if status >= 500 else self._refusals.allows(self._clock.monotonic())
        if logged:
            more = {"unlogged_before": self._refusals.take_unlogged()} if self._refusals.unlogged else {}
            level(
                "webhook_refused", path=request.url.path[:200], status=status, code=error.code, error=str(error)[:500],
                client=client, **more,
            )  # fmt: skip
        if status >= 500:
            # Log the internal cause; tell the sender only that it is not at fault.
            self._log.warning("webhook_not_stored", code=error.code, error=str(error), hint=error.hint)
            response = _failure(
                status, error.code, "the bus cannot store this now.", "Send it again after Retry-After."
            )
            response.headers["retry-after"] = str(refusals.RETRY_AFTER_S)
        else:
            response = _failure(status, error.code, *refusals.said_outside(error))
        if status == 405:
            response.headers["allow"] = "POST"
        if not await _finish(request, error):
            response.headers["connection"] = "close"
        return response


def read_request(hook: Hook, content_type: str, body: bytes) -> tuple[dict[str, object], Upload]:
    """Return a request's payload as `read_payload` does, and its files. Raise BodyRefusedError or MediaTypeError."""
    try:
        if content_type.lower().startswith(MULTIPART):
            upload = read_multipart(content_type, body)
            return {"body": upload.body}, upload
        payload = read_payload(content_type, body, strict=hook.form.strict_forms)
        if hook.signature != "clawbus" or "body" not in payload:
            return payload, Upload(None)
        upload = files_in(payload["body"], urls=bool(hook.file_hosts))
    except (ValueError, RecursionError) as error:
        raise refusals.BodyRefusedError(f"the body's files cannot be read: {str(error)[:200]}.") from error
    return {**payload, "body": upload.body}, upload


def read_payload(content_type: str, body: bytes, *, strict: bool = False) -> dict[str, object]:
    """Return `{"body": ...}` for JSON or a form, `{"text": ...}` for plain text. Raise BodyRefusedError or MediaTypeError.

    A form whose only field is a `payload` that holds JSON is read as that JSON. With `strict`, other forms are refused.
    """
    media = content_type.partition(";")[0].strip().lower()
    try:
        if media == "application/json" or (media.startswith("application/") and media.endswith("+json")):
            return {"body": _json(body.decode("utf-8"))}
        if media == "text/plain":
            return {"text": body.decode("utf-8")}
        if media == "application/x-www-form-urlencoded":
            return {"body": _form(body, strict=strict)}
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise refusals.BodyRefusedError(f"the body is not valid {media}: {reason[:200]}.") from error
    raise refusals.MediaTypeError(f"content type {media[:100]!r} is not taken here.")


def _form(body: bytes, *, strict: bool) -> object:
    """Parse a form's fields. Several fields with one name become a list. Raise ValueError if the form is malformed."""
    fields = parse_qs(
        body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body) and not strict,
        max_num_fields=_FORM_FIELDS, errors="strict",
    )  # fmt: skip
    single = list(fields) == ["payload"] and len(fields["payload"]) == 1
    if strict and not single:
        raise refusals.BodyRefusedError("a form must have one field, `payload`, with JSON in it.")
    if single and (strict or fields["payload"][0][:1] in ("{", "[")):
        return _json(fields["payload"][0])
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def _json(text: str) -> object:
    """Parse JSON as RFC 8259 defines it. Python's parser alone would accept NaN, infinities and lone surrogates."""

    def constant(name: str) -> object:
        raise ValueError(f"{name} is not JSON")

    value: object = json.loads(text, parse_constant=constant)
    # Refuse a value that cannot be stored: 1e999 parses as infinity, and "\ud800" is not valid Unicode.
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return value


def _not_after(text: str | None) -> int | None:
    """Parse the sender's expiry time: ISO 8601, or epoch seconds."""
    if text is None:
        return None
    instant = int(text) * 1000 if text.isascii() and text.isdigit() and len(text) <= 12 else from_text(text)
    if instant is None:
        raise refusals.BodyRefusedError("X-Clawbus-Not-After is neither an ISO-8601 time nor epoch seconds.")
    return instant


async def _finish(request: Request, error: ClawbusError) -> bool:
    """Read the rest of a refused request's body, within limits. Return False when the connection must be closed instead.

    Closing a connection with unread data resets it, and the client would see the reset instead of the response.
    """
    if getattr(request.state, "body_read", False):
        return True  # reading more would wait until the client disconnects
    if isinstance(error, refusals.BodyTimeoutError) or request.headers.get("expect", "").lower() == "100-continue":
        return False
    left = _DRAIN_BYTES
    with anyio.move_on_after(_DRAIN_S):
        while left > 0:
            message = await request.receive()
            left -= len(message.get("body", b""))
            if message["type"] == "http.disconnect":
                return False
            if not message.get("more_body", False):
                return True
    return False


def _failure(status: int, code: str, message: str, fix: str) -> JSONResponse:
    return JSONResponse({"ok": False, "error": {"code": code, "message": message}, "fix": fix}, status_code=status)
