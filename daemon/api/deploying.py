"""The routes to start, abort or roll back a deploy, and to read its state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.routing import Route

from daemon.api.envelopes import enveloped
from daemon.core.errors import RequestRefusedError

ROUTE: Final = "/v1/deploy"
Model = TypeVar("Model", bound=BaseModel)


class Deploys(Protocol):
    """Carries out deploys."""

    async def status(self) -> dict[str, Any]:
        """Return the state of the slots and of the deploy."""
        ...

    async def start(self, release: str, *, force: bool, no_rollback: bool) -> dict[str, Any]:
        """Begin a deploy."""
        ...

    async def abort(self, by: str) -> dict[str, Any]:
        """End a deploy before its cutover."""
        ...

    async def rollback(self, by: str) -> dict[str, Any]:
        """Roll a deploy back during its bake."""
        ...


class _Start(BaseModel):
    model_config = ConfigDict(extra="forbid")
    release: str = Field(min_length=1, max_length=64)
    force: bool = False
    no_rollback: bool = False


class _By(BaseModel):
    model_config = ConfigDict(extra="forbid")
    by: str = Field(default="", max_length=256)


def deploy_routes(deploys: Deploys) -> list[Route]:
    """Return the routes GET and POST /v1/deploy, POST /v1/deploy/abort and /rollback."""

    async def status(_: Request) -> object:
        return await deploys.status()

    async def start(request: Request) -> object:
        wanted = await _body(request, _Start)
        return await deploys.start(wanted.release, force=wanted.force, no_rollback=wanted.no_rollback)

    def end(verb: Callable[[str], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[object]]:
        async def work(request: Request) -> object:
            return await verb((await _body(request, _By)).by)

        return work

    return [
        Route(ROUTE, enveloped(status), methods=["GET"]),
        Route(ROUTE, enveloped(start), methods=["POST"]),
        Route(f"{ROUTE}/abort", enveloped(end(deploys.abort)), methods=["POST"]),
        Route(f"{ROUTE}/rollback", enveloped(end(deploys.rollback)), methods=["POST"]),
    ]


async def _body(request: Request, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestRefusedError(f"the request is wrong: {error.errors()[0]['msg']}.") from error
