"""What a client sends to a server of PostgreSQL, written down on the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


@asynccontextmanager
async def recorded(dsn: str) -> AsyncIterator[tuple[str, bytearray]]:
    """A server's address behind which a proxy writes down what is sent."""
    there, sent, served = urlsplit(dsn), bytearray(), []

    async def forward(reader, writer, note=None):
        try:
            while data := await reader.read(1 << 16):
                if note is not None:
                    note += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader, writer):
        served.append(asyncio.current_task())
        up = await asyncio.open_connection(there.hostname, there.port or 5432)
        await asyncio.gather(forward(reader, up[1], sent), forward(up[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    netloc = f"{there.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
    try:
        yield there._replace(netloc=netloc).geturl(), sent
    finally:
        server.close()
        await asyncio.gather(*served)
