"""What a client sends to a server of PostgreSQL, written down on the way; answers with gaps."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Gaps:
    """Leaves messages of the `kinds` out of what a server says; set it while nothing is asked."""

    def __init__(self) -> None:
        self.kinds = b""
        self._rest = b""

    def __call__(self, data: bytes) -> bytes:
        if not self.kinds:
            return data
        data, kept = self._rest + data, b""
        while len(data) >= 5:
            end = 1 + struct.unpack_from("!i", data, 1)[0]
            if end > len(data):
                break
            kept += b"" if data[0] in self.kinds else data[:end]
            data = data[end:]
        self._rest = data
        return kept


def _as_it_is(data: bytes) -> bytes:
    return data


@asynccontextmanager
async def recorded(
    dsn: str, answer: Callable[[bytes], bytes] = _as_it_is
) -> AsyncIterator[tuple[str, bytearray]]:
    """A server's address behind which a proxy writes down what is sent; answers go through
    `answer`."""
    there, sent, served = urlsplit(dsn), bytearray(), []

    def note(data):
        sent.extend(data)
        return data

    async def forward(reader, writer, change):
        try:
            while data := await reader.read(1 << 16):
                writer.write(change(data))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader, writer):
        served.append(asyncio.current_task())
        up = await asyncio.open_connection(there.hostname, there.port or 5432)
        await asyncio.gather(forward(reader, up[1], note), forward(up[0], writer, answer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    netloc = f"{there.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
    try:
        yield there._replace(netloc=netloc).geturl(), sent
    finally:
        server.close()
        await asyncio.gather(*served)
