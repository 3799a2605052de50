"""Files in the database: a large object is written, read in pieces, and exported.

DATABASE_URL=postgresql://postgres@127.0.0.1/test python large_objects.py
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import greenletio
from greenletio.pg import aio

URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
MEGABYTE = 1 << 20


async def upload() -> AsyncIterator[bytes]:
    """What comes from a client, piece by piece."""
    for number in range(16):
        yield bytes([number]) * MEGABYTE
        await asyncio.sleep(0)


async def main() -> None:
    connection = await aio.connect(URL)
    oid = await connection.lo_import(upload())

    async with connection.transaction():
        async with await connection.lo_open(oid, "r+b") as file:
            await file.seek(5 * MEGABYTE)
            await file.write(b"changed in place")
            await file.seek(0)
            digest = hashlib.sha256()
            async for piece in file:
                digest.update(piece)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "export")
        size = await connection.lo_export(oid, path)
        same = hashlib.sha256(path.read_bytes()).digest() == digest.digest()
    print(size, "bytes;", "the same" if same else "something else")
    await connection.lo_unlink(oid)
    await connection.close()


if __name__ == "__main__":
    greenletio.run(main())
