"""The control API's routes: they parse requests and call `Operations`, and make no decisions of their own.

Every response is JSON. A long poll has a time limit, and ends early when the client disconnects or the daemon stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from daemon.api.envelopes import Handler, TwoEnvelopes, enveloped, http_error
from daemon.api.operations import Operations
from daemon.api.requests import (
    EventBody,
    MessageBody,
    decode_files,
    integer,
    parse_body,
    parse_verb,
    read_body,
    seconds,
    session_named,
    until_gone,
)
from daemon.channels.protocol import Incoming, PlaceMessage
from daemon.core.commands import VERBS
from daemon.core.errors import RequestRefusedError
from daemon.core.routing import PlaceEvent
from daemon.core.verb import AnyVerb
from schema.rows import Address

MAX_LIMIT: Final = 1000
LOCAL: Final = "local"
DEFAULT_BODY_BYTES: Final = 4 * 1024 * 1024


def build_api(
    operations: Operations,
    more: Sequence[BaseRoute] = (),
    *,
    max_body_bytes: int = DEFAULT_BODY_BYTES,
    max_attachment_bytes: int = 0,
) -> Starlette:
    """Build the ASGI app. `max_body_bytes` limits a request's body; the ingress has a limit of its own for the content.

    A message's body may also hold up to `max_attachment_bytes` of files, in base64. `more` are other routes on the same
    socket: monitoring, the event stream, reloads and deploys.
    """
    api = _Handlers(operations, max_body_bytes, 4 * (max_attachment_bytes // 3 + 1))

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, enveloped(handler), methods=[method])

    return Starlette(
        routes=[
            route("/v1/messages", api.accept, "POST"),
            route("/v1/events", api.event, "POST"),
            route("/v1/replies", api.reply),
            route("/v1/mailbox/{name:path}", api.mailbox),
            route("/v1/status", api.status),
            route("/v1/live", api.live),
            route("/v1/sessions", api.sessions),
            # A name may hold slashes, so the routes that end in a verb come first.
            *(route(verb.route, partial(api.execute, verb), "POST") for verb in VERBS),
            route("/v1/sessions/{agent}/{session:path}", api.session),
            route("/v1/dead", api.dead),
            route("/v1/dead/show", api.dead_show),
            *more,
        ],
        exception_handlers={HTTPException: http_error},
    )


class _Handlers:
    def __init__(self, operations: Operations, max_body_bytes: int, max_file_text: int) -> None:
        self._operations = operations
        self._max_body_bytes = max_body_bytes
        self._max_file_text = max_file_text

    async def accept(self, request: Request) -> object:
        wait_s, after = seconds(request, "wait_s"), self._after(request)
        body = parse_body(MessageBody, await read_body(request, self._max_body_bytes + self._max_file_text))
        address = body.address
        files = await anyio.to_thread.run_sync(decode_files, body.files) if body.files else ()
        top = self._operations.mailbox_top
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
                stop_late=body.stop_late,
                files=files,
            )
        )
        if not wait_s:
            return asdict(accepted)
        # Send the acceptance before waiting: whatever happens during the wait, the client knows that the message is stored.
        message_id = accepted.requeued_as or accepted.message_id
        return TwoEnvelopes(
            request,
            asdict(accepted),
            lambda request: self._waited(
                request,
                (accepted.agent, accepted.session, message_id),
                wait_s,
                after,
                None if accepted.duplicate else top,
            ),
        )

    async def _waited(
        self,
        request: Request,
        about: tuple[str, str, str],
        wait_s: float,
        after: int | None,
        accepted_at: int | None = None,
    ) -> object:
        """Wait for the answer to a message. `about` is its agent, session and id; `after` and `accepted_at` are cursors."""
        entry = await until_gone(request, lambda: self._operations.wait_reply(*about, wait_s, after, accepted_at))
        return {"entry": asdict(entry) if entry is not None else None}

    def _after(self, request: Request) -> int | None:
        return integer(request, "after", 0, 0, 2**63 - 1) if "after" in request.query_params else None

    async def event(self, request: Request) -> object:
        body = parse_body(EventBody, await read_body(request, self._max_body_bytes + self._max_file_text))
        files = await anyio.to_thread.run_sync(decode_files, body.files) if body.files else ()
        event = PlaceEvent(
            LOCAL, body.place, body.id, body.text, thread=body.thread, sender=body.sender, direct=body.direct,
            mention=body.mention,
        )  # fmt: skip
        content = {"text": body.text, "sender": body.sender} if body.sender is not None else {"text": body.text}
        address = Address(LOCAL, body.place, body.thread)
        message = PlaceMessage(event, content, address, not_after=body.not_after, files=files)
        routed = await self._operations.event(message)
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
        agent, session = session_named(request.query_params)
        message_id = request.query_params.get("message_id")
        if not message_id:
            raise RequestRefusedError("message_id is missing.")
        wait_s, after = seconds(request, "wait_s"), self._after(request)
        return await self._waited(request, (agent, session, message_id), wait_s, after)

    async def mailbox(self, request: Request) -> object:
        name = request.path_params["name"]
        after = integer(request, "after", 0, 0, 2**63 - 1)
        limit = integer(request, "limit", 100, 1, MAX_LIMIT)
        wait_s = seconds(request, "wait_s")
        found = await until_gone(request, lambda: self._operations.read_mailbox(name, after, limit, wait_s))
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
        return await self._operations.session(*session_named(request.path_params))

    async def execute(self, verb: type[AnyVerb], request: Request) -> object:
        """Execute a verb. Its values come from the body, the query (operator, reason) and the path (names)."""
        body = await read_body(request, self._max_body_bytes)
        values: dict[str, Any] = {**request.query_params, **request.path_params}
        return await self._operations.execute(parse_verb(verb, values, body))

    async def dead(self, request: Request) -> object:
        query = request.query_params
        session = session_named(query) if "agent" in query or "session" in query else None
        limit = integer(request, "limit", 100, 1, MAX_LIMIT)
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
        return await self._operations.dead_letter(*session_named(request.query_params), letter_id)
