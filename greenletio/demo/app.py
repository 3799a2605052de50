"""A small ASGI application whose one handler calls the synchronous search."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

__all__ = ("make_app",)


def make_app(search: Callable[[str], Awaitable[list[dict[str, Any]]]]) -> Starlette:
    async def find(request: Request) -> JSONResponse:
        return JSONResponse(await search(request.query_params["q"]))

    return Starlette(routes=[Route("/search", find)])
