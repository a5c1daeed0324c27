"""The operator's repairs over HTTP: further POST routes of the control API, each one call of `Repairs`.

Decides nothing. Who asks is what the caller says: only the daemon's own user may open the socket.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from daemon.api.api import DEFAULT_BODY_BYTES, enveloped, parse_body, read_body
from daemon.core.stale_plan import Scope, check_scope
from daemon.maintenance.repairs import Repairs
from daemon.store.dead_letters import Operator
from daemon.store.registry import SessionKey
from schema.ids import check_name, check_session

_Body = TypeVar("_Body", bound=BaseModel)


class _SessionBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    agent: str
    session: str

    @property
    def key(self) -> SessionKey:
        """The session's name, checked. Raises InvalidNameError."""
        return SessionKey(check_name("agent", self.agent), check_session(self.session))


class _RepairBody(_SessionBody):
    by: str = Field(min_length=1, max_length=200)
    reason: str | None = Field(default=None, max_length=1000)

    @property
    def operator(self) -> Operator:
        return Operator(self.by, self.reason)


class _MessageBody(_RepairBody):
    """POST /v1/messages/cancel and /v1/messages/retry."""

    id: str = Field(min_length=1, max_length=200)
    kill: bool = False


class _AnswerBody(_RepairBody):
    """POST /v1/answers/retry and /v1/answers/drop."""

    id: str = Field(min_length=1, max_length=200)


class _ResetBody(_RepairBody):
    """POST /v1/repairs/reset."""

    discard: bool = False


class _DeleteBody(_RepairBody):
    """POST /v1/repairs/delete."""

    force: bool = False


class _LimitsBody(_SessionBody):
    """POST /v1/stale/preview: one session, and the sweep's limits."""

    older_than_ms: int
    max_runs: int

    @property
    def scope(self) -> Scope:
        """Checked as for a sweep that is applied."""
        scope = Scope(session=self.key, older_than_ms=self.older_than_ms, max_runs=self.max_runs)
        check_scope(scope, apply=True)
        return scope


class _ApplyBody(_RepairBody, _LimitsBody):
    """POST /v1/stale/apply. `expected`: the runs that the preview named."""

    expected: list[str] | None = None


class _UndoBody(_RepairBody):
    """POST /v1/stale/undo."""

    backup: str = Field(min_length=1, max_length=255)


def repair_routes(repairs: Repairs) -> list[BaseRoute]:
    """One route a repair; all are POST."""
    api = _RepairApi(repairs)
    handlers = (
        ("/v1/messages/cancel", api.cancel),
        ("/v1/messages/retry", api.retry),
        ("/v1/answers/retry", api.retry_answer),
        ("/v1/answers/drop", api.drop_answer),
        ("/v1/repairs/quarantine", api.quarantine),
        ("/v1/repairs/reset", api.reset),
        ("/v1/repairs/delete", api.delete),
        ("/v1/stale/preview", api.stale_preview),
        ("/v1/stale/apply", api.stale_apply),
        ("/v1/stale/undo", api.stale_undo),
    )
    return [Route(path, enveloped(handler), methods=["POST"]) for path, handler in handlers]


class _RepairApi:
    def __init__(self, repairs: Repairs) -> None:
        self._repairs = repairs

    async def cancel(self, request: Request) -> object:
        body = await _body(_MessageBody, request)
        return await self._repairs.cancel(body.key, body.id, body.operator, kill=body.kill)

    async def retry(self, request: Request) -> object:
        body = await _body(_MessageBody, request)
        return await self._repairs.retry(body.key, body.id, body.operator)

    async def retry_answer(self, request: Request) -> object:
        body = await _body(_AnswerBody, request)
        return await self._repairs.retry_answer(body.key, body.id, body.operator)

    async def drop_answer(self, request: Request) -> object:
        body = await _body(_AnswerBody, request)
        return await self._repairs.drop_answer(body.key, body.id, body.operator)

    async def quarantine(self, request: Request) -> object:
        body = await _body(_RepairBody, request)
        return await self._repairs.quarantine(body.key, body.operator)

    async def reset(self, request: Request) -> object:
        body = await _body(_ResetBody, request)
        return await self._repairs.reset(body.key, body.operator, discard=body.discard)

    async def delete(self, request: Request) -> object:
        body = await _body(_DeleteBody, request)
        return await self._repairs.deletions.delete(body.key, body.operator, force=body.force)

    async def stale_preview(self, request: Request) -> object:
        body = await _body(_LimitsBody, request)
        return await self._repairs.stale_preview(body.key, body.scope)

    async def stale_apply(self, request: Request) -> object:
        body = await _body(_ApplyBody, request)
        return await self._repairs.stale_apply(body.key, body.scope, body.operator, body.expected)

    async def stale_undo(self, request: Request) -> object:
        body = await _body(_UndoBody, request)
        return await self._repairs.stale_undo(body.key, body.backup, body.operator)


async def _body(model: type[_Body], request: Request) -> _Body:
    return parse_body(model, await read_body(request, DEFAULT_BODY_BYTES))
