"""app.py served by hypercorn, whose command has no option for the loop: hypercorn_server.py FD"""

import asyncio
import signal
import sys
from typing import Any

import chosen
from app import app
from hypercorn.asyncio import serve
from hypercorn.config import Config


async def main() -> None:
    config = Config()
    config.bind = [f"fd://{sys.argv[1]}"]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    application: Any = app
    await serve(application, config, shutdown_trigger=ended.wait)


if __name__ == "__main__":
    loop = chosen.new_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
