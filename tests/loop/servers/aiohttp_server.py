"""The same as app.py, as an application of aiohttp's: aiohttp_server.py FD"""

import contextlib
import socket
import sys

import chosen
from aiohttp import web


async def loop(request: web.Request) -> web.Response:
    return web.Response(text=chosen.running())


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):  # the client has gone
        for n in range(1000):
            await response.write(b"%07d\n" % n)
        await response.write_eof()
    return response


async def websocket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        await ws.send_bytes(message.data)
    return ws


app = web.Application(client_max_size=1 << 26)
app.router.add_get("/loop", loop)
app.router.add_post("/echo", echo)
app.router.add_get("/stream", stream)
app.router.add_get("/ws", websocket)

if __name__ == "__main__":
    listener = socket.socket(fileno=int(sys.argv[1]))
    web.run_app(app, sock=listener, loop=chosen.new_loop())
