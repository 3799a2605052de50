"""A client that goes away: what answers it is cancelled. For ASGI applications."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

__all__ = ("READ_AHEAD", "Watch")

#: Bytes of a body, at least, that are taken from the server before somebody reads them.
READ_AHEAD = 65536


class Watch:
    """Cancels the answer to a request when `listen`, which runs beside it, says that it is vain."""

    def __init__(self, listen: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        self._listen = listen
        self._listening: asyncio.Task[None] | None = None
        self._cancelled = False  # the task was told so

    async def over(self, answer: Awaitable[None]) -> None:
        """Await `answer`; that the client has gone ends it, and nothing around it."""
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling() if sys.version_info >= (3, 11) else 0
        # Not by the loop's task factory: an eager task would cancel this one while it runs.
        loop = asyncio.get_running_loop()
        self._listening = asyncio.Task(self._hear(task), loop=loop)
        try:
            await answer
        except BaseException as exc:
            ours = self._uncancel(task, cancelling)
            if not (ours and isinstance(exc, asyncio.CancelledError)):
                raise
        else:
            self._uncancel(task, cancelling)
        finally:
            self.stop()

    async def _hear(self, task: asyncio.Task[Any]) -> None:
        if await self._listen():
            self._cancelled = task.cancel()

    def _uncancel(self, task: asyncio.Task[Any], cancelling: int) -> bool:
        """Undo what the listener did; False if somebody else wants the task to end, too."""
        if not self._cancelled or sys.version_info < (3, 11):
            return self._cancelled
        return task.uncancel() <= cancelling

    def stop(self) -> None:
        """From here on, that the client goes is not too early."""
        if self._listening is not None:
            self._listening.cancel()
