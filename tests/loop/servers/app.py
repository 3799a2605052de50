"""An ASGI application: /loop, /echo, /stream and a WebSocket; and gunicorn's worker for it."""

import asyncio
import os
from typing import Any

import chosen


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(receive, send)
    elif scope["path"] == "/loop":
        await answer(send, [chosen.running().encode()])
    elif scope["path"] == "/echo":
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await answer(send, [body])
    elif scope["path"] == "/stream":
        await answer(send, [b"%07d\n" % n for n in range(1000)])


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def answer(send: Any, parts: list[bytes]) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def websocket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})


def __getattr__(name: str) -> Any:
    if name != "Worker":  # gunicorn alone asks for it
        raise AttributeError(name)
    from uvicorn_worker import UvicornWorker

    class Worker(UvicornWorker):  # type: ignore[misc]
        CONFIG_KWARGS = {"loop": os.environ["GREENLETIO_TEST_LOOP"], "http": "auto"}

    return Worker
