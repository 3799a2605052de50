"""A cache that is never older than the database: notifications tell what has changed.

DATABASE_URL=postgresql://postgres@127.0.0.1/test python pg_listen.py

Kill its connection while it runs (SELECT pg_terminate_backend(…)): it connects again, is told that
it may have missed something, and reads all of the table anew.
"""

import asyncio
import os

from greenletio.pg import aio

URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")

PREPARE = """
DROP TABLE IF EXISTS setting;
CREATE TABLE setting (name text PRIMARY KEY, value text NOT NULL);
INSERT INTO setting VALUES ('colour', 'blue');
CREATE OR REPLACE FUNCTION tell_setting() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('setting', NEW.name); RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON setting
    FOR EACH ROW EXECUTE FUNCTION tell_setting();
"""


class Settings:
    """All of the table, in memory."""

    def __init__(self, listener: aio.Listener) -> None:
        self._listener = listener
        self.values: dict[str, str] = {}

    async def read_all(self) -> None:
        async with self._listener.connection() as connection:
            rows = await connection.fetch("SELECT name, value FROM setting")
        self.values = {row["name"]: row["value"] for row in rows}

    async def follow(self) -> None:
        async for event in self._listener:
            if isinstance(event, aio.Gap):
                await self.read_all()
            else:
                async with self._listener.connection() as connection:
                    query = "SELECT value FROM setting WHERE name = $1"
                    self.values[event.payload] = await connection.fetchval(query, event.payload)


async def main() -> None:
    other = await aio.connect(URL)
    await other.execute(PREPARE)
    async with aio.Listener(URL, channels=["setting"]) as listener:
        settings = Settings(listener)
        await settings.read_all()
        task = asyncio.create_task(settings.follow())
        await other.execute("UPDATE setting SET value = 'green' WHERE name = 'colour'")
        while settings.values["colour"] != "green":
            await asyncio.sleep(0.01)
        async with listener.connection() as connection:
            pid = connection.get_server_pid()
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        await other.execute("INSERT INTO setting VALUES ('size', 'large')")
        while "size" not in settings.values:
            await asyncio.sleep(0.01)
    await task  # the iteration ends with the listener
    await other.close()
    print(settings.values)


if __name__ == "__main__":
    asyncio.run(main())
