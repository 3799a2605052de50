"""Rows as columns: an export to Parquet that is never in memory as a whole, a mean by NumPy, and a
table filled from the file.

DATABASE_URL=postgresql://postgres@127.0.0.1/test python pg_columns.py [ROWS]

It needs pyarrow and NumPy.
"""

import os
import sys
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet

import greenletio
from greenletio.pg import aio

URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
SALES = """
    SELECT i AS id, 'shop ' || i % 7 AS shop, (i % 1000 * 0.05)::numeric(10, 2) AS price,
           timestamptz '2024-01-01 00:00 UTC' + i * interval '1 minute' AS sold
    FROM generate_series(1, $1::int) AS i
"""


async def export(connection: aio.Connection, path: Path, rows: int) -> None:
    writer = None
    try:
        async for batch in connection.stream_arrow(SALES, rows, batch_rows=10_000):
            part = pyarrow.record_batch(batch)  # the same memory
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(path, part.schema)
            writer.write_batch(part)
    finally:
        if writer is not None:
            writer.close()


async def main(rows: int) -> None:
    connection = await aio.connect(URL)
    arrays = await connection.fetch_numpy(f"SELECT price FROM ({SALES}) AS sales", rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sales.parquet")
        await export(connection, path, rows)
        await connection.execute(
            "CREATE TEMP TABLE sales (id int, shop text, price numeric(10, 2), sold timestamptz)"
        )
        source = pyarrow.parquet.read_table(path)
        status = await connection.copy_arrow_to_table("sales", source=source)
    mean = await connection.fetchval("SELECT avg(price) FROM sales")
    print(f"{status}; the mean price is {arrays['price'].mean():.3f}, and {mean:.3f} in the table")
    await connection.close()


if __name__ == "__main__":
    greenletio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
